import { type ConversationView, holdfast, type Watch } from "../../src/index.ts";
import { broken, equal, fails, ok, service, several, test, unique, until, user } from "./harness.ts";

const texts = (view: ConversationView) => view.messages.map((m) => m.text);

test("a watch begins with what there is, and shows each change", async (world) => {
  const as = { user: unique("u") };
  const id = unique("c");
  const writer = service(world, as).conversation(id);
  await writer.append({ role: "user", text: "one" }, { createIfMissing: true, conversation: { title: "Auth" } });
  const watch = service(world, as).conversation(id).watch({ messages: 10 });
  equal(watch.get(), undefined);
  const seen: string[][] = [];
  for await (const view of watch) {
    seen.push(texts(view));
    equal([view.conversation?.title, view.version, view.absent], ["Auth", seen.length, false]);
    if (seen.length === 3) break;
    await writer.append({ role: "assistant", text: seen.length === 1 ? "two" : "three" });
  }
  equal(seen, [["one"], ["one", "two"], ["one", "two", "three"]]);
});

test("what is not there yet is absent, and appears", async (world) => {
  const hf = user(world);
  const project = hf.project(unique("p"));
  const seen: unknown[] = [];
  for await (const view of project.watch()) {
    seen.push([view.absent, view.value?.title]);
    if (seen.length === 1) await project.put({ title: "Login" });
    else if (seen.length === 2) await project.delete();
    else break;
  }
  equal(seen, [
    [true, undefined],
    [false, "Login"],
    [true, undefined],
  ]);
});

test("all watches of a page are one stream, and the same thing is watched once", async (world) => {
  let streams = 0;
  const hf = user(world, { fetch: (input, init) => (String(input).endsWith("/Watch") && streams++, fetch(input, init)) });
  const talk = hf.conversation(unique("c"));
  await talk.create();
  const items = [
    talk.watch({ messages: 5 }),
    talk.watch({ messages: 5 }),
    hf.watch({ session: {} }),
    hf.watch({ api: "linear" }),
    hf.watch({ list: { tasks: { open: true } } }),
  ];
  const changed: Promise<void>[] = [];
  const stops = items.map((watch) => {
    let done: () => void = () => {};
    changed.push(new Promise<void>((d) => (done = d)));
    return watch.subscribe(() => watch.get() && done());
  });
  await Promise.all(changed);
  equal(streams, 1);
  const one = items[0]?.get();
  ok(one && one === items[0]?.get(), "that a view is one value until it changes");
  // As React's StrictMode does it.
  const again = items[0]?.subscribe(() => {});
  stops[0]?.();
  stops[1]?.();
  const more = items[0]?.subscribe(() => {});
  again?.();
  await talk.append({ role: "user", text: "still here" });
  await until(items[0] as Watch<ConversationView>, (v) => texts(v).includes("still here"));
  equal(streams, 1, "the streams");
  for (const stop of [...stops, more]) stop?.();
});

test("a watch that is cut at any byte loses nothing, and ends equal to the server", async (world) => {
  const as = { user: unique("u") };
  const cuts = Array.from({ length: 1200 }, (_, i) => i).filter((n) => n % (world.where === "node" ? 3 : 25) === 0);
  const lines = Array.from({ length: 16 }, (_, i) => cuts.filter((_, j) => j % 16 === i));
  await several(16, lines, async (mine) => {
    const id = unique("c");
    const writer = service(world, as).conversation(id);
    const wanted: string[] = [];
    const write = async () => {
      wanted.push(`${wanted.length} — ünïcode`);
      return await writer.append({ role: "user", text: wanted.at(-1) }, { createIfMissing: true });
    };
    await write();
    for (const bytes of mine) {
      // Some before it is watched, and one while it is, which comes before or after the cut.
      await write();
      let written: ReturnType<typeof write> | undefined;
      let version = 0;
      const hf = service(world, { ...as, url: broken(world, `stream${bytes}`) });
      const view = await until(hf.conversation(id).watch({ messages: 200 }), (v) => {
        written ??= write();
        equal(texts(v), wanted.slice(0, v.messages.length), "what is shown");
        ok(v.version >= version, "that versions rise");
        version = v.version;
        return v.messages.length === wanted.length;
      });
      equal([texts(view), view.version], [wanted, (await written)?.version], `the end after a cut at ${bytes}`);
    }
  });
});

