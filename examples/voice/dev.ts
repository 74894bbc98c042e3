// Everything that the page needs, in one process: Holdfast, the backend-for-frontend, and a Gemini Live without Google unless GEMINI_API_KEY has a key.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { holdfast } from "@holdfast/client";
import { gemini } from "@holdfast/testing/gemini";
import { createServer } from "vite";
import { script } from "./script.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const key = process.env["GEMINI_API_KEY"];
const here = fileURLToPath(new URL(".", import.meta.url));
let binary = process.env["HOLDFAST_BIN"];
if (!binary) {
  binary = `${here}.data/holdfast`;
  // Not `go run`: a signal to it does not reach what it runs.
  const built = spawnSync("go", ["build", "-o", binary, "./cmd/holdfast"], { cwd: root, stdio: "inherit" });
  if (built.status !== 0) throw new Error("holdfast was not built: install Go, or name a binary by HOLDFAST_BIN");
}
const server = spawn(binary, ["dev", "--json", "--addr", "127.0.0.1:0", "--data", `${here}.data`], {
  stdio: ["ignore", "pipe", "inherit"],
});
process.once("exit", () => server.kill());
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(signal, () => process.exit());
const [line] = (await Promise.race([
  once(createInterface(server.stdout), "line"),
  once(server, "exit").then(() => Promise.reject(new Error("holdfast did not start; name a binary by HOLDFAST_BIN"))),
])) as [string];
const { api, token } = JSON.parse(line) as { api: string; token: string };
const hf = holdfast({ url: api, token });

const fake = key
  ? undefined
  : await gemini({ script, speaker: "microphone", pace: 90, port: Number(process.env["GEMINI_PORT"] ?? 0) });
const google = fake?.url ?? "https://generativelanguage.googleapis.com";

/** What has acted already, by idempotency key: a tool that is executed again answers as before. */
const acted = new Map<string, object>();
let runs = 90_210;

/** The backend-for-frontend. Who the user is a real one knows from its own sign-in. */
const backend: { [path: string]: (body: { [name: string]: string }) => Promise<object> } = {
  "/api/session": async () => await hf.rpc.session.createSession({ user: "maya" }),
  "/api/gemini-token": async () => {
    const minted = await fetch(`${google}/v1alpha/auth_tokens`, {
      method: "POST",
      headers: { "x-goog-api-key": key ?? "fake-key", "Content-Type": "application/json" },
      body: JSON.stringify({ uses: 1 }),
    });
    if (!minted.ok) throw new Error(`Google answered ${minted.status}`);
    return { token: ((await minted.json()) as { name: string }).name };
  },
  "/api/conversation": async ({ id }) => {
    await hf
      .as("maya")
      .conversation(String(id))
      .create({ title: "Auth refactor" })
      .catch((e) => {
        if (!hf.is(e, "ALREADY_EXISTS")) throw e;
      });
    return {};
  },
  "/api/run": async ({ key: once = "", issue = "" }) => {
    await new Promise((done) => setTimeout(done, 1500));
    return remembered(once, () => ({ run: ++runs, issue, status: "ACTIVE" }));
  },
  "/api/move": async ({ key: once = "", issue = "", state = "" }) => {
    await new Promise((done) => setTimeout(done, 700));
    return remembered(once, () => ({ issue, state }));
  },
};

function remembered(once: string, act: () => object): object {
  const before = acted.get(once);
  if (before) return before;
  const now = act();
  acted.set(once, now);
  return now;
}

async function answer(request: IncomingMessage, response: ServerResponse, next: () => void): Promise<void> {
  const handle = backend[request.url ?? ""];
  if (request.method !== "POST" || !handle) return next();
  try {
    let body = "";
    for await (const chunk of request) body += chunk;
    response.setHeader("Content-Type", "application/json");
    response.end(JSON.stringify(await handle(body ? (JSON.parse(body) as { [name: string]: string }) : {})));
  } catch (e) {
    response.writeHead(500).end(JSON.stringify({ error: String(e) }));
  }
}

const vite = await createServer({
  root: here,
  configFile: false,
  resolve: { dedupe: ["react", "react-dom"] },
  define: { "import.meta.env.GEMINI": JSON.stringify(fake ? fake.url : "") },
  server: { port: Number(process.env["PORT"] ?? 5173), strictPort: true, proxy: { "^/holdfast\\.": api } },
  plugins: [{ name: "backend", configureServer: (s) => void s.middlewares.use((q, r, n) => void answer(q, r, n)) }],
});
await vite.listen();
console.log(`\n  The page:    ${vite.resolvedUrls?.local[0] ?? ""}`);
console.log(`  Gemini Live: ${fake ? `a fake one, ${fake.url}; GEMINI_API_KEY=… talks to Google` : "Google's"}`);
console.log(`  Holdfast:    ${api}\n`);
