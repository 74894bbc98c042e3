import { type Holdfast, holdfast, is } from "@holdfast/client";
import { HoldfastProvider, useStatus } from "@holdfast/react";
import { Component, type ReactNode, useEffect, useRef, useState } from "react";
import { createRoot } from "react-dom/client";
import { Apis } from "./apis.tsx";
import { useAct } from "./ask.ts";
import { Browse } from "./browse.tsx";
import { Conversation, Conversations } from "./conversation/conversation.tsx";
import { Find } from "./find.tsx";
import { Home } from "./home.tsx";
import { Inspector } from "./object/object.tsx";
import { Projects } from "./projects.tsx";
import { go, route, to, useRoute } from "./route.ts";
import { Sessions } from "./sessions.tsx";
import { States } from "./states.tsx";
import { Timers } from "./timers.tsx";
import { explain, Icon, type IconName, Mark, rows } from "./ui.tsx";

/** Who is signed in. It is in memory only: a reload signs out. */
interface SignedIn {
  hf: Holdfast;
  as: string;
  tenant: string;
}

const base = new URL("..", location.href.split("#")[0]).href;

/** signIn checks the credential by a call that every caller may make. */
async function signIn(token: string, user: string, tenant = ""): Promise<SignedIn> {
  const hf = holdfast({ url: base, token, ...(user ? { user } : {}) });
  await hf.rpc.inspect.listObjects({});
  return { hf, as: user, tenant };
}

const pages: [name: string, path: string, key: string, icon: IconName][] = [
  ["Home", "", "h", "home"],
  ["Objects", "objects", "o", "object"],
  ["Conversations", "conversations", "c", "talk"],
  ["Sessions", "sessions", "s", "session"],
  ["Projects", "projects", "p", "project"],
  ["APIs", "apis", "a", "api"],
  ["State", "states", "d", "state"],
  ["Timers", "timers", "t", "clock"],
];

const sections: { [first: string]: string } = { o: "objects", c: "conversations", s: "states" };

function App() {
  const [signed, set] = useState<SignedIn>();
  if (!signed) return <SignIn done={set} />;
  return (
    <HoldfastProvider client={signed.hf}>
      <Shell signed={signed} leave={() => set(undefined)} />
    </HoldfastProvider>
  );
}

/** The code of a link is taken out of the URL before anything else sees it, and used once. */
const code = route().path[0] === "link" ? route().path[1] : undefined;
if (code) history.replaceState(null, "", "#/");
const linked = code
  ? fetch("link", { method: "POST", body: code }).then(async (r) =>
      r.ok ? ((await r.json()) as { tenant: string; token: string }) : undefined,
    )
  : undefined;

function SignIn({ done }: { done(signed: SignedIn): void }) {
  const { run, busy, error } = useAct();
  const [used, setUsed] = useState(false);
  const [waiting, setWaiting] = useState(linked !== undefined);
  const began = useRef(false);
  useEffect(() => {
    if (began.current || !linked) return;
    began.current = true;
    linked
      .then(async (c) => {
        if (!c) setUsed(true);
        else await run(async () => done(await signIn(c.token, "", c.tenant)));
      })
      .catch(() => setUsed(true))
      .finally(() => setWaiting(false));
  }, [run, done]);
  if (waiting) return null;
  return (
    <main className="signin">
      <form
        className="card pad"
        onSubmit={(e) => {
          e.preventDefault();
          const form = new FormData(e.currentTarget);
          run(async () => done(await signIn(String(form.get("token")).trim(), String(form.get("user")).trim())));
        }}
      >
        <h1>
          <Icon name="mark" /> Holdfast
        </h1>
        {used && (
          <p role="status">
            <b>This link was used.</b> It signs in once. Paste the token that <code>holdfast dev</code> prints, or start it again
            for a new link.
          </p>
        )}
        <label>
          Key, or a session’s access token
          <input name="token" type="password" autoComplete="off" spellCheck={false} required />
        </label>
        <label>
          Act for this user <span className="d3">only with a service’s key; empty: for nobody</span>
          <input name="user" autoComplete="off" spellCheck={false} />
        </label>
        {error && (
          <p className="bad" role="alert">
            {error.retry === "reauth" || error.reason.startsWith("CREDENTIAL")
              ? "The server does not know this credential."
              : explain(error)}
          </p>
        )}
        <button type="submit" className="btn main" disabled={busy} aria-busy={busy}>
          Sign in
        </button>
        <p className="small d3">What you enter stays in this tab’s memory. A reload forgets it.</p>
      </form>
    </main>
  );
}

