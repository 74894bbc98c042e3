// A Holdfast of this repository for a run of tests.
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

export interface Server {
  api: string;
  token: string;
  stop(): Promise<void>;
}

/** start builds the server, unless HOLDFAST_BIN names one, and starts it with a database that is thrown away. */
export async function start(): Promise<Server> {
  const dir = await mkdtemp(join(tmpdir(), "holdfast-ts-"));
  const root = fileURLToPath(new URL("../../..", import.meta.url));
  let binary = process.env["HOLDFAST_BIN"];
  if (!binary) {
    binary = join(dir, "holdfast");
    const built = spawnSync("go", ["build", "-o", binary, "./cmd/holdfast"], {
      cwd: root,
      stdio: ["ignore", "inherit", "inherit"],
    });
    if (built.status !== 0) throw new Error("go build failed");
  }
  const log: string[] = [];
  const server = spawn(binary, ["dev", "--ephemeral", "--json", "--addr", "127.0.0.1:0"], {
    cwd: dir,
    stdio: ["ignore", "pipe", "pipe"],
  });
  createInterface(server.stderr).on("line", (line) => log.push(line) > 50 && log.shift());
  const line = await Promise.race([once(createInterface(server.stdout), "line"), once(server, "exit")]);
  if (typeof line[0] !== "string" || !line[0].startsWith("{")) throw new Error(`the server did not start:\n${log.join("\n")}`);
  const { api, token } = JSON.parse(line[0]) as { api: string; token: string };
  return {
    api,
    token,
    async stop() {
      server.kill("SIGTERM");
      if (server.exitCode === null) await once(server, "exit");
      await rm(dir, { recursive: true, force: true });
    },
  };
}
