// Builds the console into console/dist of the repository, from where the binary embeds it. The same sources always give the same bytes;
// with --check nothing is written, and it fails where what is committed differs.
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const dist = join(here, "../../../console/dist");

const { outputFiles } = await build({
  absWorkingDir: here,
  entryPoints: ["src/main.tsx", "src/console.css"],
  outdir: "assets",
  entryNames: "[name]-[hash]",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  legalComments: "eof",
  define: { "process.env.NODE_ENV": '"production"' },
  write: false,
});
const files = new Map(outputFiles.map((f) => [f.path.slice(here.length), f.contents]));
const name = (ending: string) => [...files.keys()].find((n) => n.endsWith(ending)) ?? "";
const page = (await readFile(join(here, "src/index.html"), "utf8"))
  .replace("main.js", name(".js"))
  .replace("console.css", name(".css"));
files.set("index.html", new TextEncoder().encode(page));
files.set("icon.svg", await readFile(join(here, "src/icon.svg")));

if (process.argv.includes("--check")) {
  const there = (await readdir(dist, { recursive: true, withFileTypes: true })).filter((f) => f.isFile());
  const same = await Promise.all(
    [...files].map(async ([n, want]) => Buffer.from(want).equals(await readFile(join(dist, n)).catch(() => Buffer.of()))),
  );
  if (there.length !== files.size || same.includes(false)) {
    console.error(
      "console/dist is not what clients/ts/console builds; run `npm run dist -w console` in clients/ts and commit it",
    );
    process.exit(1);
  }
} else {
  await rm(dist, { recursive: true, force: true });
  for (const [n, contents] of files) {
    await mkdir(dirname(join(dist, n)), { recursive: true });
    await writeFile(join(dist, n), contents);
  }
}
