import { type Assistant, holdfast, type Watch } from "../../src/index.ts";
import { share } from "../../src/share.ts";
import { equal, fails, ok, service, test, unique, until, user } from "./harness.ts";

test("what did not change stays the same object", async (world) => {
  const was = { a: [{ n: 1 }, { n: 2 }], b: { c: null, d: undefined }, e: "x" };
  ok(share(was, structuredClone(was)) === was, "equal is the same");
  const now = share(was, { ...structuredClone(was), a: [{ n: 1 }, { n: 3 }] });
  ok(now !== was && now.a[0] === was.a[0] && now.b === was.b && now.a[1]?.n === 3, "what is equal is shared");
  ok(!Array.isArray(share<unknown>([], {})) && share<unknown>({ a: 1 }, null) === null, "kinds");
  const fewer = share<object>({ a: 1, b: 2 }, { a: 1 });
  equal(fewer, { a: 1 });
  equal(share<object>({ a: 1 }, { a: 1, b: undefined }) as object, { a: 1, b: undefined });

  const hf = user(world);
  const talk = hf.conversation(unique("c"));
  await talk.append([{ role: "user", text: "one" }], { createIfMissing: true });
  const watch = talk.watch({ messages: 10 });
  const first = await until(watch, () => true);
  const stop = watch.subscribe(() => {});
  await until(watch, () => true);
  const before = watch.get();
  await talk.update({ title: "new" });
  const after = await until(watch, (v) => v.conversation?.title === "new");
  ok(before && before.messages === after.messages && before.messages[0] === after.messages[0], "the messages");
  ok(first !== after, "the view");
  ok(talk.watch({ messages: 10 }).get() === watch.get(), "two watches of the same show the same value");
  stop();
});

test("the voice is what is said right now, and then what is stored", async (world) => {
  const hf = user(world);
  const talk = hf.conversation(unique("c"));
  await talk.create();
  const { lease } = await talk.live.connect({ provider: "developer_api" });
  const fencingToken = lease?.fencingToken ?? 0;
  const heard: string[] = [];
  let n = 0;
  const frame = (object: object) => talk.live.ingest({ fencingToken, frames: [{ clientIndex: ++n, object: object as never }] });
  for await (const view of talk.watch({ messages: 5, signals: true })) {
    const { voice } = view;
    heard.push(`${voice.status} ${voice.lastTranscription}`);
    if (heard.length === 1) {
      equal(voice, { status: "idle", lastTranscription: "", interim: false });
      await frame({ setup: { model: "models/gemini-live" } });
      await frame({ serverContent: { inputTranscription: { text: "Hello" } } });
    } else if (voice.status === "listening" && voice.lastTranscription === "Hello" && n === 2)
      await frame({ serverContent: { outputTranscription: { text: "Hi" } } });
    else if (voice.status === "responding" && n === 3) await frame({ serverContent: { turnComplete: true } });
    else if (voice.status === "idle" && view.messages.length === 2) break;
    if (heard.length > 50) throw new Error(heard.join("; "));
  }
  equal(n, 4, "the frames");
});

/** page is an assistant's page as the test reads it. */
const page = (a: Assistant) => ({
  title: a.conversation?.title,
  texts: a.messages.map((m) => m.text),
  voice: a.voice.status,
  project: a.project?.title,
  projects: a.projects.map((p) => p.title).sort(),
  tasks: a.tasks.map((t) => t.taskId),
  issues: a.issues.map((i) => i.identifier).sort(),
  language: a.preferences?.language,
});

const issue = (team: string, number: number, state = "started") => ({
  id: `00000000-0000-4000-8000-${String(Math.floor(Math.random() * 1e12)).padStart(12, "0")}`,
  identifier: `${team}-${number}`,
  title: `Issue ${number}`,
  updatedAt: new Date().toISOString(),
  team: { id: team, key: team, name: team },
  state: { id: `s-${state}`, name: state, type: state },
});

