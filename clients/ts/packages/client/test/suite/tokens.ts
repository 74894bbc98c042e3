import { type Holdfast, holdfast, type SignedIn, type SignIn } from "../../src/index.ts";
import { equal, fails, ok, service, test, unique, type World } from "./harness.ts";

/** A user's page: its client, and what went over the network. */
interface Page {
  hf: Holdfast;
  /** How often each call was sent. */
  sent: { [call: string]: number };
}

const RefreshSession = "RefreshSession";

/** shared is a storage as all tabs of a browser see it. */
function shared(): NonNullable<SignIn["storage"]> {
  const kept = new Map<string, string>();
  return { getItem: (k) => kept.get(k) ?? null, setItem: (k, v) => void kept.set(k, v) };
}

/** backend is what a page's signIn asks: it makes a session with the service's key. */
function backend(world: World, user: string): () => Promise<SignedIn> {
  return async () => {
    const { tokens } = await service(world).rpc.session.createSession({ user });
    if (!tokens) throw new Error("no tokens");
    return tokens;
  };
}

/** page opens a page. A page that is short of time sees every access token expire at once. */
function page(
  world: World,
  session: SignIn,
  more: { short?: boolean; meet?: (call: string, init: RequestInit) => Promise<Response> | undefined; url?: string } = {},
): Page {
  const sent: Page["sent"] = {};
  const hf = holdfast({
    url: more.url ?? world.api,
    session,
    attemptTimeout: 2000,
    async fetch(input, init) {
      const call = String(input).split("/").at(-1) as string;
      sent[call] = (sent[call] ?? 0) + 1;
      const met = more.meet?.(call, init as RequestInit);
      if (met) return await met;
      const response = await fetch(input, init);
      if (!more.short || call !== RefreshSession || !response.ok) return response;
      const answer = (await response.json()) as { tokens: SignedIn };
      return Response.json({ ...answer, tokens: { ...answer.tokens, accessExpiresIn: "0s" } });
    },
  });
  return { hf, sent };
}

/** refusal is an answer as the server gives it for a credential. */
function refusal(reason: string, retry = "REAUTH"): Response {
  return Response.json(
    {
      code: "unauthenticated",
      message: "as asked",
      details: [{ type: "holdfast.error.v1.Problem", debug: { reason, retry: `RETRY_${retry}` } }],
    },
    { status: 401 },
  );
}

test("a page signs in with its first calls, once", async (world) => {
  const user = unique("u");
  let asked = 0;
  const { hf } = page(world, { storage: shared(), signIn: () => (asked++, backend(world, user)()) });
  equal(hf.status.get().signedIn, "unknown");
  const sessions = await Promise.all(Array.from({ length: 5 }, () => hf.session().get()));
  equal(
    [asked, new Set(sessions.map((s) => s.sessionId)).size, sessions[0]?.owner, hf.status.get().signedIn],
    [1, 1, user, "in"],
  );
});

test("signIn may answer what CreateSession answered", async (world) => {
  const { hf } = page(world, {
    storage: null,
    signIn: async () => await service(world).rpc.session.createSession({ user: unique("u") }),
  });
  ok((await hf.session().get()).current);
});

test("a page goes on with the tokens that are kept, after a reload", async (world) => {
  const storage = shared();
  const first = page(world, { storage, signIn: backend(world, unique("u")) });
  const { sessionId } = await first.hf.session().get();
  const second = page(world, { storage, signIn: () => Promise.reject(new Error("it asked")) });
  equal([second.hf.status.get().signedIn, (await second.hf.session().get()).sessionId], ["in", sessionId]);
});

test("an access token is refreshed before it is too old, by this machine's clock alone", async (world) => {
  const tokens = backend(world, unique("u"));
  const { hf, sent } = page(world, {
    storage: null,
    signIn: async () => ({ ...(await tokens()), accessExpiresIn: "0s", accessExpireTime: "1970-01-01T00:00:00Z" }),
  });
  await hf.signIn();
  await Promise.all(Array.from({ length: 5 }, () => hf.session().get()));
  equal(sent, { RefreshSession: 1, GetSession: 5 });
});

test("a call that meets TOKEN_EXPIRED is sent again after one refresh for all", async (world) => {
  let old: string | null = null;
  const { hf, sent } = page(
    world,
    { storage: null, signIn: backend(world, unique("u")) },
    {
      meet(call, init) {
        const bearer = new Headers(init.headers).get("Authorization");
        if (call !== "GetSession" || (old && old !== bearer)) return undefined;
        old = bearer;
        return Promise.resolve(refusal("TOKEN_EXPIRED"));
      },
    },
  );
  await Promise.all(Array.from({ length: 5 }, () => hf.session().get()));
  equal(sent, { GetSession: 10, RefreshSession: 1 });
});

