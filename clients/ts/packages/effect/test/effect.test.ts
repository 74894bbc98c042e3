import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { after, before, beforeEach, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { ConfigProvider, Effect, Exit, Fiber, Layer, Queue, Redacted, Scope, Stream, Tracer } from "effect";
import { build } from "esbuild";
import { type Server, start } from "../../../test/server.ts";
import { Holdfast, type HoldfastError, NotAllowed, type Options, type Service } from "../src/index.ts";
import { layerMemory } from "../src/memory.ts";
import { contract, unique } from "./contract.ts";

for (const [name, promise] of contract)
  test(`in memory: ${name}`, { timeout: 10_000 }, () =>
    Effect.gen(function* () {
      yield* promise((yield* Holdfast).as("ada"));
    }).pipe(Effect.provide(layerMemory), Effect.runPromise),
  );

test("what the layer in memory does not have says so", () =>
  Effect.gen(function* () {
    const error = yield* Effect.flip((yield* Holdfast).project("p1").get());
    assert.equal(error.reason._tag, "METHOD_UNKNOWN");
  }).pipe(Effect.provide(layerMemory), Effect.runPromise));

describe("effect", () => {
  let id: string;
  beforeEach(() => {
    id = unique("c");
  });
  let server: Server;
  before(async () => {
    server = await start();
  });
  after(async () => await server?.stop());

  /** run runs with a user of its own. */
  const run = <A>(
    effect: (hf: Service) => Effect.Effect<A, unknown, Scope.Scope>,
    options: Partial<Options> = {},
    layer: Layer.Layer<never> = Layer.empty,
  ): Promise<A> =>
    Effect.gen(function* () {
      return yield* effect(yield* Holdfast);
    }).pipe(
      Effect.scoped,
      Effect.provide(Holdfast.layer({ url: server.api, token: Redacted.make(server.token), user: unique("u"), ...options })),
      Effect.provide(layer),
      Effect.runPromise,
    );

  for (const [name, promise] of contract) test(`the server: ${name}`, { timeout: 30_000 }, () => run(promise));

  test("a failure is taken apart by its reason", async () => {
    const told = await run((hf) =>
      hf
        .conversation("none")
        .get()
        .pipe(
          Effect.as("found"),
          Effect.catchReason("HoldfastError", "NOT_FOUND", (reason) => Effect.succeed(`${reason.call}: ${reason.retry}`)),
        ),
    );
    assert.equal(told, "conversation.getConversation: never");
    const unwrapped = await run((hf) =>
      hf
        .conversation("none")
        .get()
        .pipe(
          Effect.as("found"),
          Effect.unwrapReason("HoldfastError"),
          Effect.catchTag("NOT_FOUND", () => Effect.succeed("not found")),
        ),
    );
    assert.equal(unwrapped, "not found");
  });

  test("an answer that the schemas do not take is a failure with a reason, and says where it is wrong", async () => {
    const lying: typeof fetch = async (input, init) => {
      const answer = await (await fetch(input, init)).json();
      answer.conversation.labels = { team: 7 };
      return Response.json(answer);
    };
    const error = await run((hf) => Effect.flip(hf.conversation(id).create()), { fetch: lying });
    assert.equal(error.reason._tag, "ANSWER_UNREADABLE");
    assert.match(error.message, /labels/);
  });

  test("a word that a newer server has added is not said, and no failure", async () => {
    const newer: typeof fetch = async (input, init) => {
      const { status, ...answer } = await fetch(input, init).then(async (r) => ({ status: r.status, text: await r.text() }));
      const headers = { "Content-Type": "application/json" };
      return new Response(answer.text.replaceAll("ROLE_USER", "ROLE_ORACLE"), { status, headers });
    };
    const { messages } = await run(
      (hf) =>
        Effect.gen(function* () {
          yield* hf.conversation(id).create({}, { messages: [{ role: "user", text: "Hello" }] });
          return yield* hf.conversation(id).get({ messages: 1 });
        }),
      { fetch: newer },
    );
    assert.equal(messages[0]?.role, "unspecified");
  });

  test("an interruption ends the call, the list and the watch that are waited for", { timeout: 20_000 }, async () => {
    let open = 0;
    const calls = Effect.runSync(Queue.unbounded<number>()); // how many are open, after each change
    const hanging: typeof fetch = (_, init) => {
      Queue.offerUnsafe(calls, ++open);
      return new Promise((_, reject) =>
        init?.signal?.addEventListener("abort", () => {
          Queue.offerUnsafe(calls, --open);
          reject(init.signal?.reason);
        }),
      );
    };
    await run(
      (hf) =>
        Effect.gen(function* () {
          for (const work of [
            hf.preferences.get(),
            Stream.runDrain(hf.conversations()),
            Stream.runDrain(hf.conversation(id).watch()),
          ]) {
            const fiber = yield* Effect.forkChild(work);
            yield* Queue.take(calls).pipe(Effect.repeat({ until: (open) => open === 1 }));
            yield* Fiber.interrupt(fiber);
            yield* Queue.take(calls).pipe(Effect.repeat({ until: (open) => open === 0 }));
          }
        }),
      { fetch: hanging },
    );
  });

  test("a call is a span, which the server's continue", async () => {
    const spans: [string, string][] = [];
    const tracer = Tracer.make({
      span(options) {
        const span = new Tracer.NativeSpan(options);
        spans.push([span.name, `00-${span.traceId}-${span.spanId}-01`]);
        return span;
      },
    });
    const sent: (string | null)[] = [];
    await run(
      (hf) => hf.conversation(id).append({ role: "user", text: "Hello" }, { createIfMissing: true }),
      {
        fetch: (input, init) => {
          sent.push(new Headers(init?.headers).get("traceparent"));
          return fetch(input, init);
        },
      },
      Layer.succeed(Tracer.Tracer, tracer),
    );
    assert.deepEqual(spans, [["holdfast.conversation.append", sent[0]]]);
  });

  test("the floor is one holder's, is kept, and is given back with the scope", { timeout: 30_000 }, async () => {
    await run((hf) =>
      Effect.gen(function* () {
        yield* hf.conversation(id).create();
        const first = yield* Scope.make();
        const floor = yield* hf.floor(id).pipe(Scope.provide(first));
        assert.ok(floor.fencingToken > 0);
        const held = yield* Effect.flip(Effect.scoped(hf.floor(id)));
        assert.equal(held.reason._tag, "LEASE_HELD");
        yield* Scope.close(first, Exit.void);
        const second = yield* hf.floor(id);
        assert.ok(second.fencingToken > floor.fencingToken);
      }),
    );
  });

  test("who loses a lease is told, and nobody else", { timeout: 30_000 }, async () => {
    const ref = { type: "job", name: "nightly" };
    const applied = Effect.runSync(Queue.unbounded<void>());
    const telling: typeof fetch = async (input, init) => {
      const answer = await fetch(input, init);
      if (String(input).endsWith("/Apply")) Queue.offerUnsafe(applied, undefined);
      return answer;
    };
    const lost = await run(
      (hf) =>
        Effect.gen(function* () {
          const short = { name: "runner", holder: "a", duration: "1s" } as const;
          const lease = yield* hf.lease(ref, short);
          const other = yield* Effect.flip(Effect.scoped(hf.lease(ref, { ...short, holder: "b" })));
          assert.equal(other.reason._tag, "LEASE_HELD");
          // It is kept beyond its time: two calls took it and were refused it, and four renew it, each after a third of the time.
          yield* Queue.take(applied).pipe(Effect.repeat({ times: 5 }));
          assert.equal((yield* Effect.flip(Effect.scoped(hf.lease(ref, short)))).reason._tag, "LEASE_HELD");
          // Someone takes it away.
          yield* hf.rpc.state.deleteState({ ref });
          yield* hf.lease(ref, { ...short, holder: "c" });
          return yield* Effect.flip(lease.lost);
        }),
      { fetch: telling },
    );
    assert.equal((lost as HoldfastError).reason._tag, "FENCED");
  });

  test("a grant is waited for, and what runs is given back with the scope", { timeout: 30_000 }, async () => {
    const api = unique("u");
    await run(
      (hf) =>
        Effect.gen(function* () {
          yield* hf
            .api(api)
            .update({ config: { policies: [{ name: "one", algorithm: "concurrency", limit: 1, lease: "30s" }] } });
          const first = yield* Scope.make();
          yield* hf.acquire(api, { operation: "sync" }).pipe(Scope.provide(first));
          const refused = yield* Effect.flip(Effect.scoped(hf.acquire(api, { operation: "sync" }, "1 second")));
          assert.ok(refused instanceof NotAllowed);
          const waits = yield* Effect.forkChild(Effect.scoped(hf.acquire(api, { operation: "sync" })));
          yield* Scope.close(first, Exit.void);
          assert.ok((yield* Fiber.join(waits)).allowed);
        }),
      { user: undefined },
    );
  });

  test("a tool call is one worker's, who says what came of it", { timeout: 30_000 }, async () => {
    await run((hf) =>
      Effect.gen(function* () {
        const talk = hf.conversation(id);
        yield* talk.create();
        const { fencingToken } = yield* hf.floor(id, { options: { leaveToolCalls: true } });
        const object = { toolCall: { functionCalls: [{ id: "f1", name: "run", args: { n: 1 } }] } };
        const { toolCalls } = yield* talk.live.ingest({ fencingToken, frames: [{ clientIndex: 1, object }] });
        const seq = toolCalls[0]?.seq ?? 0;
        const claim = yield* hf.claim(id, seq, { worker: "w1" });
        assert.equal(claim.toolCall.name, "run");
        assert.equal((yield* Effect.flip(Effect.scoped(hf.claim(id, seq, { worker: "w2" })))).reason._tag, "LEASE_HELD");
        assert.equal((yield* claim.complete({ response: { ok: true } })).toolCall?.status, "completed");
      }),
    );
  });

  test("the configuration says where, and the token is not shown", async () => {
    const env = { HOLDFAST_API: server.api, HOLDFAST_TOKEN: server.token };
    const program = Effect.gen(function* () {
      const hf = yield* Holdfast;
      return yield* hf.as(unique("u")).preferences.get();
    });
    const provide = (env: Record<string, string>) =>
      program.pipe(
        Effect.provide(Holdfast.layerConfig()),
        Effect.provide(ConfigProvider.layer(ConfigProvider.fromEnvRecord(env))),
        Effect.runPromiseExit,
      );
    assert.ok(Exit.isSuccess(await provide(env)));
    assert.ok(Exit.isFailure(await provide({ HOLDFAST_API: server.api })));
  });

  test("the README's first program says what the README says", async () => {
    const root = fileURLToPath(new URL("..", import.meta.url));
    const [, program = "", , output = ""] =
      /```ts\n(.*?)```\n(.*?)```text\n(.*?)```/s.exec(await readFile(`${root}README.md`, "utf8")) ?? [];
    const ran = spawnSync(process.execPath, ["--input-type=module-typescript", "--no-warnings", "-e", program], {
      cwd: root,
      env: { ...process.env, HOLDFAST_API: server.api, HOLDFAST_TOKEN: server.token },
      encoding: "utf8",
    });
    assert.equal(ran.stderr, "");
    assert.equal(ran.stdout, output);
  });
});

test("the package is at most 11 KB without effect and the client, minified and gzipped", async () => {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL("../dist/index.js", import.meta.url))],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    external: ["effect", "@holdfast/client"],
    write: false,
  });
  const size = gzipSync(outputFiles[0]?.contents ?? "", { level: 9 }).length;
  console.log(`@holdfast/effect: ${size} bytes`);
  assert.ok(size <= 11 * 1024, `${size} bytes`);
});
