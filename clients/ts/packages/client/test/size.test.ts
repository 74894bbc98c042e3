import assert from "node:assert/strict";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

// What a page loads that imports these, minified and gzipped; more is loaded by who imports more.
for (const [what, program, most] of [
  ["a client", `export { holdfast, is } from "./index.js";`, 16 * 1024],
  ["a client with objects of one's own", `export { holdfast, is, defineObject } from "./index.js";`, 18 * 1024],
  ["a client with an outbox", `export { holdfast, is } from "./index.js"; export { outbox } from "./outbox.js";`, 18 * 1024],
] as const)
  test(`${what} is at most ${most / 1024} KB, minified and gzipped`, async () => {
    const { outputFiles } = await build({
      stdin: { contents: program, resolveDir: fileURLToPath(new URL("../dist", import.meta.url)) },
      bundle: true,
      minify: true,
      format: "esm",
      target: "es2022",
      write: false,
    });
    const size = gzipSync(outputFiles[0]?.contents ?? "", { level: 9 }).length;
    console.log(`${what}: ${size} bytes`);
    assert.ok(size <= most, `${size} bytes`);
  });
