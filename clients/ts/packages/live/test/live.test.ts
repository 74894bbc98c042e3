// Sessions against a real server and a fake provider: sockets die, servers die, devices change.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, test } from "node:test";
import { type Holdfast, holdfast } from "@holdfast/client";
import { type Server, start } from "../../../test/server.ts";
import { on, script, settled, told } from "./harness.ts";

/** gaps are the milliseconds of each exchange of a socket. */
const gaps: number[] = [];
let binary = "";

describe("live", { concurrency: false }, () => {
  let server: Server;
  let hf: Holdfast;
  /** The transcript when nothing goes wrong, and how many frames it takes. */
  let undisturbed: string[];
  let frames: number;

  before(async () => {
    server = await start();
    binary = server.binary;
    hf = holdfast({ url: server.api, token: server.token, user: "ada" });
  });
  after(async () => {
    gaps.sort((a, b) => a - b);
    console.log(`${gaps.length} sockets exchanged; median gap ${gaps[gaps.length >> 1]} ms, longest ${gaps.at(-1)} ms`);
    await server?.stop();
  });

  test("ten turns make one connect, the frames, one call for each tool result, one disconnect", { timeout: 60_000 }, async () => {
    const calls: { [name: string]: number } = {};
    const counted = holdfast({
      url: server.api,
      token: server.token,
      user: "ada",
      fetch: (input, init) => {
        const name = String(input).split("/").at(-1) ?? "";
        calls[name] = (calls[name] ?? 0) + 1;
        return fetch(input, init);
      },
    });
    await on(hf, { pace: 1 }, async (s) => {
      const session = s.device(counted);
      await session.start();
      await s.provider.over(10);
      await settled(session);
      frames = s.provider.frames;
      await session.stop();
      undisturbed = await told(hf, s.id);
    });
    assert.equal(undisturbed.length, 20 + 3);
    assert.equal(undisturbed.at(1), `assistant: ${script[0]?.say}`);
    const { IngestLive = 0, ...rest } = calls;
    assert.deepEqual(rest, { ConnectLive: 1, CompleteToolCall: 3, DisconnectLive: 1 });
    assert.ok(IngestLive < frames / 3, `${IngestLive} batches of ${frames} frames`);
  });

  /** disturbed is the transcript of a conversation whose sockets are closed as `close` says. */
  const disturbed = (close: (frame: number, what: object) => number | undefined, refuse = 0) =>
    on(hf, { pace: 1, after: close }, async (s) => {
      if (refuse) s.provider.refuseHandles(refuse);
      const session = s.device(hf);
      await session.start();
      await s.provider.over(10);
      await settled(session);
      gaps.push(...session.get().gaps);
      await session.stop();
      assert.ok(
        [...s.ran.values()].every((times) => times === 1),
        `${[...s.ran]}`,
      );
      return await told(hf, s.id);
    });

  const strides = 12;
  for (let n = 0; n < strides; n++)
    test(
      `a socket that is cut after frames ${n}, ${n + strides}, … loses no word, doubles none, and runs no tool twice`,
      {
        timeout: 60_000,
      },
      async () => assert.deepEqual(await disturbed((i) => (i % strides === n ? 1006 : undefined)), undisturbed),
    );

  test("a socket that is cut after every frame does neither", { timeout: 60_000 }, async () =>
    assert.deepEqual(await disturbed((_, frame) => ("setupComplete" in frame ? undefined : 1006)), undisturbed),
  );

  test("a handle that is refused costs a connection, and no word", { timeout: 60_000 }, async () =>
    assert.deepEqual(await disturbed((i) => (i === 40 ? 1011 : undefined), 1), undisturbed),
  );
});

/** Restarted is a server that can be killed and started again, with its database. */
interface Restarted {
  api: string;
  token: string;
  kill(): Promise<void>;
  stop(): Promise<void>;
}

async function restarted(): Promise<Restarted> {
  const data = mkdtempSync(join(tmpdir(), "holdfast-live-"));
  let api = "http://127.0.0.1:0";
  const begin = async () => {
    const child = spawn(binary, ["dev", "--json", "--addr", api.slice("http://".length), "--data", data], {
      stdio: ["ignore", "pipe", "ignore"],
    });
    const [line] = (await once(createInterface(child.stdout), "line")) as [string];
    return { child, ...(JSON.parse(line) as { api: string; token: string }) };
  };
  let now = await begin();
  api = now.api;
  const end = async (signal: NodeJS.Signals) => {
    const over = once(now.child, "exit");
    now.child.kill(signal);
    await over;
  };
  return {
    api,
    token: now.token,
    async kill() {
      await end("SIGTERM");
      now = await begin();
    },
    async stop() {
      await end("SIGTERM");
      rmSync(data, { recursive: true, force: true });
    },
  };
}

describe("live, while the server or the device goes", { concurrency: false }, () => {
  let server: Restarted;
  let hf: Holdfast;
  let undisturbed: string[];
  before(async () => {
    server = await restarted();
    hf = holdfast({ url: server.api, token: server.token, user: "ada" });
    undisturbed = await on(hf, { pace: 1 }, async (s) => {
      const session = s.device(hf);
      await session.start();
      await s.provider.over(10);
      await settled(session);
      return await told(hf, s.id);
    });
  });
  after(async () => await server?.stop());

  test("another device takes over at many points: each word is there once", { timeout: 60_000 }, async () => {
    let at = 0;
    let change: () => Promise<undefined>;
    // Nobody speaks while people change the device.
    await on(hf, { pace: 1, after: (i) => (i === at ? change() : undefined) }, async (s) => {
      const devices = [s.device(hf, { device: { name: "phone" } }), s.device(hf, { device: { name: "laptop" } })] as const;
      await devices[0].start();
      for (let n = 1; s.provider.turns < 9; n++) {
        const [from, to] = n % 2 ? devices : [devices[1], devices[0]];
        await new Promise<void>((changed) => {
          change = async () => {
            await new Promise((done) => setTimeout(done, 200));
            await settled(from);
            assert.equal((await to.start({ takeOver: true })).status, "live");
            changed();
            return undefined;
          };
          at = s.provider.frames + 11;
        });
      }
      at = 0;
      await s.provider.over(10);
      const last = devices.find((d) => d.get().status === "live");
      assert.ok(last);
      await settled(last);
      assert.deepEqual(await told(hf, s.id), undisturbed);
      assert.ok([...s.ran.values()].every((times) => times === 1));
      assert.equal(devices.filter((d) => d.get().status === "elsewhere").length, 1);
    });
  });

  test("the server is ended and started again while the model speaks: nothing is lost", { timeout: 60_000 }, async () => {
    await on(hf, { pace: 8 }, async (s) => {
      const session = s.device(hf);
      await session.start();
      await s.provider.over(2);
      const restart = server.kill();
      await s.provider.over(5); // the voice does not wait for Holdfast, tools do
      s.provider.drop();
      await restart;
      await s.provider.over(10);
      await settled(session);
      assert.deepEqual(await told(hf, s.id), undisturbed);
      assert.ok([...s.ran.values()].every((times) => times === 1));
    });
  });
});
