import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

test("the client is at most 15 KB, minified and gzipped", async () => {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL("../dist/index.js", import.meta.url))],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    write: false,
  });
  const size = gzipSync(outputFiles[0]?.contents ?? "", { level: 9 }).length;
  console.log(`@holdfast/client: ${size} bytes`);
  assert.ok(size <= 15 * 1024, `${size} bytes`);
});
