import { services } from "../../src/gen/rpc.ts";
import { decode, encode } from "../../src/json.ts";
import { all, broken, equal, fails, ok, service, test, unique, user } from "./harness.ts";

test("a handle does no I/O", async (world) => {
  const hf = user(world, { fetch: () => Promise.reject(new Error("it called")) });
  for (const make of [
    () => hf.conversation("c"),
    () => hf.project("p"),
    () => hf.task("t"),
    () => hf.session(),
    () => hf.api("a"),
    () => hf.inspect("conversation", "c"),
  ])
    ok(make());
});

test("every call of every service is there", async (world) => {
  const hf = service(world);
  for (const [name, [, calls]] of Object.entries(services))
    for (const call of calls.split(" ")) {
      const short = call.replace(/\W$/, "");
      ok(typeof (hf.rpc as never)[name][short[0]?.toLowerCase() + short.slice(1)] === "function", `${name}.${call}`);
    }
});

test("what is written is read, with numbers, words and defaults", async (world) => {
  const talk = user(world).conversation(unique("c"));
  const made = await talk.create({ title: "Auth", labels: { team: "core" }, metadata: { version: "5", n: 1.5, none: null } });
  equal([made.conversationId, made.version, made.title, made.messageCount, made.keepForever], [talk.id, 1, "Auth", 0, false]);
  equal(made.metadata, { n: 1.5, none: null, version: "5" }, "what is the caller's own");
  const { version, messages, created } = await talk.append([
    { role: "user", text: "Hello", clientMessageId: "m-1" },
    { role: "assistant", parts: [{ text: "Hi" }, { json: null }, { toolCall: { name: "run", args: { role: "ROLE_USER" } } }] },
  ]);
  equal([version, messages.map((m) => m.seq), created], [2, [1, 2], false]);
  const now = await talk.get({ messages: 10 });
  equal(
    now.messages.map((m) => [m.role, m.text, m.pinned, m.parts.length, m.modality]),
    [
      ["user", "Hello", false, 0, "text"],
      ["assistant", "", false, 3, "text"],
    ],
  );
  equal(now.messages[1]?.parts[1], { json: null, partId: "", thoughtSignature: "" }, "a null");
  equal(now.messages[1]?.parts[2]?.toolCall?.args, { role: "ROLE_USER" }, "what is the caller's own");
});

test("what was read can be written back", async (world) => {
  const hf = user(world);
  const talk = hf.conversation(unique("c"));
  await talk.append(
    [
      { role: "user", text: "Hello" },
      { role: "assistant", text: "Hi", modality: "voice" },
    ],
    { createIfMissing: true },
  );
  const { messages } = await talk.get({ messages: 10 });
  const copy = hf.conversation(unique("c"));
  await copy.append(messages, { createIfMissing: true });
  equal(
    (await copy.get({ messages: 10 })).messages.map((m) => [m.role, m.text, m.modality]),
    messages.map((m) => [m.role, m.text, m.modality]),
  );
});

test("what this client does not know passes through it", async () => {
  const came = { messages: [{ role: "ROLE_ORACLE", newField: { deep: "1" } }], version: "7", other: "8" };
  equal(decode("conversation.AppendResponse", structuredClone(came)), {
    messages: [
      Object.assign({ role: "", newField: { deep: "1" } }, decode("conversation.Message", {}) as object, { role: "oracle" }),
    ],
    version: 7,
    other: "8",
    duplicateSeqs: [],
    created: false,
  });
  const sent = { messages: [{ role: "oracle", newField: { deep: "1" } }, { role: "user" }, { role: "ROLE_USER" }] };
  equal(encode("conversation.AppendRequest", sent), {
    messages: [{ role: "ROLE_ORACLE", newField: { deep: "1" } }, { role: "ROLE_USER" }, { role: "ROLE_USER" }],
  });
  equal(sent.messages[1], { role: "user" }, "the caller's own object");
});

test("a number that JavaScript would round is an error, and not another number", async () => {
  equal(
    (decode("conversation.AppendResponse", { version: "9007199254740991" }) as { version: number }).version,
    9007199254740991,
  );
  let error: unknown;
  try {
    decode("conversation.AppendResponse", { version: "9007199254740993" });
  } catch (e) {
    error = e;
  }
  ok(error instanceof RangeError && error.message.includes("9007199254740993"), "the refusal");
});

