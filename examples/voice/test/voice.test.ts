// The page in Chromium, with a microphone: ten turns with tools, undisturbed, and while everything around it dies. What is said is the same.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { type Gemini, type GeminiOptions, gemini } from "@holdfast/testing/gemini";
import type { BrowserContext, Page } from "playwright-core";
import { script, told } from "../../../clients/ts/packages/live/test/harness.ts";
import { site, type World, world } from "./site.ts";

/** How many of the points are tried: a few of them, or with VOICE_POINTS=all each. */
const all = process.env["VOICE_POINTS"] === "all";

/** gaps are the milliseconds until the page went on, by what had happened. */
const gaps: { [what: string]: number[] } = {};

/** One conversation, and the devices that hold it. */
interface Stage {
  id: string;
  provider: Gemini;
  /** How often each tool was asked to act, by idempotency key. */
  acts: Map<string, number>;
  page?: Page;
  /** A new tab of a device. */
  open(device: BrowserContext): Promise<Page>;
  device(): Promise<BrowserContext>;
  /** Resolves when all that the script has was said. */
  over: Promise<void>;
}

let stages = 0;

/** What happens after a frame: a close code ends its socket; and the next waits. */
type After = (frame: number, toolRuns: boolean) => number | undefined | Promise<undefined>;

/** on runs a conversation. Its frames are counted without setups. */
async function on(
  w: World,
  { after, ...options }: Pick<GeminiOptions, "speaker"> & { after?: After },
  run: (stage: Stage) => Promise<void>,
): Promise<{ said: string[]; frames: number; acts: Map<string, number> }> {
  let [frames, turns] = [0, 0];
  let toolRuns = false;
  let last = () => {};
  let held: unknown; // what happens after the newest frame that something happened after
  const over = new Promise<void>((done) => {
    last = done;
  }).then(() => held as undefined);
  const provider = await gemini({
    script,
    pace: 2,
    bargeIn: false,
    ...options,
    after(_, frame) {
      if ("setupComplete" in frame) return undefined;
      const content = frame["serverContent"] as { turnComplete?: boolean } | undefined;
      if (content?.turnComplete) turns++;
      else if (turns === script.length && "sessionResumptionUpdate" in frame) {
        last();
        return new Promise<undefined>(() => {}); // nothing more is said
      }
      frames++;
      toolRuns = "toolCall" in frame || (toolRuns && !content);
      const happens = after?.(frames, toolRuns);
      if (happens instanceof Promise) held = happens;
      return happens;
    },
  });
  const place = await site(w, provider.url);
  const contexts: BrowserContext[] = [];
  const acts = new Map<string, number>();
  const id = `voice-${++stages}`;
  const stage: Stage = {
    id,
    provider,
    acts,
    over,
    async device() {
      const context = await w.browser.newContext();
      contexts.push(context);
      await context.addInitScript(observe, provider.url);
      context.on("request", (r) => {
        const key = /\/api\/(run|move)$/.test(r.url()) && String(r.postDataJSON().key);
        if (key) acts.set(key, (acts.get(key) ?? 0) + 1);
      });
      return context;
    },
    async open(device) {
      const page = await device.newPage();
      page.setDefaultTimeout(15_000);
      page.on("pageerror", (e) => console.error(`the page: ${e}`));
      await page.goto(`${place.origin}/?c=${id}`);
      return page;
    },
  };
  try {
    await run(stage);
    return { said: await told(w.hf, id), frames, acts };
  } finally {
    await Promise.all(contexts.map((c) => c.close()));
    await provider.stop();
    place.stop();
  }
}

/** observe notes in a page when it gets each of its faces. */
function observe(gemini: string) {
  const faces: [string, number][] = [];
  Object.assign(globalThis, { GEMINI: gemini, faces });
  new MutationObserver(() => {
    const face = document.querySelector<HTMLElement>(".page")?.dataset["state"];
    if (face && face !== faces.at(-1)?.[0]) faces.push([face, performance.now()]);
  }).observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ["data-state"] });
}

