// What a layer promises, whichever it is: the real server's and the one in memory pass the same tests.
import assert from "node:assert/strict";
import { Effect, Fiber, Option, Schema, Stream } from "effect";
import { conversation, defineObject, type HoldfastError, type Service } from "../src/index.ts";

/** Each test is given a user of its own. */
export const contract = new Map<string, (hf: Service) => Effect.Effect<void, HoldfastError>>();

/** unique is an id that no other test has: those of conversations are the whole tenant's. */
export const unique = (prefix: string): string => prefix + crypto.randomUUID();

const promise = (
  name: string,
  test: (hf: Service, id: string) => Generator<Effect.Effect<unknown, HoldfastError>, void, never>,
) => contract.set(name, (hf) => Effect.gen(() => test(hf, unique("c"))) as Effect.Effect<void, HoldfastError>);

/** refused expects a failure, and is its reason. */
const refused = <A>(effect: Effect.Effect<A, HoldfastError>) =>
  effect.pipe(
    Effect.flip,
    Effect.map((e) => e.reason),
    Effect.catch((value) => Effect.die(new Error(`it succeeded: ${JSON.stringify(value)}`))),
  );

const collect = <A>(stream: Stream.Stream<A, HoldfastError>) => Stream.runCollect(stream);
const same = (got: unknown, want: unknown) => assert.deepEqual(got, want);

promise("a conversation is created once, read, changed and deleted", function* (hf, id) {
  const talk = hf.conversation(id);
  same((yield* refused(talk.get()))._tag, "NOT_FOUND");
  const made = yield* talk.create({ title: "Auth", labels: { team: "core" }, metadata: { n: 1, list: [true, null, "x"] } });
  same([made.conversationId, made.version, made.title, made.labels], [id, 1, "Auth", { team: "core" }]);
  assert.ok(Schema.is(conversation.Conversation)(made));
  same((yield* refused(talk.create({ title: "Again" })))._tag, "ALREADY_EXISTS");
  const changed = yield* talk.update({ title: "Login", labels: { team: "", area: "web" } });
  same(
    [changed.version, changed.title, changed.labels, changed.metadata],
    [2, "Login", { area: "web" }, { n: 1, list: [true, null, "x"] }],
  );
  same((yield* talk.update((c) => ({ title: `${c.title}!` }))).title, "Login!");
  const mismatch = yield* refused(talk.update({ title: "no" }, { ifVersion: 1 }));
  same([mismatch._tag, mismatch.mismatch?.currentVersion], ["VERSION_MISMATCH", 3]);
  same(yield* talk.delete(), true);
  same(yield* talk.delete(), false);
  same((yield* refused(talk.get()))._tag, "NOT_FOUND");
});

promise("messages are appended in order, all of a batch or none", function* (hf, id) {
  const talk = hf.conversation(id);
  same((yield* refused(talk.append({ role: "user", text: "no" })))._tag, "NOT_FOUND");
  const first = yield* talk.append({ role: "user", text: "one" }, { createIfMissing: true, conversation: { title: "T" } });
  same([first.created, first.version, first.messages.map((m) => m.seq)], [true, 1, [1]]);
  yield* talk.append([
    { role: "assistant", text: "two", metadata: { model: "m" } },
    { role: "user", text: "three" },
  ]);
  const { messages, version, messageCount, lastSeq, title } = yield* talk.get({ messages: 2 });
  same(
    [messages.map((m) => [m.seq, m.role, m.status, m.text]), version, messageCount, lastSeq, title],
    [
      [
        [2, "assistant", "complete", "two"],
        [3, "user", "complete", "three"],
      ],
      2,
      3,
      3,
      "T",
    ],
  );
  same(
    (yield* collect(talk.messages({ pageSize: 2 }))).map((m) => m.text),
    ["one", "two", "three"],
  );
  same(
    (yield* collect(talk.messages({ newestFirst: true }).pipe(Stream.take(2)))).map((m) => m.text),
    ["three", "two"],
  );
});

