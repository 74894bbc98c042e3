import { Suspense, startTransition, useEffect, useState } from "react";
import { useConversation, useLive, useProject, useStatus } from "../../src/index.ts";
import { Boundary, counted, equal, ok, show, shows, test, unique, until, user } from "./harness.tsx";

function Title({ id }: { id: string }) {
  const project = useProject(id);
  if (project.status !== "live") return <p>{project.status}</p>;
  return <p>{project.value ? project.value.title : "none"}</p>;
}

function Certain({ id }: { id: string }) {
  return <p>{useProject(id, { suspense: true })?.title ?? "none"}</p>;
}

test("a component shows what there is, and each change", async (world) => {
  const hf = user(world);
  const project = hf.project(unique("p"));
  const page = show(hf, <Title id={project.id} />);
  await shows(page, "none");
  await project.put({ title: "Login" });
  await shows(page, "Login");
  await project.put({ title: "Sign-in" });
  await shows(page, "Sign-in");
  await project.delete();
  await shows(page, "none");
  page.end();
});

test("components share a watch, which ends with the last of them", async (world) => {
  const { hf, opened, open } = counted(world);
  const id = unique("p");
  await hf.project(id).put({ title: "T" });
  const many = Array.from({ length: 30 }, (_, i) => i);
  const page = show(
    hf,
    many.map((i) => <Title key={i} id={id} />),
  );
  await shows(page, "T".repeat(30));
  equal([opened(), open()], [1, 1], "the streams");
  page.render(<Title id={id} />);
  await shows(page, "T");
  await hf.project(id).put({ title: "U" });
  await shows(page, "U");
  equal([opened(), open()], [1, 1], "the streams");
  page.render(null);
  await until(() => open() === 0);
  // And again, from the beginning: what was shown once is not shown before it is known again.
  const seen: string[] = [];
  function Again() {
    const p = useProject(id);
    seen.push(p.value?.title ?? p.status);
    return <p>{p.value?.title}</p>;
  }
  await hf.project(id).put({ title: "V" });
  page.render(<Again />);
  await shows(page, "V");
  ok(!seen.includes("U"), `that nothing old is shown, in ${seen},`);
  page.end();
  await until(() => open() === 0);
});

test("mounting and unmounting at any pace leaves one stream, and then none", async (world) => {
  const { hf, opened, open } = counted(world);
  const ids = [unique("p"), unique("p"), unique("p")];
  for (const id of ids) await hf.project(id).put({ title: id });
  const page = show(hf, null);
  for (let i = 0; i < 60; i++) {
    page.render(ids.filter((_, n) => (i >> n) & 1).map((id) => <Title key={id} id={id} />));
    if (i % 3 === 0) await new Promise((done) => setTimeout(done, i % 7));
  }
  page.render(ids.map((id) => <Title key={id} id={id} />));
  await shows(page, ids.join(""));
  await until(() => open() === 1);
  ok(opened() <= 62, `that a change opens one stream at most, of ${opened()},`);
  page.end();
  await until(() => open() === 0);
});

test("nothing is shown under another's name", async (world) => {
  const hf = user(world);
  const ids = ["a", "b", "c"].map((n) => unique(n));
  for (const id of ids) await hf.conversation(id).append({ role: "user", text: id }, { createIfMissing: true });
  const seen = new Set<string>();
  let go: (id: string) => void = () => {};
  function Talk() {
    const [id, set] = useState(ids[0] ?? "");
    go = set;
    const talk = useConversation(id, { messages: 5 });
    const shown = `${id}: ${talk.value?.messages.map((m) => m.text) ?? talk.status}`;
    seen.add(shown);
    return <p>{shown}</p>;
  }
  const page = show(hf, <Talk />);
  for (const id of [...ids, ...ids]) {
    go(id);
    await shows(page, `${id}: ${id}`);
  }
  equal([...seen].sort(), ids.flatMap((id) => [`${id}: ${id}`, `${id}: loading`]).sort());
  page.end();
});