/** talk presses the button until the page has been live. */
async function talk(page: Page): Promise<void> {
  await page.waitForFunction(
    () => {
      const { faces } = globalThis as unknown as { faces: [string, number][] };
      const face = faces.at(-1)?.[0];
      if (face === "idle" || face === "elsewhere") document.querySelector<HTMLElement>(".mic")?.click();
      return faces.slice(faces.findLastIndex(([f]) => f === "idle" || f === "elsewhere") + 1).some(([f]) => f === "live");
    },
    undefined,
    { polling: 50 },
  );
}

/** stored waits until the page says that all is. */
const stored = (page: Page) =>
  page.waitForFunction(() => /All that was said is stored/.test(document.querySelector(".stat")?.textContent ?? ""));

/** shown is what a page shows, as `told` has it. */
const shown = async (page: Page) => {
  for (const more of await page.$$(".more[aria-expanded=false]")) await more.click();
  return await page.evaluate(() => {
    const out: string[] = [];
    let last = "";
    for (const li of document.querySelectorAll(".talk > li")) {
      const [, who = "", text = ""] = /^(You|The model)(?:, typed)?: (.*)$/s.exec(li.querySelector("p")?.textContent ?? "") ?? [];
      if (!who) continue;
      const mine = text.replace(/You cut in.*/s, "");
      if (who === last) out.push(`${out.pop()} ${mine}`);
      else out.push(`${who}: ${mine}`);
      last = who;
    }
    const cards = [...document.querySelectorAll(".talk > .tcard")].map((c) => c.textContent ?? "");
    return [...out, ...cards].map((line) => line.replace(/\s+/g, " ").trim());
  });
};

/** exchanged are the milliseconds between a page's faces until it was live again. */
const exchanged = (page: Page) =>
  page.evaluate(() => {
    const { faces } = globalThis as unknown as { faces: [string, number][] };
    return faces.flatMap(([face, at], i) =>
      face === "live" && faces[i - 1]?.[0] === "resuming" && i > 2 ? [at - (faces[i - 1]?.[1] ?? 0)] : [],
    );
  });

const note = (what: string, ...ms: number[]) => {
  gaps[what] = [...(gaps[what] ?? []), ...ms];
};

const once = (acts: Map<string, number>) =>
  assert.deepEqual(
    [...acts.values()].filter((n) => n !== 1),
    [],
    JSON.stringify([...acts]),
  );

