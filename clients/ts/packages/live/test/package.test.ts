import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { start } from "../../../test/server.ts";

const root = fileURLToPath(new URL("..", import.meta.url));

test("the README's first program says what the README says", { timeout: 60_000 }, async () => {
  const server = await start();
  try {
    const [, program = "", , output = ""] =
      /```ts\n(.*?)```\n(.*?)```text\n(.*?)```/s.exec(await readFile(`${root}README.md`, "utf8")) ?? [];
    const ran = spawnSync(process.execPath, ["--input-type=module-typescript", "--no-warnings", "-e", program], {
      cwd: root,
      env: { ...process.env, HOLDFAST_API: server.api, HOLDFAST_TOKEN: server.token },
      encoding: "utf8",
      timeout: 30_000,
    });
    assert.equal(ran.stderr, "");
    assert.equal(ran.stdout, output);
  } finally {
    await server.stop();
  }
});

test("a session is at most 8 KB, minified and gzipped", async () => {
  const { outputFiles } = await build({
    entryPoints: [`${root}dist/index.js`],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    external: ["@holdfast/client"],
    write: false,
  });
  const size = gzipSync(outputFiles[0]?.contents ?? "", { level: 9 }).length;
  console.log(`@holdfast/live: ${size} bytes`);
  assert.ok(size <= 8 * 1024, `${size} bytes`);
});
