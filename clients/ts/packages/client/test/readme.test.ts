import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { start } from "../../../test/server.ts";

test("the README's first program says what the README says", async () => {
  const server = await start();
  try {
    const root = fileURLToPath(new URL("..", import.meta.url));
    const [, program = "", , output = ""] =
      /```ts\n(.*?)```\n(.*?)```text\n(.*?)```/s.exec(await readFile(`${root}README.md`, "utf8")) ?? [];
    const ran = spawnSync(process.execPath, ["--input-type=module-typescript", "--no-warnings", "-e", program], {
      cwd: root,
      env: { ...process.env, HOLDFAST_API: server.api, HOLDFAST_TOKEN: server.token },
      encoding: "utf8",
    });
    assert.equal(ran.stderr, "");
    assert.equal(ran.stdout, output);
  } finally {
    await server.stop();
  }
});