test("an assistant's page is one live value, on one stream", async (world) => {
  const name = unique("u");
  const team = unique("T").toUpperCase();
  const api = unique("api");
  const admin = service(world);
  const open = new Set<object>();
  let streams = 0;
  const hf = holdfast({
    url: world.api,
    session: { storage: null, signIn: () => admin.rpc.session.createSession({ user: name }) },
    async fetch(input, init) {
      if (!String(input).endsWith("/Watch")) return await fetch(input, init);
      const mark = {};
      open.add(mark);
      init?.signal?.addEventListener("abort", () => open.delete(mark));
      streams = Math.max(streams, open.size);
      return await fetch(input, init);
    },
  });
  const ada = admin.as(name);
  const id = unique("c");
  const project = ada.project(unique("p"));
  const other = ada.project(unique("p"));
  await ada.conversation(id).append({ role: "user", text: "one" }, { createIfMissing: true, conversation: { title: "Auth" } });
  await project.put({ title: "Login", issueSources: [{ provider: "linear", type: "team", id: team }] });
  await other.put({ title: "Other" });
  const task = ada.task(unique("t"));
  await task.put(
    { title: "Fix", projectId: project.id, provider: "codegen", runId: unique("r") },
    { report: { rawStatus: "ACTIVE" } },
  );

  const watch = hf.assistant(id, { apis: [api] });
  equal(watch.get(), undefined);
  const seen: Assistant[] = [];
  const stop = watch.subscribe(() => {
    const now = watch.get();
    if (now && now !== seen.at(-1)) seen.push(now);
  });
  const reach = (wanted: (a: Assistant) => boolean) => until(watch, wanted);

  const first = await reach(() => true);
  equal(page(first), {
    title: "Auth",
    texts: ["one"],
    voice: "idle",
    projects: ["Login", "Other"],
    tasks: [task.id], // without a project all that are open
    issues: [],
  } as object);
  ok(first.session?.current && first.session.owner === name && first.sessions.length === 1, "the session");
  equal(first.errors, {});

  await hf.preferences.update({ activeProjectId: project.id, language: "en-GB" });
  const at = await reach((a) => a.project !== undefined);
  equal([at.project?.title, at.tasks.length, at.preferences?.language], ["Login", 1, "en-GB"]);
  ok(at.messages === first.messages && at.session === first.session, "that what did not change is the same object");

  await admin.linear.putIssues([issue(team, 1), issue(team, 2, "completed")] as never);
  await reach((a) => a.issues.length === 1 && a.issues[0]?.identifier === `${team}-1`);
  await admin.api(api).acquire({ operation: "read" });
  await reach((a) => a.apis[api]?.api === api);
  await task.put({}, { report: { rawStatus: "COMPLETE" } });
  await reach((a) => a.tasks.length === 0);
  await ada
    .conversation(id)
    .append({ role: "assistant", text: "two", modality: "voice" }, { voice: { status: "listening", lastTranscription: "tw" } });
  await reach((a) => a.messages.length === 2 && a.voice.lastTranscription === "tw");
  await hf.preferences.update({ activeProjectId: other.id });
  await reach((a) => a.project?.title === "Other" && a.issues.length === 0);
  await project.put({ archived: true });
  await reach((a) => a.projects.length === 1);
  stop();
  equal(streams, 1, "the streams at once");
  ok(
    seen.every((a) => a.project?.title !== "Login" || a.projects.length > 0),
    "that only what is whole is shown",
  );
});

test("parts that a client may not see are empty, and the errors say why", async (world) => {
  const a = await until(service(world).assistant(unique("c")), () => true);
  equal([a.absent, a.conversation, a.session, a.messages, a.voice.status], [true, undefined, undefined, [], "idle"]);
  ok(a.errors["session"] === undefined || a.errors["session"].reason, "a reason");
});

test("an assistant's watch ends with its session", async (world) => {
  const name = unique("u");
  const admin = service(world);
  const hf = holdfast({
    url: world.api,
    session: { storage: null, signIn: () => admin.rpc.session.createSession({ user: name }) },
  });
  let seen = 0;
  await fails(
    (async () => {
      for await (const _ of hf.assistant(unique("c")))
        if (seen++ === 0) await admin.rpc.session.endSessions({ scope: "user", user: name });
    })(),
    "SESSION_REVOKED",
  );
});

test("closing the client ends its watches and their loops", async (world) => {
  let open = 0;
  const counted: typeof fetch = async (input, init) => {
    if (String(input).endsWith("/Watch")) {
      open++;
      init?.signal?.addEventListener("abort", () => open--);
    }
    return await fetch(input, init);
  };
  const talk = unique("c");
  const hf = user(world, { fetch: counted });
  const begun = (watch: Watch<unknown>) => {
    let first = () => {};
    const began = new Promise<void>((done) => {
      first = done;
    });
    const loop = (async () => {
      for await (const _ of watch) first();
    })();
    return { began, loop };
  };
  const watches = [begun(hf.conversation(talk).watch()), begun(hf.assistant(talk))];
  await Promise.all(watches.map((w) => w.began));
  equal(open, 1, "the open streams");
  await hf[Symbol.asyncDispose](); // as `await using` does
  await Promise.all(watches.map((w) => w.loop));
  for (let i = 0; i < 100 && open > 0; i++) await new Promise((done) => setTimeout(done, 10));
  equal(open, 0, "the open streams after it");
});
