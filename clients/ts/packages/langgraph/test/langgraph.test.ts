import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { holdfast } from "@holdfast/client";
import { type BaseStore, emptyCheckpoint, InMemoryStore, type Item, uuid6 } from "@langchain/langgraph-checkpoint";
import { type Server, start } from "../../../test/server.ts";
import { HoldfastSaver, HoldfastStore } from "../src/index.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const metadata = { source: "loop" as const, step: 0, parents: {} };
let server: Server;
before(async () => {
  server = await start();
});
after(async () => await server?.stop());

/** A client that counts its calls. Its process dies at call `dies`: before the server has it, or after the server did it. */
function client(user: string, dies?: { at: number; sent: boolean }) {
  const calls: string[] = [];
  const killed = new AbortController();
  const counted: typeof fetch = async (input, init) => {
    const now = calls.push(String(input)) === dies?.at;
    if (now && !dies?.sent) killed.abort();
    killed.signal.throwIfAborted();
    const answer = await fetch(input, init);
    if (now) killed.abort();
    killed.signal.throwIfAborted();
    return answer;
  };
  const hf = holdfast({ url: server.api, token: server.token, user, fetch: counted });
  return { calls, hf: dies ? hf.with({ signal: killed.signal }) : hf };
}

test("LangChain's validation passes", async (t) => {
  const dir = await mkdtemp(join(tmpdir(), "langgraph-"));
  try {
    const run = async (saver: string) => {
      const out = join(dir, `${saver}.json`);
      const vitest = fileURLToPath(new URL("../../../node_modules/vitest/vitest.mjs", import.meta.url));
      const child = spawn(
        process.execPath,
        [vitest, "run", "--globals", "--reporter=json", `--outputFile=${out}`, "test/validate.spec.ts"],
        {
          cwd: root,
          env: { ...process.env, HOLDFAST_API: server.api, HOLDFAST_TOKEN: server.token, SAVER: saver },
          stdio: ["ignore", "ignore", "pipe"],
        },
      );
      child.stderr.pipe(process.stderr);
      await new Promise((resolve) => child.once("exit", resolve));
      const { numPassedTests, numFailedTests, numPendingTests, testResults } = JSON.parse(await readFile(out, "utf8"));
      const failed = testResults.flatMap(
        (r: { message: string; assertionResults: { status: string; fullName: string; failureMessages: string[] }[] }) => [
          ...(r.message ? [r.message] : []),
          ...r.assertionResults.filter((a) => a.status === "failed").map((a) => `${a.fullName}: ${a.failureMessages[0]}`),
        ],
      );
      t.diagnostic(`${saver}: ${numPassedTests} passed, ${numPendingTests} skipped`);
      return { passed: numPassedTests, failed: numFailedTests, first: failed.slice(0, 3) };
    };
    const ours = await run("HoldfastSaver");
    const theirs = await run("MemorySaver");
    assert.deepEqual(ours.first, []);
    assert.equal(ours.failed, 0);
    assert.ok(ours.passed >= theirs.passed && theirs.passed > 700, `${ours.passed} of ours, ${theirs.passed} of MemorySaver`);
  } finally {
    await rm(dir, { recursive: true });
  }
});

const config = (thread_id: string, checkpoint_id?: string) => ({
  configurable: { thread_id, checkpoint_ns: "", ...(checkpoint_id && { checkpoint_id }) },
});
const checkpoint = (step: number, log: unknown, version: string | number = step + 1) => ({
  ...emptyCheckpoint(),
  id: uuid6(step),
  channel_values: { log },
  channel_versions: { log: version },
});

