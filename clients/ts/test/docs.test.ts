// The programs of docs/typescript.md, in order, against one server: each prints what stands below it.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { type Server, start } from "./server.ts";

const page = await readFile(new URL("../../../docs/typescript.md", import.meta.url), "utf8");
const programs = [...page.matchAll(/^## ([^\n]*)\n(?:(?!## )[^\n]*\n)*?```ts\n(.*?)```\n\n```text\n(.*?)```/gms)];

describe("docs/typescript.md", { concurrency: false }, () => {
  let server: Server;
  before(async () => {
    server = await start();
  });
  after(async () => await server?.stop());
  test("it has programs", () => assert.equal(programs.length, page.match(/^```ts$/gm)?.length));
  for (const [, title, program = "", output] of programs)
    test(`${title}`, () => {
      const ran = spawnSync(process.execPath, ["--input-type=module-typescript", "--no-warnings", "-e", program], {
        cwd: fileURLToPath(new URL("..", import.meta.url)),
        env: { ...process.env, HOLDFAST_API: server.api, HOLDFAST_TOKEN: server.token },
        encoding: "utf8",
        timeout: 60_000,
      });
      assert.equal(ran.stderr, "");
      assert.equal(ran.stdout, output);
    });
});