test("with suspense there is a fallback first, and in a transition what was there before", async (world) => {
  const { hf, open } = counted(world);
  const [a, b] = [unique("a"), unique("b")];
  await hf.project(a).put({ title: "A" });
  await hf.project(b).put({ title: "B" });
  const seen: string[] = [];
  let go: (id: string) => void = () => {};
  function Page() {
    const [id, set] = useState(a);
    go = set;
    return (
      <Suspense fallback={<Waits />}>
        <Certain id={id} />
        <Committed id={id} />
      </Suspense>
    );
  }
  function Waits() {
    useEffect(() => void seen.push("waits"), []);
    return <p>...</p>;
  }
  function Committed({ id }: { id: string }) {
    useEffect(() => void seen.push(id === a ? "A" : "B"), [id]);
    return null;
  }
  const page = show(hf, <Page />);
  await shows(page, "A");
  seen.length = 0;
  startTransition(() => go(b));
  await shows(page, "B");
  await until(() => seen.includes("B")); // an effect runs after what it is of is shown
  equal([...new Set(seen)], ["B"]);
  await hf.project(b).put({ title: "C" });
  await shows(page, "C");
  page.end();
  await until(() => open() === 0);
});

test("a suspended component that is never shown holds no watch", async (world) => {
  const { hf, opened, open } = counted(world);
  const page = show(
    hf,
    <Suspense fallback="...">
      <Certain id={unique("p")} />
    </Suspense>,
  );
  await until(() => opened() === 1);
  page.end();
  await until(() => open() === 0);
});

test("a failure has a reason, and trying again helps as soon as the reason is gone", async (world) => {
  let token = "hfk_wrong_wrong";
  const hf = user(world, { token: () => token });
  const id = unique("p");
  await user(world, {}).project(id).put({ title: "Other" });
  let retry: () => void = () => {};
  function Plain() {
    const project = useProject(id);
    if (project.status !== "failed") return <p>{project.value?.title ?? project.status}</p>;
    retry = project.retry;
    return <p>{project.error.reason}</p>;
  }
  const plain = show(hf, <Plain />);
  await shows(plain, "CREDENTIAL_INVALID");
  token = world.token;
  retry();
  await shows(plain, "live");
  plain.end();
});

test("with suspense a failure reaches the error boundary, which may try again", async (world) => {
  let token = "hfk_wrong_wrong";
  const hf = user(world, { token: () => token });
  const page = show(
    hf,
    <Boundary>
      <Suspense fallback="...">
        <Certain id={unique("p")} />
      </Suspense>
    </Boundary>,
  );
  await shows(page, "CREDENTIAL_INVALID");
  token = world.token;
  await until(() => {
    page.element.querySelector("button")?.click();
    return page.text() === "none";
  });
  page.end();
});

test("any watch of the client is a hook", async (world) => {
  const hf = user(world);
  const task = hf.task(unique("t"));
  await task.put(
    { title: "Fix it", provider: "codegen", runId: unique("r") },
    { report: { rawStatus: "ACTIVE", source: "test" } },
  );
  function Task() {
    const shown = useLive(`task/${task.id}`, (hf) => hf.task(task.id).watch(), { suspense: true });
    return (
      <p>
        {shown.value?.title}: {shown.value?.status}
      </p>
    );
  }
  const page = show(
    hf,
    <Suspense fallback="...">
      <Task />
    </Suspense>,
  );
  await shows(page, "Fix it: running");
  page.end();
});

test("a page shows whether the server answers", async (world) => {
  let away = true;
  const hf = user(world, {
    fetch: async (input, init) => (away ? Promise.reject(new TypeError("offline")) : fetch(input, init)),
  });
  function Badge() {
    return <p>{useStatus().reachable ? "online" : "offline"}</p>;
  }
  const page = show(hf, <Badge />);
  await shows(page, "online");
  await hf.preferences.get({ timeout: 300 }).catch(() => {});
  await shows(page, "offline");
  away = false;
  await hf.preferences.get();
  await shows(page, "online");
  page.end();
});
