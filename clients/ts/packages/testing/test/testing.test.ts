import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { holdfast } from "@holdfast/client";
import { start as startOwn } from "../../../test/server.ts";
import { type Server, start, tenant, variable } from "../src/index.ts";
import setup from "../src/vitest.ts";

const here = fileURLToPath(new URL("..", import.meta.url));

describe("testing", { concurrency: false }, () => {
  let server: Server;
  before(async () => {
    server = await startOwn();
    process.env["HOLDFAST_BIN"] = server.binary;
  });
  after(async () => await server?.stop());

  test("each test has a tenant, in which there is only what it made", async () => {
    const tenants = await Promise.all([tenant(server), tenant(server), tenant(server)]);
    assert.equal(new Set(tenants.map((t) => t.tenant)).size, 3);
    const clients = tenants.map((t) => holdfast({ ...t, user: "ada" }));
    for (const [i, hf] of clients.entries()) await hf.conversation("c1").create({ title: `of ${i}` });
    for (const [i, hf] of clients.entries()) {
      const titles: string[] = [];
      for await (const c of hf.conversations()) titles.push(c.title);
      assert.deepEqual(titles, [`of ${i}`]);
    }
  });

  test("a program that is not there, or is another, is named, with what to do", async () => {
    await assert.rejects(start({ binary: "/nowhere/holdfast" }), /\/nowhere\/holdfast; name the program by HOLDFAST_BIN/);
    await assert.rejects(start({ binary: process.execPath }), /no Holdfast was started by/);
  });

  test("vitest's processes share a server, which stops after the last", async () => {
    const teardown = await setup();
    const { api } = JSON.parse(process.env[variable] ?? "") as { api: string };
    assert.notEqual(api, server.api);
    assert.equal((await tenant()).url, api);
    await teardown();
    await assert.rejects(fetch(api));
    assert.equal(process.env[variable], undefined);
  });

  test("the README's first program passes in Node's runner, and leaves no server behind", async () => {
    const [, program = ""] = /```ts\n(.*?)```/s.exec(await readFile(join(here, "README.md"), "utf8")) ?? [];
    const dir = await mkdtemp(join(here, ".readme-"));
    try {
      // It says where its server was.
      const file = join(dir, "first.test.ts");
      await writeFile(file, program.replace("const talk =", "console.log((await tenant()).url);\n  const talk ="));
      const { stdout } = await promisify(execFile)(process.execPath, ["--no-warnings", "--test", file], {
        env: { ...process.env, NODE_TEST_CONTEXT: undefined },
      });
      assert.match(stdout, /^# pass 1$|^ℹ pass 1$/m);
      const [url = ""] = /http:\S+/.exec(stdout) ?? [];
      const gone = () =>
        fetch(url).then(
          () => false,
          () => true,
        );
      while (!(await gone())) await new Promise((done) => setTimeout(done, 20));
    } finally {
      await rm(dir, { recursive: true });
    }
  });
});
