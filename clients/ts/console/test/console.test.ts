// The console in Chromium, as a person uses it, on a `holdfast dev` of its own.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFile } from "node:fs/promises";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { gzipSync } from "node:zlib";
import { type Holdfast, holdfast } from "@holdfast/client";
import { type Browser, chromium, type Page } from "playwright-core";
import { type Server, start } from "../../test/server.ts";
import { seed } from "./seed.ts";

const run = promisify(execFile);
const recording = fileURLToPath(new URL("../../../../examples/gemini-live-session.jsonl", import.meta.url));
const dist = new URL("../../../../console/dist/", import.meta.url);
const axe = await readFile(fileURLToPath(import.meta.resolve("axe-core/axe.min.js")), "utf8");

test("the console is at most 180 KB, gzipped", async () => {
  const page = await readFile(new URL("index.html", dist), "utf8");
  const loaded = [...page.matchAll(/"(assets\/[^"]+)"/g)].map((m) => readFile(new URL(m[1] ?? "", dist)));
  const size = (await Promise.all(loaded)).reduce((sum, f) => sum + gzipSync(f, { level: 9 }).length, 0);
  console.log(`the console: ${size} bytes`);
  assert.ok(size > 0 && size <= 180 * 1024, `${size} bytes`);
});

test("dist is what the sources build", async () => {
  await run(process.execPath, [fileURLToPath(new URL("../build.ts", import.meta.url)), "--check"]);
});

