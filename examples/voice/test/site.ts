// The page with everything behind it, where each part can be taken away: the page as it is built, its backend, Holdfast, and a browser.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { type Agent, createServer, type IncomingMessage, request, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { type Holdfast, holdfast } from "@holdfast/client";
import { start } from "@holdfast/testing";
import { type Browser, chromium } from "playwright-core";
import { build, type Rollup } from "vite";
import { backend } from "../backend.ts";

/** World is what all tests of a run share. */
export interface World {
  hf: Holdfast;
  browser: Browser;
  files: ReadonlyMap<string, string | Uint8Array>;
  api: string;
  /** Kills Holdfast without a word, and starts it again where it was. */
  restart(): Promise<void>;
  stop(): Promise<void>;
}

export async function world(): Promise<World> {
  const dir = await mkdtemp(join(tmpdir(), "holdfast-voice-"));
  const dev = await start();
  // A server that can be killed without its database.
  const env = { ...process.env, HOLDFAST_MIGRATE_DATABASE_URL: dev.database, HOLDFAST_LOGIN_PASSWORD: "voice" };
  const migrated = spawnSync(dev.binary, ["migrate", "up", "--login", "voice"], { env, encoding: "utf8" });
  if (migrated.status !== 0) throw new Error(migrated.stderr);
  const database = Object.assign(new URL(dev.database), { username: "voice", password: "voice" }).href;
  let api = "http://127.0.0.1:0";
  const serve = async () => {
    const child = spawn(dev.binary, ["serve", "--addr", api.slice("http://".length)], {
      env: { ...process.env, DATABASE_URL: database, HOLDFAST_SEAL_KEYS: Buffer.alloc(32, 1).toString("base64") },
      stdio: ["ignore", "ignore", "pipe"],
    });
    for await (const line of createInterface(child.stderr)) {
      const ready = /"msg":"ready","api":"([^"]+)"/.exec(line);
      if (!ready) continue;
      api = ready[1] as string;
      child.stderr.resume();
      return child;
    }
    throw new Error("holdfast serve did not start");
  };
  let server = await serve();
  const kill = async () => {
    const over = once(server, "exit");
    server.kill("SIGKILL");
    await over;
  };
  await writeFile(join(dir, "voice.wav"), voice());
  const browser = await chromium.launch({
    executablePath: process.env["CHROMIUM"] ?? "/usr/bin/chromium",
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-dev-shm-usage",
      "--use-fake-device-for-media-stream",
      "--use-fake-ui-for-media-stream",
      `--use-file-for-fake-audio-capture=${join(dir, "voice.wav")}`,
    ],
  });
  return {
    hf: holdfast({ url: api, token: dev.token, user: "maya" }),
    browser,
    files: await page(),
    api,
    async restart() {
      await kill();
      server = await serve();
    },
    async stop() {
      await browser.close();
      await kill();
      await dev.stop();
      await rm(dir, { recursive: true });
    },
  };
}

/** page builds it. Where Gemini Live is, each context says. */
async function page(): Promise<Map<string, string | Uint8Array>> {
  const built = (await build({
    root: fileURLToPath(new URL("..", import.meta.url)),
    configFile: false,
    logLevel: "error",
    resolve: { dedupe: ["react", "react-dom"] },
    define: { "import.meta.env.GEMINI": "globalThis.GEMINI" },
    build: { write: false, target: "es2022" },
  })) as Rollup.RollupOutput;
  return new Map(built.output.map((file) => [`/${file.fileName}`, file.type === "chunk" ? file.code : file.source]));
}

/** site serves the page with a backend of its own. */
export async function site({ files, hf, api }: World, google: string): Promise<{ origin: string; stop(): void }> {
  const answer = backend({ hf, google, slow: 20 });
  const server = createServer((req, res) => {
    if (req.url?.startsWith("/holdfast.")) return pass(api, req, res);
    void answer(req, res, () => {
      const path = new URL(req.url ?? "/", "http://x").pathname;
      const name = path === "/" ? "/index.html" : path;
      const type = { html: "text/html", js: "text/javascript", css: "text/css" }[name.split(".").pop() ?? ""];
      res.writeHead(files.has(name) ? 200 : 404, { "Content-Type": type ?? "text/plain" }).end(files.get(name));
    });
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    stop() {
      server.closeAllConnections();
      server.close();
    },
  };
}

/** pass is a proxy; where there is no server, the connection is cut. */
function pass(api: string, req: IncomingMessage, res: ServerResponse): void {
  const up = request(api + req.url, { method: req.method, headers: req.headers, agent: false as unknown as Agent }, (answer) => {
    res.writeHead(answer.statusCode ?? 500, answer.headers);
    answer.pipe(res);
    answer.on("error", () => res.destroy());
  });
  up.on("error", () => res.destroy());
  res.on("close", () => up.destroy());
  req.pipe(up);
}

/** voice is somebody who says a word, waits, and says it again. */
function voice(): Buffer {
  const rate = 16_000;
  const samples = Buffer.alloc(rate * 2 * 0.8);
  for (let i = 0; i < rate * 0.3; i++) {
    const t = i / rate;
    const tone = [1, 2, 3, 4].reduce((sum, n) => sum + Math.sin(2 * Math.PI * 150 * n * t) / n, 0);
    samples.writeInt16LE(Math.round(9000 * Math.sin(Math.PI * ((t * 6) % 1)) * tone), i * 2);
  }
  const head = Buffer.alloc(44);
  head.write("RIFF", 0);
  head.writeUInt32LE(36 + samples.length, 4);
  head.write("WAVEfmt ", 8);
  head.writeUInt32LE(16, 16);
  head.writeUInt16LE(1, 20);
  head.writeUInt16LE(1, 22);
  head.writeUInt32LE(rate, 24);
  head.writeUInt32LE(rate * 2, 28);
  head.writeUInt16LE(2, 32);
  head.writeUInt16LE(16, 34);
  head.write("data", 36);
  head.writeUInt32LE(samples.length, 40);
  return Buffer.concat([head, samples]);
}