function Shell({ signed, leave }: { signed: SignedIn; leave(): void }) {
  const { path } = useRoute();
  const [finding, setFinding] = useState(false);
  const [help, setHelp] = useState(false);
  const first = path[0] ?? "";
  const section = sections[first] ?? first;
  useKeys({ find: () => setFinding(true), help: () => setHelp(true) });
  useEffect(() => {
    document.title = `${path[path.length - 1] ?? "Home"} · Holdfast`;
    scrollTo(0, 0);
  }, [path]);
  const title = pages.find(([, p]) => p === section)?.[0] ?? "Home";
  const nav = (className: string) =>
    pages.map(([name, p, , icon]) => (
      <a key={p} className={className} href={to(...[p].filter(Boolean))} aria-current={section === p ? "page" : undefined}>
        <Icon name={icon} />
        {name}
      </a>
    ));
  return (
    <div className="app">
      <button type="button" className="skip" onClick={() => document.getElementById("main")?.focus()}>
        Skip to content
      </button>
      <nav className="side" aria-label="Console">
        <a className="brand" href="#/">
          <Icon name="mark" />
          Holdfast
        </a>
        <button type="button" className="find" onClick={() => setFinding(true)}>
          <Icon name="find" />
          <span className="grow">Find</span>
          <kbd>/</kbd>
        </button>
        {nav("nav")}
        <footer>
          {signed.tenant && <b className="d2">Tenant {signed.tenant}</b>}
          <div>{signed.as ? `For ${signed.as}` : "Signed in in this tab"}</div>
          <button type="button" className="link" onClick={leave}>
            Sign out
          </button>
        </footer>
      </nav>
      <header className="top">
        <div className="crumbs">
          {path.length < 2 ? (
            <b>{title}</b>
          ) : (
            <>
              <a href={to(section)}>{title}</a>
              {path.slice(1, -1).map((p, i) => (
                <span key={p} className="cut">
                  <span>/ </span>
                  <a href={first === "o" ? to("objects", p) : to(...path.slice(0, i + 2))}>{p}</a>
                </span>
              ))}
              <span>/</span>
              <b className="mono cut">{path[path.length - 1]}</b>
            </>
          )}
        </div>
        <Standing />
        <button type="button" className="btn ghost sq hide-s" aria-label="All keys" onClick={() => setHelp(true)}>
          <Icon name="keys" />
        </button>
        <button type="button" className="btn ghost sq" aria-label="Light or dark" onClick={theme}>
          <Icon name="theme" />
        </button>
      </header>
      <main id="main" tabIndex={-1}>
        <Fence key={path.join("/")}>
          <Page path={path} />
        </Fence>
      </main>
      <nav className="tabs-m" aria-label="Console, short">
        {pages
          .filter(([, p]) => ["", "objects", "conversations", "apis"].includes(p))
          .map(([name, p, , icon]) => (
            <a key={p} href={to(...[p].filter(Boolean))} aria-current={section === p ? "page" : undefined}>
              <Icon name={icon} />
              {name === "Conversations" ? "Talks" : name}
            </a>
          ))}
        <button type="button" onClick={() => setFinding(true)}>
          <Icon name="find" />
          Find
        </button>
      </nav>
      {finding && <Find pages={pages} close={() => setFinding(false)} />}
      {help && <Help close={() => setHelp(false)} />}
    </div>
  );
}

/** By the first part of a path, how many parts may follow at least and at most, and what they show. */
const shows: { [first: string]: [number, number, (a: string, b: string) => ReactNode] } = {
  objects: [0, 1, (kind) => <Browse kind={kind} />],
  o: [2, 2, (kind, id) => <Inspector kind={kind} id={id} />],
  conversations: [0, 0, () => <Conversations />],
  c: [1, 1, (id) => <Conversation id={id} />],
  sessions: [0, 1, (user) => <Sessions user={user} />],
  projects: [0, 1, (id) => <Projects id={id} />],
  apis: [0, 1, (name) => <Apis name={name} />],
  states: [0, 1, (type) => <States type={type} name={undefined} />],
  s: [2, 2, (type, name) => <States type={type} name={name} />],
  timers: [0, 0, () => <Timers />],
};