test("tabs that refresh at once, again and again, stay signed in", async (world) => {
  const storage = shared();
  const session = { storage, signIn: backend(world, unique("u")) };
  const tabs = Array.from({ length: 5 }, () => page(world, session, { short: true }));
  await tabs[0]?.hf.session().get();
  for (let round = 0; round < 10; round++) await Promise.all(tabs.map((t) => t.hf.session().get()));
  equal(
    tabs.map((t) => t.hf.status.get().signedIn),
    ["in", "in", "in", "in", "in"],
  );
});

test("a refresh whose answer is lost is repeated, and the session goes on", async (world) => {
  const tokens = backend(world, unique("u"));
  let lost = 0;
  const { hf, sent } = page(
    world,
    { storage: null, signIn: async () => ({ ...(await tokens()), accessExpiresIn: "0s" }) },
    {
      meet: (call, init) =>
        call === RefreshSession && lost++ < 2
          ? fetch(`${world.api}/holdfast.session.v1.SessionService/RefreshSession`, init).then(() =>
              Promise.reject(new TypeError("cut")),
            )
          : undefined,
    },
  );
  await hf.signIn();
  ok((await hf.session().get()).current);
  equal(sent[RefreshSession], 3);
});

test("a refresh that hangs fails the calls that wait, and the next ones go through", async (world) => {
  const tokens = backend(world, unique("u"));
  let down = true;
  const { hf } = page(
    world,
    { storage: null, signIn: async () => ({ ...(await tokens()), accessExpiresIn: "0s" }) },
    {
      meet: (call) => (call === RefreshSession && down ? new Promise(() => {}) : undefined),
    },
  );
  await hf.signIn();
  await fails(hf.session().get({ timeout: 300 }), "DEADLINE_EXCEEDED");
  down = false;
  ok((await hf.session().get()).current);
  equal(hf.status.get().signedIn, "in");
});

test("a signIn that throws or hangs fails the calls that wait, and never wedges the client", async (world) => {
  const tokens = backend(world, unique("u"));
  let how: "hangs" | "throws" | "works" = "throws";
  const { hf } = page(world, {
    storage: null,
    signIn: () => (how === "throws" ? Promise.reject(new Error("backend is down")) : tokens()),
  });
  const e = await fails(hf.session().get({ timeout: 50 }), "SIGN_IN_FAILED");
  ok(e.message.includes("backend is down") && (e.cause as Error).message === "backend is down", "the cause");
  how = "works";
  ok((await hf.session().get()).current, "a call that waits until signIn works");
  const slow = page(world, { storage: null, signIn: () => (how === "hangs" ? new Promise(() => {}) : tokens()) });
  how = "hangs";
  await fails(slow.hf.session().get({ timeout: 100 }), "DEADLINE_EXCEEDED");
});

test("a backend that is down is not asked with every call", async (world) => {
  let asked = 0;
  const { hf } = page(world, { storage: null, signIn: () => (asked++, Promise.reject(new Error("down"))) });
  await Promise.all(
    Array.from({ length: 50 }, () =>
      hf
        .session()
        .get({ timeout: 400 })
        .catch(() => {}),
    ),
  );
  ok(asked >= 1 && asked <= 6, `asked ${asked} times: that it is asked a few times`);
});

test("nobody signed in at the application is an error, and asked only once", async (world) => {
  let asked = 0;
  const { hf, sent } = page(world, { storage: shared(), signIn: async () => (asked++, null) });
  await fails(hf.session().get(), "SIGNED_OUT");
  await fails(hf.session().get(), "SIGNED_OUT");
  equal([asked, sent, hf.status.get().signedIn], [1, {}, "out"]);
});

for (const reason of ["SESSION_REVOKED", "SESSION_EXPIRED"] as const)
  test(`after ${reason} nothing is sent until someone signs in`, async (world) => {
    let asked = 0;
    const tokens = backend(world, unique("u"));
    let over = false;
    const { hf, sent } = page(
      world,
      { storage: shared(), signIn: () => (asked++, tokens()) },
      { meet: () => (over ? Promise.resolve(refusal(reason)) : undefined) },
    );
    await hf.session().get();
    over = true;
    await fails(hf.session().get(), reason);
    equal([asked, sent, hf.status.get()], [1, { GetSession: 2 }, { signedIn: "out", reachable: true, reason }]);
    for (let i = 0; i < 3; i++) await fails(hf.session().get(), reason);
    equal(sent, { GetSession: 2 }, "what was sent");
    over = false;
    await hf.signIn();
    ok((await hf.session().get()).current);
    equal([asked, hf.status.get().signedIn, hf.status.get().reason], [2, "in", undefined]);
  });

