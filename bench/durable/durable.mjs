// Holdfast beside Durable Objects in workerd, in one run: the same JSON over HTTP, the same client, in turns.
//
//   (cd clients/ts && npm ci) && node bench/durable/durable.mjs [seconds per cell]
//
// It builds and starts `holdfast dev`, whose Postgres waits for the disk as Postgres does by default, and workerd with its storage on the same
// disk. HOLDFAST_API and HOLDFAST_TOKEN name another server instead.
//
// A cell is one kind of call on 1, 64 or 1,000 objects: by one caller, which shows latency, and by 64 at once, which shows throughput. The
// ratio is Holdfast to workerd: calls a second of 64 callers (above 1, Holdfast does more), and the median of one (below 1, it is sooner).
// Both answer when a change is on the disk as they see to it; workerd's local storage is SQLite in one process without a network.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import { createRequire } from "node:module";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as wait } from "node:timers/promises";

const seconds = Number(process.argv[2] ?? 5);
const value = "x".repeat(1024);

const worker = `
import { DurableObject } from "cloudflare:workers";
export class Thing extends DurableObject {
  async fetch(request) {
    const { op, value } = await request.json();
    const s = this.ctx.storage;
    if (op === "read") return Response.json([...await s.list({ prefix: "e/", reverse: true, limit: 20 })]);
    if (op === "increment") {
      const n = (await s.get("n") ?? 0) + 1;
      s.put("n", n);
      return Response.json({ n });
    }
    const seq = (await s.get("seq") ?? 0) + 1;
    s.put({ seq, ["e/" + String(seq).padStart(12, "0")]: value });
    return Response.json({ seq });
  }
}
export default {
  fetch(request, env) {
    return env.THINGS.get(env.THINGS.idFromName(new URL(request.url).pathname)).fetch(request);
  },
};`;

async function startWorkerd(dir) {
  const port = 20000 + (process.pid % 20000);
  await writeFile(join(dir, "worker.js"), worker);
  await writeFile(
    join(dir, "config.capnp"),
    `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = .main), (name = "disk", disk = (path = "${dir}", writable = true))],
  sockets = [(name = "http", address = "127.0.0.1:${port}", http = (), service = "main")],
);
const main :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")],
  compatibilityDate = "2026-01-01",
  durableObjectNamespaces = [(className = "Thing", uniqueKey = "thing", enableSql = true)],
  durableObjectStorage = (localDisk = "disk"),
  bindings = [(name = "THINGS", durableObjectNamespace = "Thing")],
);`,
  );
  const bin = createRequire(new URL("../../clients/ts/package.json", import.meta.url)).resolve("@cloudflare/workerd-linux-64/bin/workerd");
  const child = spawn(bin, ["serve", join(dir, "config.capnp")], { stdio: ["ignore", "ignore", "inherit"] });
  for (let tries = 0; ; tries++) {
    const socket = connect(port, "127.0.0.1");
    const up = await Promise.race([once(socket, "connect").then(() => true, () => false)]);
    socket.destroy();
    if (up) return { child, url: `http://127.0.0.1:${port}` };
    if (child.exitCode !== null || tries > 100) throw new Error("workerd does not start");
    await wait(50);
  }
}

async function startHoldfast(dir) {
  if (process.env.HOLDFAST_API) return { api: process.env.HOLDFAST_API, token: process.env.HOLDFAST_TOKEN };
  const bin = join(dir, "holdfast");
  execFileSync("go", ["build", "-o", bin, "./cmd/holdfast"], { cwd: new URL("../..", import.meta.url), stdio: "inherit" });
  const child = spawn(bin, ["dev", "--ephemeral", "--addr", "127.0.0.1:0", "--json", "--log-level", "warn"], { stdio: ["ignore", "pipe", "inherit"] });
  for await (const line of createInterface(child.stdout)) return { child, ...JSON.parse(line) };
  throw new Error("holdfast does not start");
}

const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
const call = (url, headers, body) =>
  new Promise((resolve, reject) => {
    const text = JSON.stringify(body);
    const request = http.request(url, { agent, method: "POST", headers: { ...headers, "content-type": "application/json", "content-length": Buffer.byteLength(text) } }, (res) => {
      let answer = "";
      res.on("data", (part) => (answer += part));
      res.on("end", () => (res.statusCode === 200 ? resolve(answer) : reject(new Error(`${url}: ${res.statusCode} ${answer}`))));
    });
    request.on("error", reject);
    request.end(text);
  });

const run = `${Date.now()}`;
const systems = (workerd, { api, token }) => ({
  workerd: (op, name) => call(`${workerd}/${run}-${name}`, {}, { op, value: op === "put" ? value : undefined }),
  holdfast: (op, name) => {
    const ref = { type: "bench", name: `${run}-${name}` };
    const headers = { authorization: `Bearer ${token}` };
    const of = (method) => `${api}/holdfast.state.v1.StateService/${method}`;
    if (op === "read") return call(of("Read"), headers, { reads: [{ ref, withoutState: true, queries: [{ collection: "e", reverse: true, limit: 20 }] }] });
    const operation = op === "put" ? { append: { collection: "e", text: value } } : { increment: { path: "n" } };
    return call(of("Apply"), headers, { ref, operations: [operation] });
  },
});

async function measure(one, op, objects, callers) {
  const until = performance.now() + seconds * 1000;
  const took = [];
  let next = 0;
  await Promise.all(
    Array.from({ length: callers }, async () => {
      while (performance.now() < until) {
        const began = performance.now();
        await one(op, next++ % objects);
        took.push(performance.now() - began);
      }
    }),
  );
  took.sort((a, b) => a - b);
  return { rate: took.length / seconds, median: took[took.length >> 1] };
}

const dir = await mkdtemp(join(tmpdir(), "holdfast-durable-"));
const children = [];
process.once("SIGINT", () => process.exit(1)).once("SIGTERM", () => process.exit(1));
process.once("exit", () => children.forEach((child) => child.kill()));
try {
  const workerd = await startWorkerd(dir);
  children.push(workerd.child);
  const holdfast = await startHoldfast(dir);
  if (holdfast.child) children.push(holdfast.child);
  const all = systems(workerd.url, holdfast);
  console.log("| call | objects | workerd/s | holdfast/s | ratio | workerd, one caller | holdfast, one caller | ratio |\n|---|---|---|---|---|---|---|---|");
  for (const objects of [1, 64, 1000]) {
    for (const op of ["increment", "put", "read"]) {
      const many = {};
      const single = {};
      for (const [name, one] of Object.entries(all)) {
        if (op === "read") {
          // Each has 20 entries by now, or gets them.
          const missing = Array.from({ length: 20 * objects }, (_, i) => i);
          await Promise.all(Array.from({ length: 64 }, async () => { while (missing.length > 0) await one("put", missing.pop() % objects); }));
        }
        await one(op, 0);
        many[name] = await measure(one, op, objects, 64);
        single[name] = await measure(one, op, objects, 1);
      }
      const [w, h, w1, h1] = [many.workerd, many.holdfast, single.workerd, single.holdfast];
      console.log(`| ${op} | ${objects} | ${w.rate.toFixed(0)} | ${h.rate.toFixed(0)} | ${(h.rate / w.rate).toFixed(2)} | ${w1.median.toFixed(2)} ms | ${h1.median.toFixed(2)} ms | ${(h1.median / w1.median).toFixed(2)} |`);
    }
  }
} finally {
  agent.destroy();
  for (const child of children) {
    child.kill();
    await once(child, "exit");
  }
  await rm(dir, { recursive: true });
}