describe("the console", { concurrency: false }, () => {
  let server: Server;
  let hf: Holdfast;
  let browser: Browser;
  let page: Page;
  const faults: string[] = [];

  before(async () => {
    server = await start();
    hf = holdfast({ url: server.api, token: server.token });
    browser = await chromium.launch({
      executablePath: process.env["CHROMIUM"] ?? "/usr/bin/chromium",
      args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
    });
    page = await open();
    await page.goto(server.console);
  });
  after(async () => {
    await browser?.close();
    await hf?.[Symbol.asyncDispose]();
    await server?.stop();
  });

  async function open(): Promise<Page> {
    const page = await (await browser.newContext({ viewport: { width: 1280, height: 860 } })).newPage();
    page.setDefaultTimeout(15_000);
    page.on("pageerror", (e) => faults.push(`${e.stack}`));
    page.on("console", (m) => m.type() === "error" && !/status of 4\d\d/.test(m.text()) && faults.push(m.text()));
    return page;
  }

  const go = (hash: string, on = page) =>
    on.evaluate((h) => {
      location.hash = h;
    }, hash);

  const says = (text: string | RegExp, on = page) => on.getByText(text).first().waitFor();

  /** replay plays the recording to the server, and answers the conversation's id. */
  async function replay(...more: string[]): Promise<string> {
    const env = { ...process.env, HOLDFAST_API: server.api, HOLDFAST_TOKEN: server.token };
    const { stdout } = await run(server.binary, ["replay", recording, ...more], { env });
    return /^conversation (\S+)$/m.exec(stdout)?.[1] ?? assert.fail(stdout);
  }

  test("the link of dev signs in, once, and leaves nothing behind", async () => {
    await says("Nothing is live");
    await says("No conversation yet");
    assert.doesNotMatch(page.url(), /link/);
    assert.deepEqual(await page.context().cookies(), []);
    assert.equal(await page.evaluate(() => localStorage.length + sessionStorage.length), 0);
    const again = await open();
    await again.goto(server.console);
    await says("This link was used.", again);
    await again.fill("[name=token]", "hfk_wrong_wrong");
    await again.press("[name=token]", "Enter");
    await says("The server does not know this credential.", again);
    await again.fill("[name=token]", server.token);
    await again.press("[name=token]", "Enter");
    await says("Nothing is live", again);
    await again.context().close();
  });

  test("Home counts what is live, while it happens", async () => {
    const playing = replay("--speed", "10");
    await says("1 conversation is live");
    await page.getByRole("row", { name: /Replay/ }).waitFor();
    await playing;
  });

  test("an object is shown as it was at a version, with the difference, and restored", async () => {
    const talk = hf.conversation("c1");
    await talk.append(
      { role: "user", text: "Hello" },
      { createIfMissing: true, shared: true, conversation: { title: "Auth refactor" } },
    );
    await talk.append({ role: "assistant", text: "Hello, Ada" });
    await talk.update({ title: "A wrong title" });
    await go("#/o/conversation/c1");
    await page.getByRole("row", { name: /title "A wrong title"/ }).waitFor();
    await page.keyboard.press("ArrowLeft");
    await says("You look at version 2.");
    await page.getByRole("row", { name: /title "Auth refactor" "A wrong title"/ }).waitFor();
    await page.getByLabel("Version", { exact: true }).focus();
    await page.keyboard.press("ArrowLeft");
    await says("You look at version 1.");
    await says(/2 “Hello, Ada”/);
    await page.keyboard.press("d");
    assert.equal(await page.getByRole("row", { name: /labels|create_time/ }).count(), 0);
    await page.keyboard.press("d");
    // Someone else is faster.
    await page.keyboard.press("r");
    const dialog = page.getByRole("dialog");
    await talk.append({ role: "user", text: "Meanwhile" });
    await page.getByRole("button", { name: "Restore as version 5…" }).waitFor();
    await page.getByRole("button", { name: "Leave it" }).click();
    await page.keyboard.press("r");
    await dialog.getByRole("button", { name: "Restore version 1" }).click();
    await says("Version 5 is version 1 again.");
    assert.equal((await talk.get({ messages: 10 })).messages.length, 1);
    await page.getByRole("button", { name: "Undo, back to version 4" }).click();
    await says("Version 6 is version 4 again.");
    assert.equal((await talk.get({ messages: 10 })).messages.length, 3);
  });

  test("a deleted object can come back", async () => {
    await page.getByRole("button", { name: "Delete…" }).click();
    await page.getByRole("button", { name: "Delete c1" }).click();
    await says(/c1 was deleted by a service/);
    await page.getByRole("button", { name: "Restore version 6" }).click();
    await says("Version 8 is version 6 again.");
    assert.equal((await hf.conversation("c1").get()).title, "A wrong title");
  });

  test("objects are found by kind, owner, label and the beginning of an id, and thousands are a scroll", async () => {
    const [ada, bob] = [hf.as("ada"), hf.as("bob")];
    await ada.conversation("ada-1").create({ title: "Ada’s own", labels: { team: "core" } });
    await Promise.all(Array.from({ length: 450 }, (_, i) => bob.conversation(`many-${String(i).padStart(4, "0")}`).create()));
    await go("#/objects/conversation");
    const rows = page.locator(".orow");
    await page.getByPlaceholder("Owner").fill("ada");
    await page.locator(".orow", { hasText: "ada-1" }).waitFor();
    await page.getByPlaceholder("Owner").fill("");
    await page.getByPlaceholder(/^Label/).fill("team=core");
    await page.locator(".orow", { hasText: "ada-1" }).waitFor();
    assert.equal(await rows.count(), 1);
    await page.getByPlaceholder(/^Label/).fill("");
    await page.getByPlaceholder("Id begins with").fill("many-");
    await page.locator(".orow", { hasText: "many-0000" }).waitFor();
    assert.ok((await rows.count()) < 60, "only what is in view is drawn");
    const last = page.locator(".orow", { hasText: "many-0449" });
    for (let i = 0; i < 40 && (await last.count()) === 0; i++)
      await page.locator(".rows").evaluate((e) => {
        e.scrollTop = e.scrollHeight;
        return new Promise((done) => requestAnimationFrame(done));
      });
    await last.waitFor();
    await page.getByPlaceholder("Id begins with").fill("nothing-");
    await says("No conversation matches");
  });

  test("the keyboard finds, goes, and moves through rows", async () => {
    await go("#/");
    await says(/conversation/);
    await page.keyboard.press("/");
    await page.keyboard.type("ada-1");
    await page.getByRole("option", { name: /ada-1/ }).waitFor();
    await page.keyboard.press("Enter");
    await says("Ada’s own");
    await page.keyboard.press("g");
    await page.keyboard.press("t");
    await says(/A timer wakes its object/);
    await page.keyboard.press("g");
    await page.keyboard.press("h");
    await says("All conversations");
    await page.getByRole("row", { name: /many-/ }).first().waitFor();
    await page.keyboard.press("j");
    await page.keyboard.press("j");
    await page.keyboard.press("k");
    assert.ok(await page.evaluate(() => document.activeElement?.hasAttribute("data-row")));
    await page.keyboard.press("?");
    await page.getByRole("dialog", { name: "All keys" }).waitFor();
    await page.keyboard.press("Escape");
  });

  test("a path that is no page’s says so", async () => {
    for (const path of [
      "nothing",
      "o/conversation",
      "conversations/c1",
      "c",
      "c/c1/more",
      "objects/state/a/b",
      "s/cart",
      "timers/x",
    ]) {
      await go("#/");
      await says(/conversation/);
      await go(`#/${path}`);
      await says("There is no such page");
    }
  });

  test("a stranger watches a replay, finds the interruption, sees what was heard, and takes a wrong title back", async () => {
    await go("#/");
    const playing = replay("--speed", "8");
    await says("1 conversation is live");
    await page
      .getByRole("row", { name: /Listening|Speaking|Thinking|Connected/ })
      .getByRole("link")
      .first()
      .click();
    await says("Voice lane");
    const id = await playing;
    await page.locator(".cm", { hasText: "Done. ENG-142 is in progress now." }).waitFor();
    await page.keyboard.press("i");
    await says(/the user spoke over the model/);
    await page.locator(".moment del", { hasText: "endpoint itself is down." }).waitFor();
    await says("cut to what was heard");
    await says("Resume at once. No word is lost.");
    await page.getByRole("button", { name: "If it must start fresh" }).click();
    await says(/^Start fresh/);
    await page.getByRole("button", { name: "256", exact: true }).click();
    await says(/[1-9] left out/);
    await page.getByRole("row", { name: /update_linear_issue/ }).waitFor();
    await hf.rpc.live.disconnectLive({ conversationId: id, fencingToken: 2 });
    await hf.conversation(id).update({ title: "A wrong title" });
    await says("was “Replay”.");
    await page.getByRole("link", { name: "Go back" }).click();
    await page.getByRole("row", { name: /title "Replay" "A wrong title"/ }).waitFor();
    await says("Want the title only?");
    await page.keyboard.press("r");
    await page
      .getByRole("dialog")
      .getByRole("button", { name: /^Restore version/ })
      .click();
    await says(/is version \d+ again/);
    assert.equal((await hf.conversation(id).get()).title, "Replay");
  });

  test("an API shows its windows and who waits, and is paused and released", async () => {
    await seed(hf);
    await go("#/apis/linear");
    await page.getByRole("row", { name: /Nobody knows whether it happened.*create_comment/ }).waitFor();
    await page
      .getByRole("row", { name: /Its own back-off.*503.*update_issue/ })
      .or(page.getByRole("row", { name: /Its own back-off/ }))
      .first()
      .waitFor();
    await page.getByRole("button", { name: "Pause…" }).click();
    await page.getByRole("button", { name: "Pause 10 min" }).click();
    await says(/^Every call waits until/);
    await page.getByRole("button", { name: "End the pause…" }).click();
    await page.getByRole("button", { name: "End the pause", exact: true }).click();
    await page.getByRole("button", { name: "Pause…" }).waitFor();
  });

  test("a session is ended, and a project shows its tasks", async () => {
    await go("#/sessions/maya");
    await page
      .getByRole("row", { name: /iPhone/ })
      .getByRole("button", { name: "End…" })
      .click();
    await page.getByRole("button", { name: "End this session" }).click();
    await page.getByRole("row", { name: /iPhone.*ended/ }).waitFor();
    await go("#/projects/p1");
    await page.getByRole("row", { name: /Refactor token refresh.*running/ }).waitFor();
  });

  test("a state is edited at the version that was read, as its schema allows", async () => {
    const cart = { type: "cart", name: "c-1", owner: "" };
    await go("#/states");
    await page.getByRole("link", { name: "c-1" }).click();
    await page.getByRole("button", { name: "Edit" }).click();
    const text = page.getByLabel("State as JSON");
    await text.fill("{");
    await page.getByRole("button", { name: "Save as version 2" }).click();
    await says(/^This is not JSON/);
    await text.fill('{"total": -1}');
    await page.getByRole("button", { name: "Save as version 2" }).click();
    await says(/total/);
    assert.deepEqual((await hf.rpc.state.read({ reads: [{ ref: cart }] })).objects[0]?.state, { total: 12.5 });
    await hf.rpc.state.apply({ ref: cart, operations: [{ setFields: { fields: { note: "meanwhile" } } }] });
    await says("Someone made version 2 while you edited.");
    await page.getByRole("button", { name: "Begin again from it" }).click();
    await text.fill('{"total": 20}');
    await page.getByRole("button", { name: "Save as version 3" }).click();
    await page.getByRole("button", { name: "Edit" }).waitFor();
    assert.deepEqual((await hf.rpc.state.read({ reads: [{ ref: cart }] })).objects[0]?.state, { total: 20 });
  });

  test("a user’s key sees what the user may, and says what is not allowed", async () => {
    const other = await open();
    await other.goto(`${server.api}/console/`);
    await other.fill("[name=token]", server.token);
    await other.fill("[name=user]", "ada");
    await other.press("[name=token]", "Enter");
    await other.getByRole("row", { name: /Ada’s own/ }).waitFor();
    await go("#/objects/linear_endpoint", other);
    await says("This key may not do that.", other);
    await other.context().close();
  });

  test("no page has a finding of axe, light or dark, wide or narrow, and none is wider than its window", async () => {
    const checked = await (await browser.newContext({ bypassCSP: true })).newPage();
    await checked.goto(`${server.api}/console/`);
    const findings = async (where: string) => {
      await checked
        .evaluate(() => Promise.all(document.getAnimations().map((a) => a.finished.catch(() => {}))).then(() => {}), undefined)
        .catch(() => {});
      const found = await checked.evaluate(async () => {
        const { axe } = globalThis as unknown as {
          axe: { run(): Promise<{ violations: { id: string; nodes: { target: string[] }[] }[] }> };
        };
        const wide = document.documentElement.scrollWidth > innerWidth ? ["wider than the window"] : [];
        return [
          ...wide,
          ...(await axe.run()).violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.target.join(" ")).slice(0, 3)}`),
        ];
      });
      assert.deepEqual(found, [], where);
    };
    await checked.addScriptTag({ content: axe });
    await findings("sign-in");
    await checked.fill("[name=token]", server.token);
    await checked.press("[name=token]", "Enter");
    await checked.getByRole("heading", { level: 1 }).waitFor();
    for (const [hash, ready] of pages)
      for (const [width, colorScheme] of [
        [1280, "light"],
        [390, "dark"],
      ] as const) {
        await checked.setViewportSize({ width, height: 800 });
        await checked.emulateMedia({ colorScheme, reducedMotion: "reduce" });
        await go(hash, checked);
        await says(ready, checked);
        await findings(`${hash} ${width} ${colorScheme}`);
      }
    await checked.context().close();
  });

  test("nothing failed on the way", () => assert.deepEqual(faults, []));
});

/** Each page, and what it says when it is there. */
const pages: [hash: string, ready: string | RegExp][] = [
  ["#/", "Latest"],
  ["#/objects/conversation", "All that is stored"],
  ["#/o/conversation/c1", "Who made version 8"],
  ["#/o/conversation/c1?v=2", "Restore version 2"],
  ["#/o/conversation/none", "It is not there"],
  ["#/conversations", "The last changed first"],
  ["#/c/c1", "As it is, and as a model is told"],
  ["#/c/none", "There is no conversation none"],
  ["#/apis/linear", "Who waits"],
  ["#/apis/gemini", "Usage by day"],
  ["#/sessions/maya", "What happened"],
  ["#/projects/p1", "Refactor token refresh"],
  ["#/states", "1 type is declared with a schema."],
  ["#/s/cart/c-1", "Waits and leases"],
  ["#/timers", "A timer wakes its object"],
  ["#/nowhere", "There is no such page"],
];
