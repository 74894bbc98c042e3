// The suite on a page of Chromium, with both versions of React, against one server.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { type Server, start } from "../../../test/server.ts";
import { type Chaos, chaos } from "../../client/test/chaos.ts";
import { bundle, inChromium } from "../../client/test/environments.ts";
import { gemini } from "../../testing/src/gemini.ts";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const versions = { "React 18": `${root}test/react18/node_modules`, "React 19": `${root}node_modules` };

describe("react", { concurrency: false }, () => {
  let server: Server;
  let proxy: Chaos;
  before(async () => {
    server = await start();
    proxy = await chaos(server.api);
  });
  after(async () => {
    proxy?.close();
    await server?.stop();
  });

  for (const [version, modules] of Object.entries(versions))
    test(version, async (t) => {
      const script = await bundle("../../react/test/suite/index.ts", {
        alias: { react: `${modules}/react`, "react-dom": `${modules}/react-dom` },
        jsx: "automatic",
        define: { "process.env.NODE_ENV": '"development"' },
      });
      const own = JSON.parse(await readFile(`${modules}/react-dom/package.json`, "utf8")) as { version: string };
      assert.ok(version.endsWith(own.version.split(".")[0] ?? "") && script.includes(`"${own.version}"`), own.version);
      const suite = await inChromium(script);
      t.after(() => suite.stop());
      const provider = await gemini(); // its own: the provider finishes a broken turn on the next connection, whoever opens it
      t.after(() => provider.stop());
      for (const name of await suite.names())
        await t.test(name, { timeout: 60_000 }, () =>
          suite.run(name, { where: "chromium", api: server.api, token: server.token, chaos: proxy.url, gemini: provider.url }),
        );
    });

  test("the README's first program says what the README says", { timeout: 60_000 }, async () => {
    const [, program = "", , output = ""] =
      /```tsx\n(.*?)```\n(.*?)```text\n(.*?)```/s.exec(await readFile(new URL("../README.md", import.meta.url), "utf8")) ?? [];
    const { outputFiles } = await build({
      stdin: { contents: program, resolveDir: fileURLToPath(new URL("..", import.meta.url)), loader: "tsx" },
      bundle: true,
      write: false,
      format: "esm",
      tsconfigRaw: { compilerOptions: { jsx: "react-jsx" } }, // and so no paths: it gets the packages as they are built
      define: {
        "process.env.NODE_ENV": '"production"',
        "import.meta.env.VITE_HOLDFAST_API": JSON.stringify(server.api),
        "import.meta.env.VITE_HOLDFAST_TOKEN": JSON.stringify(server.token),
      },
    });
    const chromium = await inChromium("");
    try {
      const page = await chromium.page(await chromium.browser.newContext());
      await page.setContent('<div id="root"></div>');
      await page.addScriptTag({ type: "module", content: outputFiles[0]?.text ?? "" });
      await page.fill("input", "Hello");
      await page.press("input", "Enter");
      await page.waitForFunction((text) => document.querySelector("#root")?.textContent?.trim() === text, output.trim());
    } finally {
      await chromium.stop();
    }
  });
});

test("a server renders what is loading, and leaves what would suspend to the browser", async () => {
  const { createElement, Suspense } = await import("react");
  const { renderToString } = await import("react-dom/server");
  const { holdfast } = await import("@holdfast/client");
  const { HoldfastProvider, useConversation, useProject } = await import("@holdfast/react");
  const hf = holdfast({ url: "http://127.0.0.1:1", token: "none" });
  const Plain = () => useConversation("c1").status;
  const Certain = () => useProject("p1", { suspense: true })?.title;
  const html = renderToString(
    createElement(
      HoldfastProvider,
      { client: hf },
      createElement(Plain),
      createElement(Suspense, { fallback: "later" }, createElement(Certain)),
    ),
  );
  assert.match(html, /loading/);
  assert.match(html, /later/);
});

test("the hooks are at most 3 KB, minified and gzipped", async () => {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL("../dist/index.js", import.meta.url))],
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    external: ["react", "@holdfast/client"],
    write: false,
  });
  const size = gzipSync(outputFiles[0]?.contents ?? "", { level: 9 }).length;
  console.log(`@holdfast/react: ${size} bytes`);
  assert.ok(size <= 3 * 1024, `${size} bytes`);
});