function Page({ path: [first, ...rest] }: { path: readonly string[] }) {
  if (first === undefined) return <Home />;
  const [least, most, page] = shows[first] ?? [0, -1, () => null];
  return rest.length < least || rest.length > most ? <Nowhere /> : page(rest[0] as string, rest[1] as string);
}

function Nowhere() {
  return (
    <div className="card empty">
      <h1>There is no such page</h1>
      <a className="link" href="#/">
        Home
      </a>
    </div>
  );
}

/** Standing says whether what you see is live. */
function Standing() {
  const { reachable } = useStatus();
  return (
    <span className="flex small d2" role="status">
      <Mark as={reachable ? "live" : "half"} />
      {reachable ? "Live" : "The server does not answer. Trying again."}
    </span>
  );
}

/** Fence keeps the fault of one page from the others. */
class Fence extends Component<{ children: ReactNode }, { error?: unknown }> {
  override state: { error?: unknown } = {};
  static getDerivedStateFromError = (error: unknown) => ({ error });
  override render() {
    const { error } = this.state;
    if (error === undefined) return this.props.children;
    return (
      <div className="note warn" role="alert">
        <b>This page has failed: {is(error) ? explain(error) : String(error)}</b>
      </div>
    );
  }
}

function theme(): void {
  const now =
    document.documentElement.dataset["theme"] ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset["theme"] = now === "dark" ? "light" : "dark";
}

const help: [string, string][] = [
  ["/", "find"],
  ["g then h o c s p a d t", "go to a page"],
  ["j k", "next row, row before"],
  ["Enter", "open the row"],
  ["← →", "version, or moment of the lane; with ⇧ by ten"],
  ["Home End", "first version, now"],
  ["d", "only what differs"],
  ["i", "next interruption"],
  ["r", "restore…"],
  ["y", "copy as curl"],
  ["?", "all keys"],
  ["Esc", "close"],
];

function Help({ close }: { close(): void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} className="sheet" onClose={close} aria-label="All keys">
      <h2>Keys</h2>
      <dl className="kv">
        {help.map(([keys, what]) => (
          <div key={keys} className="kvrow">
            <dt>{keys.split(" ").map((k) => (k === "then" ? " then " : <kbd key={k}>{k}</kbd>))}</dt>
            <dd>{what}</dd>
          </div>
        ))}
      </dl>
      <button type="button" className="btn" onClick={() => dialog.current?.close()}>
        Close
      </button>
    </dialog>
  );
}

/** useKeys hears the keys of every page. Those of one page are a click on what has `data-key`. */
function useKeys(of: { find(): void; help(): void }): void {
  const latest = useRef(of);
  latest.current = of;
  useEffect(() => {
    let going = 0;
    const press = (e: KeyboardEvent) => {
      const target = e.target as HTMLElement;
      if (e.defaultPrevented || e.ctrlKey || e.metaKey || e.altKey) return;
      if (target.matches("input:not([type=range]),textarea,select") || target.closest("dialog,[role=dialog]")) return;
      const page = Date.now() - going < 1500 && pages.find(([, , key]) => key === e.key);
      going = 0;
      if (page) go(to(...[page[1]].filter(Boolean)));
      else if (e.key === "/") latest.current.find();
      else if (e.key === "?") latest.current.help();
      else if (e.key === "g") going = Date.now();
      else if (e.key === "j" || e.key === "k") rows(e.key);
      else {
        if (target.matches("input[type=range]") && /^(Arrow|Home|End)/.test(e.key)) return;
        const key = `${e.shiftKey && e.key.length > 1 ? "Shift+" : ""}${e.key}`;
        const found = document.querySelector<HTMLElement>(`[data-key~="${CSS.escape(key)}"]`);
        if (!found) return;
        found.click();
      }
      e.preventDefault();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
}

const root = document.getElementById("root");
if (root) createRoot(root).render(<App />);