promise("a change that is sent again happens once", function* (hf, id) {
  const talk = hf.conversation(id);
  const change = { requestId: "r-1" };
  const append = talk.append({ role: "user", text: "one" }, { createIfMissing: true }, change);
  const first = yield* append;
  same(yield* append, first);
  same(
    (yield* refused(talk.append({ role: "user", text: "other" }, { createIfMissing: true }, change)))._tag,
    "REQUEST_ID_REUSED",
  );
  const named = { role: "user", text: "two", clientMessageId: "m-2" } as const;
  yield* talk.append(named);
  const again = yield* talk.append(named);
  same([again.duplicateSeqs, (yield* talk.get()).messageCount], [[2], 2]);
});

promise("lists are what the filter wants, the last changed first", function* (hf, id) {
  yield* hf.conversation(`a${id}`).create({ labels: { team: "core" } });
  yield* hf.conversation(`b${id}`).create({ labels: { team: "web" } });
  yield* hf.conversation(`c${id}`).create({ labels: { team: "core", area: "x" } });
  const ids = (stream: ReturnType<Service["conversations"]>) =>
    collect(stream).pipe(Effect.map((all) => all.map((c) => c.conversationId[0]).sort()));
  same(yield* ids(hf.conversations()), ["a", "b", "c"]);
  same(yield* ids(hf.conversations({ labels: { team: "core" } })), ["a", "c"]);
});

promise("what is invalid names its field", function* (hf, id) {
  const reason = yield* refused(
    hf.conversation(id).append([], { createIfMissing: true, conversation: { title: "x".repeat(5000) } }),
  );
  same(reason._tag, "FIELD_INVALID");
  assert.ok((reason.violations?.fields.length ?? 0) > 0);
});

promise("users do not see each other's, and cannot take each other's ids", function* (hf, id) {
  yield* hf.conversation(id).create();
  const other = hf.as(unique("u"));
  const talk = other.conversation(id);
  same((yield* refused(talk.get()))._tag, "NOT_FOUND");
  same((yield* refused(talk.append({ role: "user", text: "Hello" })))._tag, "NOT_FOUND");
  same((yield* refused(talk.create()))._tag, "ALREADY_EXISTS");
  same((yield* refused(talk.append({ role: "user", text: "Hello" }, { createIfMissing: true })))._tag, "ALREADY_EXISTS");
  same(yield* talk.delete(), false);
  same(yield* collect(other.conversations()), []);
  const ref = { type: "cart", name: "mine" };
  yield* hf.rpc.state.apply({ ref, operations: [{ setState: { n: 1 } }] });
  same((yield* other.rpc.state.read({ reads: [{ ref }] })).objects[0]?.absent, true);
});

promise("a watch begins with what there is, shows each change, and says what is absent", function* (hf, id) {
  const talk = hf.conversation(id);
  const seen: unknown[] = [];
  const fiber = yield* talk.watch({ messages: 10 }).pipe(
    Stream.tap((view) => Effect.sync(() => seen.push([view.absent, view.conversation?.title, view.messages.map((m) => m.text)]))),
    Stream.takeUntil((view) => view.absent && seen.length > 1),
    Stream.runDrain,
    Effect.forkChild,
  );
  const until = (n: number) =>
    Effect.yieldNow.pipe(Effect.andThen(Effect.sleep("5 millis")), Effect.repeat({ until: () => seen.length >= n }));
  yield* until(1);
  yield* talk.append({ role: "user", text: "one" }, { createIfMissing: true, conversation: { title: "T" } });
  yield* until(2);
  yield* talk.update({ title: "U" });
  yield* until(3);
  yield* talk.delete();
  yield* Fiber.join(fiber);
  same(seen, [
    [true, undefined, []],
    [false, "T", ["one"]],
    [false, "U", ["one"]],
    [true, undefined, []],
  ]);
});