describe("HoldfastSaver", () => {
  test("the newest of many checkpoints takes two calls", async () => {
    const { hf, calls } = client("many");
    const saver = new HoldfastSaver(hf);
    for (let step = 0; step < 250; step++)
      await saver.put(config("t"), checkpoint(step, [step]), { ...metadata, step }, { log: step + 1 });
    calls.length = 0;
    const tuple = await saver.getTuple(config("t"));
    assert.deepEqual(tuple?.checkpoint.channel_values, { log: [249] });
    assert.equal(calls.length, 2);
    const steps = [];
    for await (const { metadata } of saver.list(config("t"))) steps.push(metadata?.step);
    assert.deepEqual(
      steps,
      Array.from({ length: 250 }, (_, i) => 249 - i),
    );
  });

  test("values larger than an entry come back, of channels and of writes", async () => {
    const saver = new HoldfastSaver(client("large").hf);
    const large = "ö🙂".repeat(300_000); // 1.8 MB
    const at = await saver.put(config("t"), checkpoint(0, large), metadata, { log: 1 });
    await saver.putWrites(
      at,
      [
        ["log", large],
        ["bytes", new Uint8Array([0, 255])],
      ],
      "task",
    );
    const tuple = await saver.getTuple(config("t"));
    assert.ok(tuple?.checkpoint.channel_values["log"] === large);
    assert.ok(tuple?.pendingWrites?.[0]?.[2] === large);
    assert.deepEqual(tuple?.pendingWrites?.[1]?.[2], new Uint8Array([0, 255]));
  });

  test("more writes than a page has, and more channels than a query, come back", async () => {
    const saver = new HoldfastSaver(client("wide").hf);
    const names = Array.from({ length: 450 }, (_, i) => `channel/${i}`);
    const wide = {
      ...checkpoint(0, 0),
      channel_values: Object.fromEntries(names.map((n) => [n, n])),
      channel_versions: Object.fromEntries(names.map((n) => [n, 1])),
    };
    const at = await saver.put(config("t"), wide, metadata, wide.channel_versions);
    await saver.putWrites(
      at,
      names.map((n) => [n, n] as [string, string]),
      "task",
    );
    const tuple = await saver.getTuple(config("t"));
    assert.deepEqual(tuple?.checkpoint.channel_values, wide.channel_values);
    assert.deepEqual(
      tuple?.pendingWrites?.map(([, channel]) => channel),
      names,
    );
  });

  test("two branches from one checkpoint have channels of their own", async () => {
    const saver = new HoldfastSaver(client("fork").hf);
    const first = saver.getNextVersion(undefined);
    const root = await saver.put(config("t"), checkpoint(0, ["root"], first), metadata, { log: first });
    const branches = [];
    for (const [i, name] of ["left", "right"].entries()) {
      const version = saver.getNextVersion(first);
      branches.push(await saver.put(root, checkpoint(i + 1, [name], version), metadata, { log: version }));
    }
    const logs = await Promise.all(branches.map(async (b) => (await saver.get(b))?.channel_values["log"]));
    assert.deepEqual(logs, [["left"], ["right"]]);
  });

  test("a process that is killed at any call leaves nothing half there", async () => {
    const run = async (hf: ReturnType<typeof client>["hf"]) => {
      const saver = new HoldfastSaver(hf);
      let at: object = config("t");
      for (let step = 0; step < 3; step++) {
        at = await saver.put(at, checkpoint(step, ["log", step]), { ...metadata, step }, { log: step + 1 });
        await saver.putWrites(
          at,
          [
            ["log", step],
            ["other", step],
          ],
          `task ${step}`,
        );
      }
    };
    const look = async (user: string) => {
      const tuples = [];
      for await (const t of new HoldfastSaver(client(user).hf).list(config("t")))
        tuples.push([t.metadata?.step, t.checkpoint.channel_values["log"], t.pendingWrites?.map(([, , value]) => value)]);
      return tuples;
    };
    const all = client("whole");
    await run(all.hf);
    assert.equal(all.calls.length, 6);
    for (let at = 1; at <= 6; at++)
      for (const sent of [false, true]) {
        const user = `killed ${at} ${sent}`;
        await assert.rejects(run(client(user, { at, sent }).hf));
        const done = sent ? at : at - 1;
        const wanted = Array.from({ length: Math.ceil(done / 2) }, (_, step) => [
          step,
          ["log", step],
          2 * step + 2 <= done ? [step, step] : [],
        ]);
        assert.deepEqual(await look(user), wanted.reverse(), user);
      }
  });
});

