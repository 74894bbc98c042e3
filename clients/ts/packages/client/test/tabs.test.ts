// What only tabs of one browser have: a storage, locks and messages that they share.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import type { BrowserContext, CDPSession, Page } from "playwright-core";
import { type Server, start } from "../../../test/server.ts";
import { type ConversationView, type Holdfast, holdfast, type SignedIn, type View, type Watch } from "../src/index.ts";
import { inChromium, type Pages } from "./environments.ts";

describe("tabs", { concurrency: false }, () => {
  let server: Server;
  let chromium: Pages;
  before(async () => {
    [server, chromium] = await Promise.all([start(), inChromium()]);
  });
  after(async () => {
    await chromium?.stop();
    await server?.stop();
  });

  /** open opens tabs of one browser, as a user who is signed in at the application; each sees its access tokens expire after so long. */
  async function open(
    count: number,
    expires = "0s",
  ): Promise<{
    tabs: Page[];
    refreshes: () => number;
    end: () => Promise<void>;
    user: string;
    context: BrowserContext;
    begin: (tab: Page) => Promise<void>;
  }> {
    const context = await chromium.browser.newContext();
    const user = `u-${Math.random().toString(36).slice(2)}`;
    let refreshes = 0;
    await context.exposeFunction("signIn", async () => {
      const { tokens } = await holdfast({ url: server.api, token: server.token }).rpc.session.createSession({ user });
      return { ...tokens, accessExpiresIn: expires };
    });
    await context.exposeFunction("refreshed", () => refreshes++);
    const tabs = await Promise.all(Array.from({ length: count }, () => chromium.page(context)));
    const begin = (tab: Page) =>
      tab.evaluate(
        async ([url, expires]) => {
          const path = "/client.js";
          const { holdfast } = (await import(path)) as typeof import("../src/index.ts");
          const page = globalThis as unknown as {
            signIn: () => Promise<SignedIn>;
            refreshed: () => void;
            hf: ReturnType<typeof holdfast>;
          };
          page.hf = holdfast({
            url,
            session: page.signIn,
            async fetch(input, init) {
              const response = await fetch(input, init);
              if (!String(input).endsWith("/RefreshSession") || !response.ok) return response;
              page.refreshed();
              const answer = (await response.json()) as { tokens: SignedIn };
              return Response.json({ tokens: { ...answer.tokens, accessExpiresIn: expires } });
            },
          });
        },
        [server.api, expires] as const,
      );
    for (const tab of tabs) await begin(tab);
    return { tabs, refreshes: () => refreshes, end: () => context.close(), user, context, begin };
  }

  const session = (tab: Page) =>
    tab.evaluate(async () => {
      const { hf } = globalThis as unknown as { hf: ReturnType<typeof holdfast> };
      return await hf
        .session()
        .get()
        .then(
          (s) => s.sessionId,
          (e: { reason?: string }) => e.reason,
        );
    });
  const standing = (tab: Page) =>
    tab.evaluate(() => (globalThis as unknown as { hf: ReturnType<typeof holdfast> }).hf.status.get().signedIn);

  test("five tabs refresh at once, a hundred times, and nobody is signed out", { timeout: 120_000 }, async () => {
    const { tabs, refreshes, end } = await open(5);
    const first = await session(tabs[0] as Page);
    for (let round = 0; round < 100; round++)
      assert.deepEqual(await Promise.all(tabs.map(session)), Array(5).fill(first), `round ${round}`);
    console.log(`refreshes: ${refreshes()}`);
    assert.ok(refreshes() >= 100, "that they refreshed");
    await end();
  });

  test("a sign-out everywhere reaches every tab, which then sends nothing", { timeout: 60_000 }, async () => {
    const { tabs, end, user } = await open(4);
    await Promise.all(tabs.map(session));
    await tabs[0]?.evaluate(() =>
      (globalThis as unknown as { hf: ReturnType<typeof holdfast> }).hf.signOut({ everywhere: true }),
    );
    for (const tab of tabs)
      await tab.waitForFunction(
        () => (globalThis as unknown as { hf: ReturnType<typeof holdfast> }).hf.status.get().signedIn === "out",
      );
    let sent = 0;
    for (const tab of tabs) tab.on("request", () => sent++);
    assert.deepEqual(await Promise.all(tabs.map(session)), Array(4).fill("SIGNED_OUT"));
    assert.equal(sent, 0);
    assert.equal(
      (await holdfast({ url: server.api, token: server.token }).rpc.session.listSessions({ user })).sessions.length,
      0,
    );
    // Someone signs in again in one of them.
    await tabs[2]?.evaluate(() => (globalThis as unknown as { hf: ReturnType<typeof holdfast> }).hf.signIn());
    for (const tab of tabs)
      await tab.waitForFunction(
        () => (globalThis as unknown as { hf: ReturnType<typeof holdfast> }).hf.status.get().signedIn === "in",
      );
    assert.equal(new Set(await Promise.all(tabs.map(session))).size, 1);
    await end();
  });

  test("a tab that is closed in the middle of a refresh holds nobody up", { timeout: 60_000 }, async () => {
    const { tabs, end } = await open(3);
    await session(tabs[0] as Page);
    await tabs[0]?.route("**/RefreshSession", () => {}); // never answered, with the lock held
    void session(tabs[0] as Page).catch(() => {});
    await tabs[0]?.waitForFunction(async () => ((await navigator.locks.query()).held ?? []).length > 0);
    const others = tabs.slice(1).map(session);
    await tabs[0]?.close();
    assert.equal(new Set(await Promise.all(others)).size, 1);
    assert.deepEqual(await Promise.all(tabs.slice(1).map(standing)), ["in", "in"]);
    await end();
  });

  interface Watching {
    hf: Holdfast;
    talk: Watch<ConversationView>;
    others: Watch<View>[];
    versions: number[];
  }
  /** follow has a tab watch a conversation, and three other things. */
  const follow = (tab: Page, id: string) =>
    tab.evaluate((id) => {
      const page = globalThis as unknown as Watching;
      page.talk = page.hf.conversation(id).watch({ messages: 100 });
      page.others = [
        page.hf.watch({ session: {} }),
        page.hf.watch({ list: { tasks: { open: true } } }),
        page.hf.watch({ preferences: true }),
      ];
      for (const watch of [page.talk, ...page.others]) watch.subscribe(() => {});
      page.versions = [];
      page.talk.subscribe(() => page.versions.push(page.talk.get()?.version ?? 0));
    }, id);
  /** reaches waits until a tab shows so many messages and all else, and resolves to the messages. */
  const reaches = async (tab: Page, count: number): Promise<string[]> => {
    await tab.waitForFunction(
      (count) => {
        const page = globalThis as unknown as Watching;
        return page.talk.get()?.messages.length === count && page.others.every((w) => w.get());
      },
      count,
      { timeout: 30_000, polling: 20 },
    );
    return await tab.evaluate(() => (globalThis as unknown as Watching).talk.get()?.messages.map((m) => m.text) ?? []);
  };
  /** streams has, for each stream that was opened, which tab did it; the last one leads. */
  function streams(tabs: Page[], opened: Page[] = []): Page[] {
    for (const tab of tabs)
      tab.on("request", (r) => void (r.url().endsWith("/Watch") && r.method() === "POST" && opened.push(tab)));
    return opened;
  }
  /** writer appends to the conversation as the user's backend. */
  const writer = (user: string, id: string) => {
    const texts: string[] = [];
    const talk = holdfast({ url: server.api, token: server.token, user }).conversation(id);
    return {
      texts,
      async write() {
        texts.push(`m${texts.length}`);
        await talk.append({ role: "user", text: texts.at(-1) }, { createIfMissing: true });
      },
    };
  };

  test("seven tabs with four watches each are one stream, and every tab can call", { timeout: 120_000 }, async () => {
    const { tabs, end, user } = await open(7, "900s");
    const opened = streams(tabs);
    const { write, texts } = writer(user, "seven");
    await write();
    await session(tabs[0] as Page);
    for (const tab of tabs) await follow(tab, "seven");
    for (const tab of tabs) assert.deepEqual(await reaches(tab, 1), texts);
    for (let i = 2; i < 12; i++) {
      await write();
      for (const tab of tabs) assert.deepEqual(await reaches(tab, i), texts);
    }
    assert.equal(new Set(await Promise.all(tabs.map(session))).size, 1);
    assert.equal(new Set(opened).size, 1, "the tabs with a stream");
    // What a tab watches that no other does reaches it, too, and what it no longer watches is dropped.
    const last = tabs.at(-1) as Page;
    await last.evaluate(async () => {
      const { hf } = globalThis as unknown as Watching;
      for await (const view of hf.project("of-one-tab").watch()) {
        if (view.value) break;
        await hf.project("of-one-tab").put({ title: "Mine" });
      }
    });
    assert.equal(new Set(opened).size, 1, "the tabs with a stream");
    await end();
  });

  test("tabs whose leader closes go on with another, and miss nothing", { timeout: 120_000 }, async () => {
    const { tabs, end, user } = await open(4, "900s");
    const opened = streams(tabs);
    const { write, texts } = writer(user, "closing");
    await write();
    for (const tab of tabs) await follow(tab, "closing");
    for (const tab of tabs) await reaches(tab, 1);
    const left = [...tabs];
    while (left.length > 1) {
      const leads = opened.at(-1) as Page;
      left.splice(left.indexOf(leads), 1);
      await Promise.all([leads.close(), write()]);
      await write();
      for (const tab of left) assert.deepEqual(await reaches(tab, texts.length), texts);
    }
    await end();
  });

  test("tabs whose leader is frozen go on with another, and the frozen one catches up when it thaws", {
    timeout: 120_000,
  }, async () => {
    const { tabs, end, user, context } = await open(3, "900s");
    const opened = streams(tabs);
    const { write, texts } = writer(user, "frozen");
    await write();
    for (const tab of tabs) await follow(tab, "frozen");
    for (const tab of tabs) await reaches(tab, 1);
    for (const which of ["leader", "another"]) {
      const frozen = tabs.find((tab) => (tab === opened.at(-1)) === (which === "leader")) as Page;
      const others = tabs.filter((tab) => tab !== frozen);
      const cdp = await context.newCDPSession(frozen);
      await cdp.send("Page.setWebLifecycleState", { state: "frozen" });
      await write();
      for (const tab of others) assert.deepEqual(await reaches(tab, texts.length), texts);
      await write();
      for (const tab of others) assert.deepEqual(await reaches(tab, texts.length), texts);
      const thawed = performance.now();
      await cdp.send("Page.setWebLifecycleState", { state: "active" });
      assert.deepEqual(await reaches(frozen, texts.length), texts);
      console.log(`the ${which} was frozen, and resumed after ${Math.round(performance.now() - thawed)} ms`);
      await write();
      for (const tab of tabs) assert.deepEqual(await reaches(tab, texts.length), texts);
    }
    await end();
  });

  test("tabs that close, open and freeze at random all end equal, and never go back", {
    timeout: 120_000,
  }, async () => {
    const { tabs, end, user, context, begin } = await open(4, "900s");
    const opened = streams(tabs);
    const { write, texts } = writer(user, "random");
    await write();
    for (const tab of tabs) await follow(tab, "random");
    for (const tab of tabs) await reaches(tab, 1);
    const frozen = new Map<Page, CDPSession>();
    let seed = Date.now() % 1e6;
    console.log(`seed: ${seed}`);
    const dice = (n: number) => {
      seed = (seed * 48271) % 2147483647;
      return seed % n;
    };
    for (let round = 0; round < 16; round++) {
      const tab = tabs[dice(tabs.length)] as Page;
      const cdp = frozen.get(tab);
      if (cdp) {
        await cdp.send("Page.setWebLifecycleState", { state: "active" });
        frozen.delete(tab);
      } else if (dice(3) === 0 && frozen.size < tabs.length - 1) {
        const cdp = await context.newCDPSession(tab);
        await cdp.send("Page.setWebLifecycleState", { state: "frozen" });
        frozen.set(tab, cdp);
      } else if (dice(2) === 0 || tab === opened.at(-1)) {
        await tab.close();
        const next = await chromium.page(context);
        await begin(next);
        tabs[tabs.indexOf(tab)] = next;
        streams([next], opened);
        await follow(next, "random");
      }
      await write();
      if (dice(2) === 0) continue;
      for (const tab of tabs) if (!frozen.has(tab)) assert.deepEqual(await reaches(tab, texts.length), texts, `round ${round}`);
    }
    for (const cdp of frozen.values()) await cdp.send("Page.setWebLifecycleState", { state: "active" });
    for (const tab of tabs) {
      assert.deepEqual(await reaches(tab, texts.length), texts);
      const versions = await tab.evaluate(() => (globalThis as unknown as Watching).versions);
      assert.deepEqual(
        versions,
        [...versions].sort((a, b) => a - b),
        "the versions that a tab has shown",
      );
    }
    await end();
  });

  test("a client that is closed leaves the others their stream, and fails at nothing", { timeout: 60_000 }, async () => {
    const { tabs, end, user } = await open(3, "900s");
    const opened = streams(tabs);
    const failures: string[] = [];
    for (const tab of tabs) tab.on("pageerror", (e) => failures.push(String(e)));
    const { write, texts } = writer(user, "disposed");
    await write();
    for (const tab of tabs) await follow(tab, "disposed");
    for (const tab of tabs) await reaches(tab, 1);
    const left = [...tabs];
    while (left.length > 1) {
      const leads = opened.at(-1) as Page;
      left.splice(left.indexOf(leads), 1);
      await leads.evaluate(async () => {
        const { hf } = globalThis as unknown as Watching;
        const stop = hf
          .project("p")
          .watch()
          .subscribe(() => {});
        await hf[Symbol.asyncDispose]();
        stop();
      });
      await write();
      for (const tab of left) assert.deepEqual(await reaches(tab, texts.length), texts);
    }
    assert.deepEqual(failures, []);
    await end();
  });

  test("a sign-out ends the watches of all tabs, and a sign-in lets them begin again", { timeout: 60_000 }, async () => {
    const { tabs, end, user } = await open(3, "900s");
    const { write } = writer(user, "out");
    await write();
    for (const tab of tabs) await follow(tab, "out");
    for (const tab of tabs) await reaches(tab, 1);
    await tabs[1]?.evaluate(() => (globalThis as unknown as Watching).hf.signOut());
    for (const tab of tabs) await tab.waitForFunction(() => (globalThis as unknown as Watching).talk.error() !== undefined);
    await tabs[2]?.evaluate(() => (globalThis as unknown as Watching).hf.signIn());
    for (const tab of tabs) {
      await tab.waitForFunction(() => (globalThis as unknown as Watching).hf.status.get().signedIn === "in");
      await follow(tab, "out");
    }
    for (const tab of tabs) await reaches(tab, 1);
    await end();
  });
});
