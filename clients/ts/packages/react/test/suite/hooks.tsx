import { defineObject } from "@holdfast/client";
import { Suspense, useLayoutEffect } from "react";
import {
  type Append,
  useApi,
  useAppend,
  useAssistant,
  useConversations,
  useIssues,
  useObject,
  useObjectAt,
  usePreferences,
  usePresence,
  useProjects,
  useSession,
  useTask,
  useTasks,
} from "../../src/index.ts";
import { ok, service, show, shows, test, unique, user } from "./harness.tsx";

test("lists show the last changed first", async (world) => {
  const hf = user(world);
  function Lists() {
    const options = { suspense: true, limit: 10 } as const;
    const conversations = useConversations({ labels: { team: "core" } }, options).map((c) => c.title);
    const projects = useProjects({}, options).map((p) => p.title);
    const tasks = useTasks({ open: true }, options).map((t) => t.title);
    const issues = useIssues({ open: true }, options).map((i) => i.title);
    return <p>{JSON.stringify({ conversations, projects, tasks, issues })}</p>;
  }
  const page = show(
    hf,
    <Suspense fallback="...">
      <Lists />
    </Suspense>,
  );
  await shows(page, `{"conversations":[],"projects":[],"tasks":[],"issues":[]}`);
  await hf.conversation(unique("c")).create({ title: "Other" });
  const first = hf.conversation(unique("c"));
  await first.create({ title: "One", labels: { team: "core" } });
  await hf.conversation(unique("c")).create({ title: "Two", labels: { team: "core" } });
  await hf.project(unique("p")).put({ title: "Login" });
  const report = { report: { rawStatus: "ACTIVE", source: "test" } };
  await hf.task(unique("t")).put({ title: "Fix it", provider: "codegen", runId: unique("r") }, report);
  await shows(page, `{"conversations":["Two","One"],"projects":["Login"],"tasks":["Fix it"],"issues":[]}`);
  await first.update({ title: "Three" });
  await shows(page, `{"conversations":["Three","Two"],"projects":["Login"],"tasks":["Fix it"],"issues":[]}`);
  page.end();
});

test("a task and an API, live", async (world) => {
  const hf = user(world);
  const [id, name] = [unique("t"), unique("api")];
  function Things() {
    const task = useTask(id);
    const api = useApi(name);
    if (task.status !== "live" || api.status !== "live") return <p>{task.error?.reason ?? api.error?.reason ?? "..."}</p>;
    return (
      <p>
        {task.value?.status ?? "none"} {api.value?.api ?? "none"}
      </p>
    );
  }
  const page = show(hf, <Things />);
  await shows(page, "none none");
  const report = { report: { rawStatus: "ACTIVE", source: "test" } };
  await hf.task(id).put({ title: "Fix it", provider: "codegen", runId: unique("r") }, report);
  await service(world).api(name).acquire({ operation: "read" });
  await shows(page, `running ${name}`);
  page.end();
});

test("the page's own session, the user's others, and presence", async (world) => {
  const name = unique("u");
  const sign = () => service(world).rpc.session.createSession({ user: name });
  const hf = user(world, { token: undefined, user: undefined, session: { signIn: sign, storage: null } });
  function Me() {
    const { current, all } = useSession({ suspense: true });
    const presence = usePresence({ suspense: true });
    return (
      <p>
        {current?.owner} {all.length} {presence?.online ? "online" : "offline"} {all[0]?.current ? "newest" : "older"}
      </p>
    );
  }
  const page = show(
    hf,
    <Suspense fallback="...">
      <Me />
    </Suspense>,
  );
  await shows(page, `${name} 1 offline newest`);
  await sign();
  await hf.session().connection({ connection: { modality: "text" } });
  await shows(page, `${name} 2 online older`);
  page.end();
});

/** anything is a schema that takes everything as it is. */
function anything<T>() {
  const validate = (value: unknown) => ({ value: value as T });
  return {
    "~standard": { version: 1 as const, vendor: "test", validate, types: undefined as { input: T; output: T } | undefined },
  };
}

test("an object of your own, with its entries in the server's order", async (world) => {
  const hf = user(world);
  const Cart = defineObject("cart", {
    state: anything<{ currency?: string }>(),
    collections: { items: anything<{ sku: string }>() },
  });
  const cart = hf.state(Cart, unique("n"));
  function Shown() {
    const { absent, state, entries } = useObject(Cart, cart.name, { entries: { items: 10 }, suspense: true });
    return <p>{absent ? "none" : JSON.stringify([state.currency, entries.items.map((e) => e.value.sku)])}</p>;
  }
  const page = show(
    hf,
    <Suspense fallback="...">
      <Shown />
    </Suspense>,
  );
  await shows(page, "none");
  await cart.update((draft, { items }) => {
    draft.currency = "EUR";
    for (const key of ["b", "\u{1F600}", "\uFF5E", "a"]) items.put(key, { sku: key });
  });
  await shows(page, `["EUR",["a","b","\uFF5E","\u{1F600}"]]`);
  await cart.update((_, { items }) => items.delete("b"));
  await shows(page, `["EUR",["a","\uFF5E","\u{1F600}"]]`);
  page.end();
});

test("an assistant's page is one value, with messages on their way", async (world) => {
  const hf = user(world);
  const id = unique("c");
  await hf.project("p1".concat(id)).put({ title: "Login" });
  let send: Append = () => Promise.reject();
  const seen: number[] = [];
  function Page() {
    const { messages, outgoing, voice, projects, preferences } = useAssistant(id, { apis: [], suspense: true });
    const sure = usePreferences({ suspense: true });
    send = useAppend(id);
    const count = [...messages, ...outgoing].length;
    useLayoutEffect(() => void seen.push(count));
    return (
      <p>
        {JSON.stringify([count, voice.status, projects.map((p) => p.title), preferences?.voice || "none", sure?.voice || "none"])}
      </p>
    );
  }
  const page = show(
    hf,
    <Suspense fallback="...">
      <Page />
    </Suspense>,
  );
  await shows(page, `[0,"idle",["Login"],"none","none"]`);
  await hf.preferences.update({ voice: "Puck" });
  await shows(page, `[0,"idle",["Login"],"Puck","Puck"]`);
  await send({ role: "user", text: "Hello" }, { createIfMissing: true });
  await shows(page, `[1,"idle",["Login"],"Puck","Puck"]`);
  ok(Math.max(...seen) === 1, "that the message is there once");
  page.end();
});

test("an object as it was", async (world) => {
  const hf = user(world);
  const id = unique("p");
  for (const title of ["One", "Two", "Three"]) await hf.project(id).put({ title });
  function Past({ version }: { version: number }) {
    const past = useObjectAt("project", id, { version });
    return <p>{past.status === "failed" ? past.error.reason : String(past.value?.state?.["title"] ?? past.status)}</p>;
  }
  const page = show(hf, <Past version={1} />);
  await shows(page, "One");
  page.render(<Past version={2} />);
  await shows(page, "Two");
  page.render(<Past version={9} />);
  await shows(page, "FIELD_INVALID");
  page.end();
});
