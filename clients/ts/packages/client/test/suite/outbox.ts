import { type Outbox, outbox, type Unsent } from "../../src/outbox.ts";
import { all, broken, equal, ok, service, test, unique } from "./harness.ts";

// Only where there is a disk.
const there = typeof indexedDB === "object";

/** shows waits until the outbox shows what is wanted. */
async function shows(box: Outbox, wanted: (unsent: readonly Unsent[]) => boolean): Promise<readonly Unsent[]> {
  for (;;) {
    const now = box.get();
    if (now && wanted(now)) return now;
    await new Promise<void>((done) => {
      const stop = box.subscribe(() => {
        stop();
        done();
      });
    });
  }
}

const texts = async (world: Parameters<typeof service>[0], user: string, id: string) =>
  (await all(service(world).as(user).conversation(id).messages())).map((m) => m.text);

test("changes of an outbox are sent in order, each once, whatever breaks", async (world) => {
  if (!there) return;
  const name = unique("u");
  const conversationId = unique("c");
  await service(world).as(name).conversation(conversationId).create();
  const actions = ["after", "503", "before", "hang", "twice", "after+after+before", "hole", "html", "cut9", "slow600"];
  const hf = service(world, { user: name, url: broken(world, ...actions.flatMap((a) => a.split("+"))), attemptTimeout: 300 });
  const box = outbox(hf, { user: name });
  const wanted = Array.from({ length: 12 }, (_, i) => `m${i}`);
  await Promise.all(wanted.map((text) => box.add("conversation.append", { conversationId, messages: [{ role: "user", text }] })));
  await shows(box, (unsent) => unsent.length === 0);
  equal(await texts(world, name, conversationId), wanted);
  await box[Symbol.asyncDispose]();
});

test("what was left unsent is sent by the next page, and what was sent but not known to be happens once", async (world) => {
  if (!there) return;
  const name = unique("u");
  const conversationId = unique("c");
  await service(world).as(name).conversation(conversationId).create();
  const away = outbox(
    service(world, { user: name, url: broken(world, ...Array(50).fill("after")), attemptTimeout: 300, timeout: 500 }),
    {
      user: name,
    },
  );
  for (const text of ["one", "two", "three"])
    await away.add("conversation.append", { conversationId, messages: [{ role: "user", text }] });
  const left = await shows(away, (unsent) => unsent.length === 3);
  equal(
    left.map((u) => [u.call, u.state, (u.request["messages"] as { text: string }[])[0]?.text]),
    ["one", "two", "three"].map((text) => ["conversation.append", "waiting", text]),
  );
  for (let tries = 0; tries < 200 && (await texts(world, name, conversationId)).length === 0; tries++)
    await new Promise((done) => setTimeout(done, 20));
  await away[Symbol.asyncDispose]();
  const back = outbox(service(world, { user: name }), { user: name });
  await shows(back, (unsent) => unsent.length === 0);
  equal(await texts(world, name, conversationId), ["one", "two", "three"]);
  await back[Symbol.asyncDispose]();
});

test("a change that is refused is shown, and does not hold up the others", async (world) => {
  if (!there) return;
  const name = unique("u");
  const conversationId = unique("c");
  const box = outbox(service(world, { user: name }), { user: name });
  await box.add("conversation.append", { conversationId: unique("none"), messages: [{ role: "user", text: "lost" }] });
  await box.add("conversation.append", { conversationId, createIfMissing: true, messages: [{ role: "user", text: "kept" }] });
  const [failed] = await shows(box, (unsent) => unsent.length === 1 && unsent[0]?.state === "failed");
  equal(failed?.error?.reason, "NOT_FOUND");
  equal(await texts(world, name, conversationId), ["kept"]);
  const missing = String(failed?.request["conversationId"]);
  await service(world).as(name).conversation(missing).create();
  await box.retry(failed?.id ?? 0);
  await shows(box, (unsent) => unsent.length === 0);
  equal(await texts(world, name, missing), ["lost"]);
  await box[Symbol.asyncDispose]();
});

test("a change that waited too long is shown and not sent, until someone says so", async (world) => {
  if (!there) return;
  const name = unique("u");
  const conversationId = unique("c");
  const clock = Date.now;
  try {
    const away = outbox(service(world, { user: name, url: "http://127.0.0.1:9", timeout: 200 }), { user: name });
    await away.add("conversation.append", {
      conversationId,
      createIfMissing: true,
      messages: [{ role: "user", text: "yesterday" }],
    });
    await away[Symbol.asyncDispose]();
    Date.now = () => clock() + 24 * 3_600_000;
    const box = outbox(service(world, { user: name }), { user: name });
    await box.add("conversation.append", { conversationId, createIfMissing: true, messages: [{ role: "user", text: "today" }] });
    const [old] = await shows(box, (unsent) => unsent.length === 1 && unsent[0]?.state === "old");
    equal(await texts(world, name, conversationId), ["today"]);
    await box.discard(old?.id ?? 0);
    equal((await shows(box, (unsent) => unsent.length === 0)).length, 0);
    await box[Symbol.asyncDispose]();
  } finally {
    Date.now = clock;
  }
});

test("two outboxes of a user share the changes, and each is sent once and in order", async (world) => {
  if (!there) return;
  const name = unique("u");
  const conversationId = unique("c");
  await service(world).as(name).conversation(conversationId).create();
  const boxes = Array.from({ length: 3 }, () => outbox(service(world, { user: name }), { user: name }));
  const wanted: string[] = [];
  for (let i = 0; i < 30; i++) {
    wanted.push(`m${i}`);
    await boxes[i % 3]?.add("conversation.append", { conversationId, messages: [{ role: "user", text: `m${i}` }] });
  }
  for (const box of boxes) await shows(box, (unsent) => unsent.length === 0);
  equal(await texts(world, name, conversationId), wanted);
  for (const box of boxes) await box[Symbol.asyncDispose]();
});

test("an outbox is its user's", async (world) => {
  if (!there) return;
  const [ada, bob] = [unique("ada"), unique("bob")];
  const hers = outbox(service(world, { user: ada, url: "http://127.0.0.1:9", timeout: 200 }), { user: ada });
  await hers.add("conversation.append", {
    conversationId: "c",
    createIfMissing: true,
    messages: [{ role: "user", text: "hers" }],
  });
  const his = outbox(service(world, { user: bob }), { user: bob });
  equal((await shows(his, () => true)).length, 0);
  ok((await shows(hers, () => true)).length === 1, "hers");
  await his[Symbol.asyncDispose]();
  await hers[Symbol.asyncDispose]();
});
