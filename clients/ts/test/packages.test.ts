// What is published of each package: what it is for, and nothing else.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const packages = fileURLToPath(new URL("../packages/", import.meta.url));

for (const name of readdirSync(packages))
  test(`@holdfast/${name} has what it needs, and nothing else`, () => {
    const dir = `${packages}${name}/`;
    const { version } = JSON.parse(readFileSync(`${dir}package.json`, "utf8")) as { version: string };
    const [packed] = JSON.parse(execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd: dir, encoding: "utf8" })) as [
      { files: { path: string }[] },
    ];
    const files = packed.files.map((f) => f.path).sort();
    const wanted = readdirSync(`${dir}src`, { recursive: true, encoding: "utf8" })
      .filter((f) => f.endsWith(".ts"))
      .flatMap((f) => [".js", ".d.ts"].map((end) => `dist/${f.replace(/\.ts$/, end)}`));
    const more = ["AGENTS.md", "CHANGELOG.md", "llms.txt"].filter((f) => existsSync(`${dir}${f}`));
    assert.deepEqual(files, [...more, "README.md", "package.json", ...wanted].sort());
    if (more.includes("CHANGELOG.md"))
      assert.ok(readFileSync(`${dir}CHANGELOG.md`, "utf8").includes(`\n## ${version}\n`), `${version} has no entry`);
  });
