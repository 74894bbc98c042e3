// Everything that the page needs, in one process: Holdfast, the backend-for-frontend (backend.ts), and a Gemini Live without Google unless GEMINI_API_KEY has a key.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { holdfast } from "@holdfast/client";
import { gemini } from "@holdfast/testing/gemini";
import { createServer } from "vite";
import { backend } from "./backend.ts";
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
const answer = backend({ hf, google: fake?.url, key });

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