test("a date is a moment", async (world) => {
  const hf = user(world);
  const since = new Date(Date.now() - 60_000);
  await hf.conversation(unique("c")).create();
  equal((await all(hf.conversations({ activeSince: since }))).length, 1);
  equal((await all(hf.conversations({ activeSince: new Date(Date.now() + 3_600_000) }))).length, 0);
});

test("a list is all of its pages", async (world) => {
  const talk = user(world).conversation(unique("c"));
  await talk.append(
    Array.from({ length: 25 }, (_, i) => ({ role: "user" as const, text: `m${i}` })),
    { createIfMissing: true },
  );
  equal(
    (await all(talk.messages({ pageSize: 10 }))).map((m) => m.text),
    Array.from({ length: 25 }, (_, i) => `m${i}`),
  );
  const first: string[] = [];
  for await (const m of talk.messages({ pageSize: 10, newestFirst: true })) if (first.push(m.text) === 12) break;
  equal(first.at(-1), "m13");
});

test("a change by a function runs again until no one was faster", async (world) => {
  const talk = user(world).conversation(unique("c"));
  await talk.create({ metadata: { count: 0 } });
  const add = () => talk.update((c) => ({ metadata: { count: Number(c.metadata?.["count"]) + 1 } }));
  await Promise.all(Array.from({ length: 5 }, add));
  equal((await talk.get()).metadata, { count: 5 });
});

test("projects, tasks, preferences, APIs and the inspector by their handles", async (world) => {
  const hf = user(world);
  const project = hf.project(unique("p"));
  equal((await project.put({ title: "Login" })).version, 1);
  equal((await project.put((p) => ({ title: `${p.title}!` }))).title, "Login!");
  const task = hf.task(unique("t"));
  await task.put(
    { title: "Fix it", projectId: project.id, provider: "codegen", runId: unique("r") },
    { report: { rawStatus: "ACTIVE", source: "test" } },
  );
  equal(
    (await all(project.tasks())).map((t) => [t.taskId, t.status]),
    [[task.id, "running"]],
  );
  equal((await all(task.transitions())).length, 1);
  equal((await project.context()).context?.project?.title, "Login!");
  equal((await hf.preferences.update({ voice: "Puck" })).voice, "Puck");
  equal((await hf.api("linear").get()).api, "linear");
  equal((await all(hf.linear.issues({ issueIds: ["none"] }))).length, 0);
  const past = hf.inspect("project", project.id);
  equal((await past.get()).version, 2);
  equal((await past.at({ version: 1 })).state?.["title"], "Login");
  equal((await all(past.events())).length, 2);
  await past.restore({ version: 1 });
  equal((await project.get()).title, "Login");
  ok(await project.delete(), "that it existed");
  await fails(project.get(), "NOT_FOUND");
});

test("a grant whose answer was lost is taken once", async (world) => {
  const name = unique("a");
  const direct = service(world).api(name);
  await direct.acquire({ operation: "read" });
  const hf = service(world, { url: broken(world, "after", "after") });
  const grant = await hf.api(name).acquire({ operation: "read" });
  ok(grant.allowed && grant.grantId, "the grant");
  const { version } = await direct.acquire({ operation: "read" });
  equal(version, grant.version + 1, "the version of the next");
});

test("a key acts for a user, and users see what is theirs", async (world) => {
  const [ada, bob] = [unique("ada"), unique("bob")];
  const hf = service(world);
  const id = unique("c");
  await hf.as(ada).conversation(id).create({ title: "Hers" });
  equal((await hf.as(ada).conversation(id).get()).owner, ada);
  await fails(hf.as(bob).conversation(id).get(), "NOT_FOUND");
});

test("a token may be a function, which is asked before each call", async (world) => {
  let asked = 0;
  const hf = service(world, { token: async () => (asked++, world.token), user: unique("u") });
  await hf.preferences.get();
  await hf.preferences.get();
  equal(asked, 2);
});
