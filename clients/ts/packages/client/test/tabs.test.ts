// What only tabs of one browser have: a storage, locks and messages that they share.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import type { Page } from "playwright-core";
import { type Server, start } from "../../../test/server.ts";
import { holdfast, type SignedIn } from "../src/index.ts";
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

  /** open opens tabs of one browser, as a user who is signed in at the application; each sees its access tokens expire at once. */
  async function open(count: number): Promise<{ tabs: Page[]; refreshes: () => number; end: () => Promise<void>; user: string }> {
    const context = await chromium.browser.newContext();
    const user = `u-${Math.random().toString(36).slice(2)}`;
    let refreshes = 0;
    await context.exposeFunction("signIn", async () => {
      const { tokens } = await holdfast({ url: server.api, token: server.token }).rpc.session.createSession({ user });
      return { ...tokens, accessExpiresIn: "0s" };
    });
    await context.exposeFunction("refreshed", () => refreshes++);
    const tabs = await Promise.all(Array.from({ length: count }, () => chromium.page(context)));
    for (const tab of tabs)
      await tab.evaluate(async (url) => {
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
            return Response.json({ tokens: { ...answer.tokens, accessExpiresIn: "0s" } });
          },
        });
      }, server.api);
    return { tabs, refreshes: () => refreshes, end: () => context.close(), user };
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
});
