// A Holdfast of this repository for a run of tests.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type Server, start as startBinary } from "../packages/testing/src/index.ts";

export type { Server };

/** start builds the server, unless HOLDFAST_BIN names one, and starts it with a database that is thrown away. */
export async function start(): Promise<Server> {
  return await startBinary({ binary: process.env["HOLDFAST_BIN"] ?? build() });
}

function build(): string {
  const dir = mkdtempSync(join(tmpdir(), "holdfast-ts-"));
  process.once("exit", () => rmSync(dir, { recursive: true, force: true }));
  const binary = join(dir, "holdfast");
  const root = fileURLToPath(new URL("../../..", import.meta.url));
  const built = spawnSync("go", ["build", "-o", binary, "./cmd/holdfast"], {
    cwd: root,
    stdio: ["ignore", "inherit", "inherit"],
  });
  if (built.status !== 0) throw new Error("go build failed");
  return binary;
}