describe("the voice assistant", { concurrency: false, timeout: 600_000 }, () => {
  let w: World;
  let undisturbed: string[];
  let seen: string[];
  let frames: number;

  before(async () => {
    w = await world();
  });
  after(async () => {
    for (const [what, ms] of Object.entries(gaps)) {
      ms.sort((a, b) => a - b);
      console.log(
        `${what}: ${ms.length} times; median ${Math.round(ms[ms.length >> 1] ?? 0)} ms, longest ${Math.round(ms.at(-1) ?? 0)} ms`,
      );
    }
    await w?.stop();
  });

  test("holds ten turns with tools by its microphone", { timeout: 60_000 }, async () => {
    const {
      said,
      acts,
      frames: n,
    } = await on(w, { speaker: "microphone" }, async (s) => {
      const page = await s.open(await s.device());
      await talk(page);
      await s.over;
      await stored(page);
      seen = await shown(page);
    });
    assert.equal(said.length, 20 + 3);
    once(acts);
    assert.equal(acts.size, 3);
    [undisturbed, frames] = [said, n];
    console.log(`${frames} frames`);
  });

  /** same holds a conversation that is disturbed, and compares what was said, what the page shows of it, and what acted. */
  const same = async (what: string, after: After, run: (s: Stage) => Promise<Page>) => {
    let page: Page | undefined;
    const { said, acts } = await on(w, { after }, async (s) => {
      page = await run(s);
      await s.over;
      await stored(page);
      // Where its stream was cut, the page shows the last words when it has another.
      const until = performance.now() + 15_000;
      while (!isDeepStrictEqual(await shown(page), seen) && performance.now() < until) await page.waitForTimeout(50);
      assert.deepEqual(await shown(page), seen);
      if (what === "socket cut") note(what, ...(await exchanged(page)));
    });
    assert.deepEqual(said, undisturbed); // with the numbers of the runs that were started
    // A tool whose tab is gone, or that had no answer, asks again with the same key; what it did is in what was said.
    if (what !== "tab killed" && what !== "network back") once(acts);
  };

  const strides = 12;
  for (let n = 0; n < strides; n += all ? 1 : 7)
    test(`goes on where sockets are cut after frames ${n}, ${n + strides}, …`, () =>
      same(
        "socket cut",
        (i) => (i % strides === n ? 1006 : undefined),
        async (s) => {
          const page = await s.open(await s.device());
          await talk(page);
          return page;
        },
      ));

  /** every is a disturbance at every so many frames, which the provider waits for. */
  const every = (step: number, offset: number, disturb: () => Promise<void>, also = (_: boolean) => true): After => {
    let last: Promise<undefined> = Promise.resolve(undefined);
    return (i, toolRuns) => {
      if (i % step !== offset || !also(toolRuns)) return undefined;
      last = last.then(disturb).then(() => undefined);
      return last;
    };
  };

  for (let n = 0; n < (all ? 17 : 1); n++)
    test(`goes on in a new tab where its own is killed after frames ${n}, ${n + 17}, …`, async () => {
      let page: Page;
      let stage: Stage;
      let device: BrowserContext;
      const kill = async () => {
        await stored(page);
        const began = performance.now();
        const dead = page;
        await dead.goto("chrome://crash").catch(() => {});
        page = await stage.open(device);
        await talk(page);
        note("tab killed", performance.now() - began);
        await dead.close();
      };
      // A call of a tab that is gone is executed again when its claim is over, which takes half a minute. Its key is the same, so it acts once.
      const kills = every(17, n, kill, (toolRuns) => all || !toolRuns);
      await same("tab killed", kills, async (s) => {
        [stage, device] = [s, await s.device()];
        page = await s.open(device);
        await talk(page);
        await s.over;
        return page;
      });
    });

  for (let n = 0; n < (all ? 30 : 1); n++)
    test(`goes on after the network was off at frames ${n}, ${n + 30}, …`, async () => {
      let stage: Stage;
      let device: BrowserContext;
      const off = async () => {
        await device.setOffline(true);
        stage.provider.drop();
        await stage.page?.waitForSelector("[data-state=resuming]");
        await device.setOffline(false);
        const began = performance.now();
        await stage.page?.waitForSelector("[data-state=live]");
        note("network back", performance.now() - began);
      };
      await same("network back", every(30, n, off), async (s) => {
        [stage, device] = [s, await s.device()];
        s.page = await s.open(device);
        await talk(s.page);
        return s.page;
      });
    });

  for (let n = 0; n < (all ? 40 : 1); n++)
    test(`goes on where Holdfast is killed after frames ${n}, ${n + 40}, …`, async () => {
      const restarts: Promise<void>[] = [];
      let last = Promise.resolve();
      let page: Page;
      const restart = async () => {
        await w.restart();
        const began = performance.now();
        await stored(page);
        note("Holdfast back, and all stored", performance.now() - began);
      };
      await same(
        "Holdfast killed",
        (i) => {
          // Nobody waits for it.
          if (i % 40 === n) restarts.push((last = last.then(restart)));
          return undefined;
        },
        async (s) => {
          page = await s.open(await s.device());
          await talk(page);
          await s.over;
          await Promise.all(restarts);
          return page;
        },
      );
    });

  for (let n = 0; n < (all ? 19 : 1); n++)
    test(`goes on on another device that takes over after frames ${n}, ${n + 19}, …`, async () => {
      const pages: Page[] = [];
      const change = async () => {
        const [from, to] = pages as [Page, Page];
        await stored(from);
        const began = performance.now();
        await talk(to);
        note("taken over", performance.now() - began);
        await from.waitForSelector("[data-state=elsewhere]");
        pages.reverse();
      };
      await same("taken over", every(19, n, change), async (s) => {
        pages.push(await s.open(await s.device()), await s.open(await s.device()));
        await talk(pages[0] as Page);
        await s.over;
        return pages[0] as Page;
      });
    });
});
