// Where the suite runs: each gives a function that runs one test of it and rejects where the test fails.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import net, { type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type BuildOptions, build } from "esbuild";
import { type Browser, type BrowserContext, chromium } from "playwright-core";
import type { World } from "./suite/harness.ts";
import { run } from "./suite/index.ts";

export interface Environment {
  run(name: string, world: World): Promise<void>;
  stop(): Promise<void>;
}

export async function bundle(entry: string, options: BuildOptions = {}): Promise<string> {
  const result = await build({
    ...options,
    entryPoints: [fileURLToPath(new URL(entry, import.meta.url))],
    bundle: true,
    format: "esm",
    target: "es2022",
    write: false,
    keepNames: true,
    ignoreAnnotations: true, // a suite is nothing but side effects
  });
  return result.outputFiles[0]?.text ?? "";
}

export async function node(): Promise<Environment> {
  return { run, async stop() {} };
}

/** inWorkerd runs workerd itself, as a Worker's author gets it. */
export async function inWorkerd(): Promise<Environment> {
  const dir = await mkdtemp(join(tmpdir(), "holdfast-workerd-"));
  const port = await freePort();
  await writeFile(join(dir, "worker.js"), await bundle("./workerd.ts"));
  await writeFile(
    join(dir, "config.capnp"),
    `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "suite", worker = (modules = [(name = "worker.js", esModule = embed "worker.js")], compatibilityDate = "2026-01-01", globalOutbound = "net")),
    (name = "net", network = (allow = ["private", "public"])),
  ],
  sockets = [(name = "http", address = "127.0.0.1:${port}", http = (), service = "suite")],
);
`,
  );
  const worker = spawn(
    fileURLToPath(import.meta.resolve("@cloudflare/workerd-linux-64/bin/workerd")),
    ["serve", "config.capnp"],
    { cwd: dir, stdio: ["ignore", "inherit", "inherit"] },
  );
  await listening(port, worker);
  return {
    async run(name, world) {
      const failure = await (
        await fetch(`http://127.0.0.1:${port}`, { method: "POST", body: JSON.stringify({ name, world }) })
      ).text();
      if (failure) throw new Error(failure);
    },
    async stop() {
      worker.kill("SIGKILL");
      await once(worker, "exit");
      await rm(dir, { recursive: true });
    },
  };
}

/** A browser, whose pages have an origin that is not the server's. */
export interface Pages extends Environment {
  browser: Browser;
  origin: string;
  /** The tests of its suite. */
  names(): Promise<string[]>;
  page(context: BrowserContext): ReturnType<BrowserContext["newPage"]>;
}

/** inChromium runs a suite on a page: the client's, unless a script is given that exports `run`. */
export async function inChromium(script?: string): Promise<Pages> {
  script ??= await bundle("./suite/index.ts");
  const library = await bundle("../src/index.ts");
  const server = http.createServer((req, res) => {
    if (req.url === "/suite.js") res.writeHead(200, { "Content-Type": "text/javascript" }).end(script);
    else if (req.url === "/client.js") res.writeHead(200, { "Content-Type": "text/javascript" }).end(library);
    else res.writeHead(200, { "Content-Type": "text/html" }).end("<!doctype html><title>suite</title>");
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const browser = await chromium.launch({
    executablePath: process.env["CHROMIUM"] ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
  });
  const open = async (context: BrowserContext) => {
    const page = await context.newPage();
    await page.goto(origin);
    return page;
  };
  const page = await open(await browser.newContext());
  return {
    browser,
    origin,
    page: open,
    names: () =>
      page.evaluate(async () => {
        const path = "/suite.js";
        return [...((await import(path)) as typeof import("./suite/index.ts")).tests.keys()];
      }),
    async run(name, world) {
      const failure = await page.evaluate(
        async ([name, world]) => {
          const path = "/suite.js";
          try {
            await ((await import(path)) as typeof import("./suite/index.ts")).run(name, world);
            return "";
          } catch (e) {
            return e instanceof Error ? `${e.stack}\n${e.cause instanceof Error ? e.cause.stack : ""}` : String(e);
          }
        },
        [name, world] as const,
      );
      if (failure) throw new Error(failure);
    },
    async stop() {
      await browser.close();
      server.closeAllConnections();
      server.close();
    },
  };
}

async function freePort(): Promise<number> {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}

async function listening(port: number, process: ReturnType<typeof spawn>): Promise<void> {
  for (;;) {
    if (process.exitCode !== null) throw new Error(`workerd ended with ${process.exitCode}`);
    const socket = net.connect(port, "127.0.0.1");
    const connected = await once(socket, "connect").then(
      () => true,
      () => false,
    );
    socket.destroy();
    if (connected) return;
    await new Promise((done) => setTimeout(done, 50));
  }
}