promise("an object of one's own: fields, numbers, entries, expectations", function* (hf) {
  const { state } = hf.rpc;
  const ref = { type: "cart", name: "c-1" };
  const made = yield* state.apply({
    ref,
    operations: [
      { setFields: { fields: { currency: "EUR", deep: { a: 1 } } } },
      { increment: { path: "count", by: 2 } },
      { append: { collection: "items", json: { sku: "b" } } },
      { put: { entry: { collection: "notes", key: "k", text: "hm" } } },
    ],
  });
  same([made.created, made.version, made.results.map((r) => [r.key, r.number])[2]?.[0]], [true, 1, "000000000001"]);
  same(made.results[1]?.number, 2);
  const read = (more: object = {}) =>
    state.read({ reads: [{ ref, queries: [{ collection: "items" }, { collection: "notes", keys: ["k", "none"] }], ...more }] });
  const [cart] = (yield* read()).objects;
  same([cart?.state, cart?.version], [{ currency: "EUR", deep: { a: 1 }, count: 2 }, 1]);
  same(
    cart?.pages.map((p) => p.entries.map((e) => [e.key, e.json, e.text])),
    [[["000000000001", { sku: "b" }, undefined]], [["k", undefined, "hm"]]],
  );
  same((yield* read({ ifVersionNot: 1 })).objects[0]?.notModified, true);
  same((yield* state.read({ reads: [{ ref: { type: "cart", name: "none" } }] })).objects[0]?.absent, true);
  const expected = yield* refused(
    state.apply({ ref, operations: [{ increment: { path: "count" } }, { expect: { path: "currency", json: "USD" } }] }),
  );
  same(expected._tag, "EXPECTATION_FAILED");
  same((yield* read()).objects[0]?.state?.["count"], 2); // all or none
  const stale = yield* refused(state.apply({ ref, ifVersion: 7, operations: [{ setState: {} }] }));
  same([stale._tag, stale.mismatch?.currentVersion], ["VERSION_MISMATCH", 1]);
  const gone = yield* state.apply({ ref, operations: [{ delete: { collection: "items", all: true, returnDeleted: true } }] });
  same(
    gone.results[0]?.deleted.map((e) => e.json),
    [{ sku: "b" }],
  );
  same(
    (yield* state.apply({ ref, operations: [{ append: { collection: "items", text: "x" } }] })).results[0]?.key,
    "000000000002",
  );
  same(
    (yield* collect(Stream.fromEffect(state.listStates({ filter: { type: "cart" } }))))[0]?.objects.map((o) => o.ref?.name),
    ["c-1"],
  );
  same((yield* state.deleteState({ ref })).existed, true);
  same((yield* state.deleteState({ ref })).existed, false);
});

promise("an object is watched with its entries", function* (hf) {
  const ref = { type: "cart", name: "c-1" };
  const apply = (...operations: NonNullable<Parameters<typeof hf.rpc.state.apply>[0]["operations"]>) =>
    hf.rpc.state.apply({ ref, operations });
  yield* apply({ setState: { n: 1 } }, { append: { collection: "items", text: "a" } });
  const seen: unknown[] = [];
  const watch = hf.watch({ state: { ref, collections: [{ collection: "items", limit: 10 }] } });
  const fiber = yield* watch.pipe(
    Stream.tap((view) =>
      Effect.sync(() =>
        seen.push([view.things.get("object")?.object?.state, [...view.things.values()].flatMap((t) => t.entry?.text ?? [])]),
      ),
    ),
    Stream.take(2),
    Stream.runDrain,
    Effect.forkChild,
  );
  yield* Effect.sleep("5 millis").pipe(Effect.repeat({ until: () => seen.length > 0 }));
  yield* apply({ increment: { path: "n" } }, { append: { collection: "items", text: "b" } });
  yield* Fiber.join(fiber);
  same(seen, [
    [{ n: 1 }, ["a"]],
    [{ n: 2 }, ["a", "b"]],
  ]);
});

const Cart = defineObject("cart", {
  state: Schema.toStandardSchemaV1(Schema.Struct({ count: Schema.mutableKey(Schema.optionalKey(Schema.Number)) })),
  collections: { items: Schema.toStandardSchemaV1(Schema.Struct({ sku: Schema.String })) },
});

promise("an object of a type is changed by a function, however many do so at once", function* (hf) {
  const cart = hf.state(Cart, "c-1");
  const add = (sku: string) =>
    cart.update((draft, { items }) => {
      draft.count = (draft.count ?? 0) + 1;
      items.append({ sku });
    });
  yield* add("a");
  yield* Effect.all(["b", "c", "d"].map(add), { concurrency: "unbounded" });
  const { state, entries, version } = yield* cart.get({ entries: { items: 10 } });
  same([state.count, version, entries.items.map((e) => e.value.sku).sort()], [4, 4, ["a", "b", "c", "d"]]);
  const view = yield* cart.watch({ items: 2 }).pipe(Stream.runHead);
  same(Option.getOrUndefined(view)?.entries.items.length, 2);
});
