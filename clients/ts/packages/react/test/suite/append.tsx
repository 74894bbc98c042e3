import { useLayoutEffect } from "react";
import { type Append, type Conversation, useAppend, useConversation } from "../../src/index.ts";
import { broken, equal, fails, ok, show, test, unique, until, user, type World } from "./harness.tsx";

/** chat shows a conversation, and keeps each state that was on the page. */
function chat(world: World, options: Parameters<typeof user>[1] = {}) {
  const hf = user(world, options);
  const id = unique("c");
  const seen: string[][] = [];
  const now: { view?: Conversation | undefined; append: Append } = { append: () => Promise.reject() };
  function Chat() {
    const talk = useConversation(id, { messages: 50 });
    now.append = useAppend(id);
    now.view = talk.value;
    useLayoutEffect(() => {
      if (talk.value)
        seen.push([...talk.value.messages.map((m) => m.text), ...talk.value.outgoing.map((o) => o.message.text ?? "")]);
    });
    return null;
  }
  const page = show(hf, <Chat />);
  return { hf, id, seen, now, page, texts: () => seen.at(-1) ?? [] };
}

/** once holds where each text is on the page from some moment on, and never twice. */
function once(seen: string[][], texts: string[]): void {
  for (const text of texts) {
    const counts = seen.map((s) => s.filter((t) => t === text).length);
    ok(
      counts.every((n, i) => n <= 1 && n >= (counts[i - 1] ?? 0)),
      `that ${text} stays on the page, once (${counts}),`,
    );
  }
}

test("a message is on the page at once, and from then on exactly once", async (world) => {
  let hold = Promise.resolve();
  const { id, hf, seen, now, page, texts } = chat(world, {
    fetch: async (input, init) => {
      if (String(input).endsWith("/Append")) await hold;
      return await fetch(input, init);
    },
  });
  await until(() => now.view !== undefined);
  let free: () => void = () => {};
  hold = new Promise((done) => {
    free = done;
  });
  const answer = now.append({ role: "user", text: "one" }, { createIfMissing: true });
  await until(() => texts().includes("one"));
  equal(
    now.view?.outgoing.map((o) => o.status),
    ["sending"],
  );
  free();
  const { version } = await answer;
  await until(() => now.view?.version === version && now.view.outgoing.length === 0);
  // Several at once keep their order, among what others say.
  const all = Array.from({ length: 20 }, (_, i) => `m${i}`);
  const sent = all.map((text) => now.append({ role: "user", text }));
  await hf.conversation(id).append({ role: "assistant", text: "hm" });
  await Promise.all(sent);
  await until(() => now.view?.messages.length === 22);
  equal(
    texts().filter((t) => t.startsWith("m")),
    all,
  );
  equal(now.view?.outgoing, []);
  once(seen, ["one", ...all]);
  page.end();
});

test("a message whose answer is lost is on the page once", async (world) => {
  for (const action of ["after", "before"]) {
    const direct = user(world);
    const url = broken(world, action, action);
    const { now, seen, page } = chat(world, {
      fetch: (input, init) =>
        String(input).endsWith("/Append") ? fetch(String(input).replace(world.api, url), init) : fetch(input, init),
    });
    await until(() => now.view !== undefined);
    await now.append({ role: "user", text: "one" }, { createIfMissing: true });
    await until(() => now.view?.messages.length === 1 && now.view.outgoing.length === 0);
    once(seen, ["one"]);
    page.end();
    await direct[Symbol.asyncDispose]();
  }
});

test("a failure is shown with its reason, is sent again on demand, and can be taken away", async (world) => {
  const { hf, id, now, seen, page, texts } = chat(world);
  await until(() => now.view !== undefined);
  await fails(now.append({ role: "user", text: "one" }), "NOT_FOUND");
  const failed = () => now.view?.outgoing.filter((o) => o.status === "failed") ?? [];
  await until(() => failed().length === 1);
  equal(failed()[0]?.error?.reason, "NOT_FOUND");
  void now.append({ role: "user", text: "two" }); // nobody waits for it, and that is no unhandled rejection
  await until(() => failed().length === 2);
  await hf.conversation(id).create();
  failed()[1]?.discard();
  failed()[0]?.retry();
  await until(() => now.view?.messages.length === 1 && now.view.outgoing.length === 0);
  equal(texts(), ["one"]);
  once(seen, ["one"]);
  page.end();
});

test("what was sent when the page showed something else is not shown as outgoing later", async (world) => {
  const { hf, id, now, page, seen } = chat(world);
  await until(() => now.view !== undefined);
  const { append } = now;
  page.render(null);
  const answers = [append({ role: "user", text: "one" }, { createIfMissing: true }), append({ role: "user", text: "two" })];
  await Promise.all(answers);
  seen.length = 0;
  function Again() {
    const talk = useConversation(id, { messages: 1 });
    useLayoutEffect(() => {
      if (talk.value)
        seen.push([...talk.value.messages.map((m) => m.text), ...talk.value.outgoing.map((o) => o.message.text ?? "")]);
    });
    return null;
  }
  page.render(<Again />);
  await until(() => seen.length > 0);
  equal(seen[0], ["two"]);
  equal((await hf.conversation(id).get({ messages: 10 })).messages.length, 2);
  page.end();
});