test("a session that is revoked on the server ends the page's, also where it is found out by a refresh", async (world) => {
  const user = unique("u");
  const { hf, sent } = page(world, { storage: null, signIn: backend(world, user) }, { short: true });
  await hf.session().get();
  const refresh = page(world, {
    storage: null,
    signIn: async () => ({ ...(await backend(world, user)()), accessExpiresIn: "0s" }),
  });
  await refresh.hf.signIn();
  await service(world).rpc.session.endSessions({ scope: "user", user });
  await fails(refresh.hf.session().get(), "SESSION_REVOKED");
  equal(refresh.sent, { RefreshSession: 1 });
  // A server trusts what it verified for up to two seconds.
  for (let i = 0; i < 100 && hf.status.get().signedIn === "in"; i++) {
    await hf
      .session()
      .get()
      .catch(() => {});
    await new Promise((done) => setTimeout(done, 100));
  }
  const before = { ...sent };
  await fails(hf.session().get(), "SESSION_REVOKED");
  equal(sent, before);
});

test("a sign-out reaches every tab, and a sign-in too", async (world) => {
  const storage = shared();
  const user = unique("u");
  const session = { storage, signIn: backend(world, user) };
  const [one, two, three] = [page(world, session), page(world, session), page(world, session)];
  await one.hf.session().get();
  await two.hf.session().get();
  await one.hf.signOut({ everywhere: true });
  await fails(one.hf.session().get(), "SIGNED_OUT");
  const standing = async (p: Page, want: string) => {
    for (let i = 0; i < 100 && p.hf.status.get().signedIn !== want; i++) await new Promise((done) => setTimeout(done, 20));
  };
  if (typeof BroadcastChannel === "function") {
    await standing(two.hf.status.get().signedIn === "out" ? one : two, "out");
    await fails(two.hf.session().get(), "SIGNED_OUT");
    equal(two.sent, { GetSession: 1 }, "what the other tab sent");
  }
  const late = page(world, session);
  await fails(late.hf.session().get(), "SIGNED_OUT"); // a tab that opens now
  await late.hf.signIn();
  if (typeof BroadcastChannel === "function") {
    await standing(three, "in");
    ok((await three.hf.session().get()).current);
  }
  equal((await service(world).rpc.session.listSessions({ user })).sessions.length, 1, "the sessions that are left");
});

test("a sign-out counts here when the server cannot be told, and beats a refresh on its way", async (world) => {
  let release: () => void = () => {};
  const gate = new Promise<void>((done) => {
    release = done;
  });
  const tokens = backend(world, unique("u"));
  const { hf } = page(
    world,
    { storage: shared(), signIn: tokens },
    {
      meet(call, init) {
        if (call === "EndSessions") return Promise.reject(new TypeError("no network"));
        if (call === "GetSession" && new Headers(init.headers).has("Authorization") && !seen++)
          return Promise.resolve(refusal("TOKEN_EXPIRED"));
        if (call === RefreshSession)
          return gate.then(() => fetch(`${world.api}/holdfast.session.v1.SessionService/RefreshSession`, init));
        return undefined;
      },
    },
  );
  let seen = 0;
  const call = hf
    .session()
    .get()
    .catch((e) => e);
  for (let i = 0; i < 200 && hf.status.get().signedIn !== "in"; i++) await new Promise((done) => setTimeout(done, 10));
  await fails(hf.signOut({ timeout: 300 }), "DEADLINE_EXCEEDED");
  release();
  ok(hf.is(await call, "SIGNED_OUT", "TOKEN_EXPIRED"), "that the call fails");
  equal(hf.status.get().signedIn, "out");
});

test("a tab that signed out is not signed out by what another's older calls met", async (world) => {
  const storage = shared();
  const user = unique("u");
  const first = page(
    world,
    { storage, signIn: backend(world, user) },
    { meet: (call) => (call === "GetSession" && slow ? slow.then(() => refusal("SESSION_REVOKED")) : undefined) },
  );
  let slow: Promise<void> | undefined;
  await first.hf.session().get();
  let release: () => void = () => {};
  slow = new Promise((done) => {
    release = done;
  });
  const call = first.hf.session().get();
  await new Promise((done) => setTimeout(done, 50));
  const second = page(world, { storage, signIn: backend(world, user) });
  await second.hf.signIn();
  release();
  slow = undefined;
  ok((await call).current, "that it is sent again with the new session's token");
});
