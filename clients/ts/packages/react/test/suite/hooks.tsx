import { Suspense } from "react";
import {
  useApi,
  useConversations,
  useIssues,
  useObject,
  useObjectAt,
  usePresence,
  useProjects,
  useSession,
  useTask,
  useTasks,
} from "../../src/index.ts";
import { service, show, shows, test, unique, user } from "./harness.tsx";

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

test("an object of your own, with its entries in the server's order", async (world) => {
  const hf = user(world);
  const ref = { type: "cart", name: unique("n") };
  function Cart() {
    const cart = useObject(ref, { collections: { items: 10, notes: 0 }, suspense: true });
    if (!cart) return <p>none</p>;
    return <p>{JSON.stringify([cart.state, cart.entries["items"]?.map((e) => e.key), cart.entries["notes"]?.length])}</p>;
  }
  const page = show(
    hf,
    <Suspense fallback="...">
      <Cart />
    </Suspense>,
  );
  await shows(page, "none");
  const put = (key: string) => ({ put: { entry: { collection: "items", key, json: { sku: key } } } });
  await hf.rpc.state.apply({
    ref,
    operations: [{ setFields: { fields: { currency: "EUR" } } }, ...["b", "\u{1F600}", "\uFF5E", "a"].map(put)],
  });
  await shows(page, `[{"currency":"EUR"},["a","b","\uFF5E","\u{1F600}"],0]`);
  await hf.rpc.state.apply({
    ref,
    operations: [{ delete: { collection: "items", keys: ["b"] } }, { append: { collection: "notes", text: "hm" } }],
  });
  await shows(page, `[{"currency":"EUR"},["a","\uFF5E","\u{1F600}"],1]`);
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