test("a path that goes silent is noticed, and the watch goes on", async (world) => {
  const as = { user: unique("u") };
  const id = unique("c");
  const writer = service(world, as).conversation(id);
  await writer.append({ role: "user", text: "one" }, { createIfMissing: true });
  const hf = service(world, { ...as, url: broken(world, "mute40", "hole", "mute5000"), watchTimeout: 1500, attemptTimeout: 700 });
  let count = 1;
  await until(hf.conversation(id).watch({ messages: 10 }), (view) => {
    equal(texts(view).length, count, "the messages");
    if (count++ === 1) void writer.append({ role: "assistant", text: "two" });
    return count === 3;
  });
});

test("a machine that slept, or is online again, connects again at once", async (world) => {
  const as = { user: unique("u") };
  const clock = Date.now;
  const wakes: { [what: string]: () => void } = {
    slept: () => {
      Date.now = () => clock() + 3_600_000;
    },
  };
  if (world.where === "chromium") wakes["online"] = () => dispatchEvent(new Event("online"));
  for (const wake of Object.values(wakes)) {
    const id = unique("c");
    const writer = service(world, as).conversation(id);
    await writer.append({ role: "user", text: "one" }, { createIfMissing: true });
    // Without it the dead path would be noticed after 45 s.
    const hf = service(world, { ...as, url: broken(world, "mute") });
    const began = performance.now();
    try {
      let first = true;
      await until(hf.conversation(id).watch({ messages: 10 }), (view) => {
        if (first) void writer.append({ role: "assistant", text: "two" }).then(wake);
        first = false;
        return view.messages.length === 2;
      });
    } finally {
      Date.now = clock;
    }
    ok(performance.now() - began < 20_000, "that it did not wait for the heartbeats");
  }
});

test("a watch ends with SESSION_REVOKED, and nothing more is sent", async (world) => {
  const name = unique("u");
  let streams = 0;
  const hf = holdfast({
    url: world.api,
    session: { storage: null, signIn: () => service(world).rpc.session.createSession({ user: name }) },
    fetch: (input, init) => (String(input).endsWith("/Watch") && streams++, fetch(input, init)),
  });
  const watch = hf.watch({ session: {} });
  let views = 0;
  const e = await fails(
    (async () => {
      for await (const _ of watch) if (views++ === 0) await service(world).rpc.session.endSessions({ scope: "user", user: name });
    })(),
    "SESSION_REVOKED",
  );
  ok(views >= 1 && e.retry !== "same", "that it was shown first");
  const before = streams;
  await new Promise((done) => setTimeout(done, 500));
  equal(streams, before, "the streams");
});

test("a sign-out ends the watches, also where the server cannot be told", async (world) => {
  const name = unique("u");
  const hf = holdfast({
    url: world.api,
    session: { storage: null, signIn: () => service(world).rpc.session.createSession({ user: name }) },
    timeout: 1000,
    fetch: (input, init) => (String(input).endsWith("/EndSessions") ? Promise.reject(new Error("away")) : fetch(input, init)),
  });
  await fails(
    (async () => {
      for await (const _ of hf.watch({ session: {} })) await hf.signOut({ timeout: 300 }).catch(() => {});
    })(),
    "SIGNED_OUT",
  );
});

test("clients that act for different users share nothing, whatever their tabs are called", async (world) => {
  const hf = service(world, { tabs: "one" });
  const [ada, bob] = [hf.as(unique("ada")), hf.as(unique("bob"))];
  await ada.preferences.update({ voice: "hers" });
  const voice = async (as: typeof hf) =>
    (await until(as.watch({ preferences: true }), (v) => v.things.size > 0)).things.get("preferences")?.preferences?.voice;
  const stop = ada.watch({ preferences: true }).subscribe(() => {});
  equal([await voice(ada), await voice(bob)], ["hers", undefined]);
  stop();
  for (const as of [hf, ada, bob]) await as[Symbol.asyncDispose]();
});

test("an item that may not be watched ends, and the others go on", async (world) => {
  const hf = user(world);
  const talk = hf.conversation(unique("c"));
  await talk.create();
  const bad = hf.watch({ session: { user: "another" } });
  const refused = fails(
    until(bad, () => false),
    "ROLE_REQUIRED",
  ).catch((e) => e);
  await until(talk.watch(), (v) => v.conversation !== undefined);
  const e = await refused;
  ok(hf.is(e), String(e));
});