describe("HoldfastStore", () => {
  test("it answers as InMemoryStore does", async () => {
    const answers = async (store: BaseStore) => {
      await store.batch([
        { namespace: ["users", "ada"], key: "a", value: { kind: "pet", age: 3, name: "Tom" } },
        { namespace: ["users", "ada"], key: "b", value: { kind: "car", age: 9 } },
        { namespace: ["users", "bob"], key: "c", value: { kind: "pet", age: 8, deep: { x: [1, null] } } },
        { namespace: ["usersx"], key: "d", value: { kind: "pet" } },
        { namespace: ["gone"], key: "e", value: { kind: "pet" } },
      ]);
      await store.delete(["gone"], "e");
      await store.put(["users", "ada"], "b", { kind: "bus", age: 10 });
      const plain = (items: Item[]) => items.map(({ namespace, key, value }) => ({ namespace, key, value }));
      const got = await store.get(["users", "ada"], "b");
      return {
        got: got && [plain([got]), got.createdAt < got.updatedAt],
        none: await store.get(["users", "ada"], "nothing"),
        before: await store.batch([
          { namespace: ["users", "ada"], key: "z", value: { kind: "late" } },
          { namespace: ["users", "ada"], key: "z" },
        ]),
        all: plain(await store.search(["users"])),
        everything: plain(await store.search([])),
        pets: plain(await store.search(["users"], { filter: { kind: "pet" } })),
        old: plain(await store.search(["users"], { filter: { age: { $gte: 8 }, kind: { $ne: "bus" } } })),
        page: plain(await store.search(["users"], { limit: 1, offset: 1 })),
        namespaces: (await store.listNamespaces()).filter(([root]) => root !== "gone"),
        prefix: await store.listNamespaces({ prefix: ["users"] }),
        suffix: await store.listNamespaces({ suffix: ["bob"] }),
        star: await store.listNamespaces({ prefix: ["users", "*"] }),
        depth: await store.listNamespaces({ maxDepth: 1, prefix: ["users"] }),
      };
    };
    const wanted = await answers(new InMemoryStore());
    if (wanted.got) wanted.got[1] = true; // InMemoryStore may be quicker than the clock
    assert.deepEqual(await answers(new HoldfastStore(client("s1").hf)), wanted);
    assert.deepEqual(await answers(new HoldfastStore(client("s2").hf, { fields: ["kind"] })), wanted);
  });

  test("a filter on a field reads what it finds, and not the rest", async () => {
    const { hf, calls } = client("fields");
    const store = new HoldfastStore(hf, { fields: ["kind"] });
    for (let i = 0; i < 3; i++)
      await store.batch(
        Array.from({ length: 300 }, (_, j) => ({ namespace: ["n"], key: `${i * 300 + j}`, value: { kind: "other" } })),
      );
    await store.put(["n"], "x", { kind: "wanted" });
    calls.length = 0;
    assert.deepEqual(
      (await store.search(["n"], { filter: { kind: "wanted" } })).map((i) => i.key),
      ["x"],
    );
    assert.equal(calls.length, 3); // the namespaces, its items, and when they were made
    assert.deepEqual(
      (await new HoldfastStore(hf).search(["n"], { filter: { kind: "wanted" } })).map((i) => i.key),
      ["x"],
    );
  });

  test("a process that is killed in a batch leaves all of it or nothing", async () => {
    for (const sent of [false, true]) {
      const user = `store ${sent}`;
      const batch = ["a", "b", "c"].map((name) => ({ namespace: [name], key: "k", value: { name } }));
      await assert.rejects(new HoldfastStore(client(user, { at: 1, sent }).hf).batch(batch));
      assert.equal((await new HoldfastStore(client(user).hf).search([])).length, sent ? 3 : 0);
    }
  });
});

test("the README's first program says what the README says", async () => {
  const [, program = "", output = ""] =
    /```ts\n(.*?)```\n.*?```text\n(.*?)```/s.exec(await readFile(`${root}README.md`, "utf8")) ?? [];
  const ran = spawnSync(process.execPath, ["--input-type=module-typescript", "--no-warnings", "-e", program], {
    cwd: root,
    env: { ...process.env, HOLDFAST_API: server.api, HOLDFAST_TOKEN: server.token },
    encoding: "utf8",
  });
  assert.equal(ran.stderr, "");
  assert.equal(ran.stdout, output);
});
