// An object of any kind: as it is, as it was at each of its versions, what lies between, and the way back.
import type { Holdfast, inspect, Json, JsonObject } from "@holdfast/client";
import { type Source, useHoldfast, useLive } from "@holdfast/react";
import { useCallback, useEffect, useMemo, useState } from "react";
import { useAct, useAsk } from "./ask.ts";
import { best, go, object, replace, to, useRoute } from "./route.ts";
import { brief, tree } from "./tree.ts";
import { Card, Confirm, Copy, Empty, explain, Failure, Icon, In, Loading, Mark, Seg, vars } from "./ui.tsx";
import { bytes, clock, count, num, sentence, who, words } from "./words.ts";

interface Standing {
  version: number;
  absent: boolean;
}

/** standing follows an object's version: by a watch where there is one for its kind, and otherwise by a look at its newest event. */
function standing(hf: Holdfast, kind: string, id: string): Source<Standing> {
  const item = {
    conversation: { conversation: { conversationId: id } },
    project: { projectId: id },
    task: { taskId: id },
    linear_issue: { issueId: id },
    api: { api: id },
  }[kind];
  if (item) return hf.watch(item);
  let now: Standing | undefined;
  return {
    get: () => now,
    error: () => undefined,
    subscribe(changed) {
      const look = async () => {
        if (document.hidden) return;
        const { events } = await hf.rpc.inspect.listEvents({ ref: { kind, objectId: id }, pageSize: 1 });
        const [last] = events;
        if (last?.version === now?.version) return;
        now = { version: last?.version ?? 0, absent: last?.type === "deleted" };
        changed();
      };
      const quiet = () => look().catch(() => {}); // the page's own calls show what is wrong
      quiet();
      const timer = setInterval(quiet, 3000);
      return () => clearInterval(timer);
    },
  };
}

/** The newest events of an object, oldest first, and those before on request. */
export function useEvents(kind: string, id: string, version: number | undefined) {
  const hf = useHoldfast();
  const [older, setOlder] = useState<{ of: string; events: inspect.Event[]; token: string }>();
  const { run, busy } = useAct();
  const key = `${kind}/${id}`;
  const newest = useAsk(
    `events ${key}`,
    (hf, signal) => hf.rpc.inspect.listEvents({ ref: { kind, objectId: id }, pageSize: 200 }, { signal }),
    {
      since: version,
    },
  );
  const mine = older?.of === key ? older : undefined;
  const events = useMemo(() => {
    const all = new Map<number, inspect.Event>();
    for (const e of [...(newest.value?.events ?? []), ...(mine?.events ?? [])]) all.set(e.version, e);
    return [...all.values()].sort((a, b) => a.version - b.version);
  }, [newest.value, mine]);
  const token = mine ? mine.token : newest.value?.nextPageToken;
  const more = useCallback(
    () =>
      run(async () => {
        const page = await hf.rpc.inspect.listEvents({ ref: { kind, objectId: id }, pageSize: 200, pageToken: token });
        // What the newest page has now may have left it by the time it is asked for again.
        setOlder({ of: key, events: [...events, ...page.events], token: page.nextPageToken });
      }),
    [hf, run, kind, id, key, token, events],
  );
  return { events, error: newest.error, again: newest.again, loading: newest.loading, more: token ? more : undefined, busy };
}

/** tint is who or what wrote a version, as a colour of the rail. */
export function tint(e: inspect.Event): "voice" | "tools" | "edits" | "sockets" | "quiet" {
  if (/^live_(connected|disconnected|abandoned|session_ended)/.test(e.type)) return "sockets";
  if (/^(timer|voice_checked|frames_dropped)/.test(e.type)) return "quiet";
  if (e.type.startsWith("tool") || e.entries.some((k) => k.startsWith("tool_calls/"))) return "tools";
  if (e.type.startsWith("live") || e.entries.some((k) => k.startsWith("messages/"))) return "voice";
  return "edits";
}

const tints = { voice: "words", tools: "tools", edits: "edits", sockets: "sockets", quiet: "timers" };

export function Inspector({ kind, id }: { kind: string; id: string }) {
  const hf = useHoldfast();
  const { query } = useRoute();
  const live = useLive(`standing ${kind}/${id}`, (hf) => standing(hf, kind, id));
  const journal = useEvents(kind, id, live.value?.version);
  const { events } = journal;
  const last = events.at(-1);
  const now = last?.version ?? 0;
  const deleted = last?.type === "deleted";
  const asked = Number(query.get("v")) || (deleted ? now - 1 : now);
  const at = Math.min(Math.max(asked, events[0]?.version ?? 1), now);
  const past = at < now;
  const ref = { kind, objectId: id };
  const head = useAsk(`head ${kind}/${id}`, (hf, signal) => hf.rpc.inspect.getObject({ ref }, { signal }), {
    since: now,
    off: now === 0 || deleted,
  });
  const then = useAsk(
    `at ${kind}/${id} ${at}`,
    (hf, signal) => hf.rpc.inspect.getObject({ ref, at: { version: at } }, { signal }),
    { off: !past },
  );
  const diff = useAsk(
    `diff ${kind}/${id} ${at}`,
    (hf, signal) => hf.rpc.inspect.diffObject({ ref, from: { version: at }, to: { version: now }, pageSize: 200 }, { signal }),
    { since: now, off: !past || deleted },
  );
  const [undone, setUndone] = useState<{ restored: number; before: number; made: number }>();
  const show = useCallback(
    (v: number) => replace({ v: v >= now ? undefined : String(Math.max(v, events[0]?.version ?? 1)) }),
    [now, events],
  );
  const restore = async (version: number, ifVersion = now) => {
    const made = await hf.inspect(kind, id).restore({ version }, { ifVersion: deleted ? 0 : ifVersion });
    setUndone({ restored: made.restoredVersion, before: ifVersion, made: made.version });
    journal.again();
    replace({ v: undefined });
  };
  if (!last)
    return (
      <>
        <h1 className="vh">
          {kind} {id}
        </h1>
        {journal.error ? <Failure error={journal.error} again={journal.again} /> : <Loading lines={5} />}
      </>
    );
  const state = past ? then.value?.object : head.value?.object;
  const event = events.find((e) => e.version === at);
  const first = events[0];
  const got = head.value?.object;
  return (
    <>
      <div className="head">
        <div className="grow">
          <div className="flex wrap">
            <a className="chip" href={to("objects", kind)}>
              {kind}
            </a>
            <h1 className="mono idh">{id}</h1>
            <Copy className="ghost sm" text={id} name="Copy the id" label={<Icon name="copy" />} />
          </div>
          <p className="small">
            {got && (
              <>
                {got.owner ? `Owned by ${got.owner}` : "The tenant’s"}. {count(now, "version")} since {clock(got.createTime)},{" "}
                {count(got.size?.entryCount ?? 0, "entry", "entries")}, {count(got.timers.length, "timer")},{" "}
                {bytes((got.size?.stateBytes ?? 0) + (got.size?.entryBytes ?? 0))}.{" "}
                {got.expireTime ? `Kept until ${clock(got.expireTime)}.` : "Kept until it is deleted."}{" "}
                {got.hibernated && "It sleeps."}
              </>
            )}
          </p>
        </div>
        <div className="flex wrap acts">
          {best(kind, id) !== object(kind, id) && (
            <a className="btn" href={best(kind, id)}>
              Open the {kind}
            </a>
          )}
          <Confirm
            label="Copy as…"
            act="Copy curl"
            title="As a command"
            run={() => navigator.clipboard.writeText(curl(kind, id, past ? at : undefined))}
          >
            <pre className="code">{curl(kind, id, past ? at : undefined)}</pre>
            <pre className="code">{`holdfast object get ${kind} ${id}${past ? ` --at ${at}` : ""}`}</pre>
            <pre className="code">{`await hf.inspect("${kind}", "${id}").${past ? `at({ version: ${at} })` : "get()"}`}</pre>
          </Confirm>
          <button
            type="button"
            className="vh"
            data-key="y"
            tabIndex={-1}
            onClick={() => navigator.clipboard.writeText(curl(kind, id, past ? at : undefined))}
          >
            Copy as curl
          </button>
          {!deleted && (
            <Confirm
              label="Delete…"
              className="danger"
              main={false}
              act={`Delete ${id}`}
              title={`Delete ${id}?`}
              run={async () => (await hf.inspect(kind, id).delete({ ifVersion: now }), journal.again())}
            >
              <p>From then on it is not found. It can come back from here for a day at least.</p>
            </Confirm>
          )}
        </div>
      </div>
      {undone && now >= undone.made && (
        <div className="note tide" role="status">
          <span className="grow">
            <b>
              Version {undone.made} is version {undone.restored} again.
            </b>{" "}
            <span className="d2">Nothing was lost: version {undone.before} is in the journal.</span>
          </span>
          {undone.made === now && <Act label={`Undo, back to version ${undone.before}`} run={() => restore(undone.before)} />}
        </div>
      )}
      {deleted && (
        <div className="note warn" role="status">
          <span className="grow">
            <b>
              {id} was deleted by {who(last.actor)} at {clock(last.time)}.
            </b>{" "}
            <span className="d2">It can come back for a day at least.</span>
          </span>
          <Act label={`Restore version ${now - 1}`} run={() => restore(now - 1)} />
        </div>
      )}
      <Rail events={events} at={at} show={show} more={journal.more} />
      {past && !deleted && (
        <div className="note tide" role="status">
          <b>You look at version {at}.</b>
          <span className="grow d2 cut hide-s">
            Nothing changes until you restore. {count(now - at, "version")} came after it.
          </span>
          <button type="button" className="btn sm" data-key="End" onClick={() => show(now)}>
            Back to now
          </button>
        </div>
      )}
      <div className="g2 flip">
        <div>
          <Parts
            kind={kind}
            id={id}
            at={past ? at : undefined}
            then={state}
            now={past ? got : undefined}
            error={past ? then.error : head.error}
          />
          <Events events={events} at={at} show={show} more={journal.more} busy={journal.busy} />
        </div>
        <div>
          {past && !deleted && diff.error && <Failure error={diff.error} again={diff.again} />}
          {past && !deleted && !diff.value && !diff.error && (
            <Card title={`Restore version ${at}`}>
              <Loading />
            </Card>
          )}
          {past && !deleted && diff.value && (
            <Restore kind={kind} id={id} at={at} now={now} diff={diff.value} restore={() => restore(at)} />
          )}
          {event && <Maker event={event} first={first} />}
          {got && got.timers.length > 0 && !past && <Timers object={got} again={head.again} />}
        </div>
      </div>
    </>
  );
}

function curl(kind: string, id: string, version?: number): string {
  const body = JSON.stringify({ ref: { kind, objectId: id }, ...(version ? { at: { version: String(version) } } : {}) });
  return `curl ${new URL("..", location.href.split("#")[0]).href}holdfast.inspect.v1.InspectService/GetObject -H "Authorization: Bearer $HOLDFAST_TOKEN" -H 'Content-Type: application/json' -d '${body.replaceAll("'", "'\\''")}'`;
}

/** Act is a button that does something that can be undone, at once. */
export function Act({ label, run, className = "sm" }: { label: string; run(): Promise<unknown>; className?: string }) {
  const act = useAct();
  return (
    <>
      <button type="button" className={`btn ${className}`} disabled={act.busy} aria-busy={act.busy} onClick={() => act.run(run)}>
        {label}
      </button>
      {act.error && (
        <span className="bad" role="alert">
          {explain(act.error)}
        </span>
      )}
    </>
  );
}

/** Rail is every version as a bar, and the place in time on it. */
function Rail({
  events,
  at,
  show,
  more,
}: {
  events: inspect.Event[];
  at: number;
  show(v: number): void;
  more: (() => void) | undefined;
}) {
  const [axis, setAxis] = useState<"v" | "t">("v");
  const from = events[0]?.version ?? 1;
  const now = events.at(-1)?.version ?? 1;
  // By time, more than six seconds of quiet are six.
  const places = useMemo(() => {
    let x = 0;
    const sums = events.map((e, i) => {
      const before = events[i - 1];
      const quiet = axis === "t" && before ? Math.min(6, (Date.parse(e.time ?? "") - Date.parse(before.time ?? "")) / 1000) : 0;
      x += axis === "t" ? quiet + 0.35 : 1;
      return x;
    });
    return sums.map((s) => (axis === "t" ? s / (x + 0.35) : (s - 0.5) / x));
  }, [events, axis]);
  const paths = useMemo(() => {
    const of: { [tint: string]: string } = {};
    events.forEach((e, i) => {
      const tall = Math.min(24, 6 + 4 * Math.log2(1 + e.fields.length + 2 * e.entryCount));
      of[tint(e)] = `${of[tint(e)] ?? ""}M${((places[i] ?? 0) * 1000).toFixed(1)} ${(30 - tall).toFixed(1)}V30`;
    });
    return of;
  }, [events, places]);
  const i = Math.max(
    0,
    events.findIndex((e) => e.version === at),
  );
  const event = events[i];
  const p = places[i] ?? 1;
  const step = (by: number) => show(events[Math.max(0, Math.min(events.length - 1, i + by))]?.version ?? now);
  return (
    <Card
      label="Versions"
      title={
        <>
          <h2>Versions</h2>
          <Seg
            label="Axis"
            className="hide-s"
            of={[
              ["v", "By version"],
              ["t", "By time"],
            ]}
            value={axis}
            set={setAxis}
          />
        </>
      }
      meta={
        <>
          <span className="hide-s">
            <kbd>←</kbd> <kbd>→</kbd> step, <kbd>⇧</kbd> by ten
          </span>
          <button
            type="button"
            className="btn sm"
            data-key="ArrowLeft"
            aria-label="One version back"
            disabled={i === 0}
            onClick={() => step(-1)}
          >
            ‹
          </button>
          <button
            type="button"
            className="btn sm"
            data-key="ArrowRight"
            aria-label="One version on"
            disabled={at === now}
            onClick={() => step(1)}
          >
            ›
          </button>
          <button type="button" className="vh" data-key="Shift+ArrowLeft" tabIndex={-1} onClick={() => step(-10)}>
            Ten back
          </button>
          <button type="button" className="vh" data-key="Shift+ArrowRight" tabIndex={-1} onClick={() => step(10)}>
            Ten on
          </button>
          <button type="button" className="vh" data-key="Home" tabIndex={-1} onClick={() => show(from)}>
            The first
          </button>
        </>
      }
      footer={
        <div className="flex wrap keys">
          {Object.entries(tints).map(([k, name]) => (
            <span key={k} className="key">
              <i className={`dot ${k}`} />
              {name}
            </span>
          ))}
          <span className="grow" />
          <span>Taller wrote more. Shaded: what a restore takes back.</span>
          {more && (
            <button type="button" className="link" onClick={more}>
              Older versions
            </button>
          )}
        </div>
      }
    >
      <div className="vs" style={vars({ "--p": p })}>
        <div className="tip">
          <b>Version {at}</b> <span>{event && `${words(event.type)} by ${who(event.actor)}`}</span>{" "}
          <time>{clock(event?.time)}</time>
        </div>
        <div className="rail">
          {at < now && <div className="past" />}
          <svg viewBox="0 0 1000 30" preserveAspectRatio="none" aria-hidden="true">
            {Object.entries(paths).map(([k, d]) => (
              <path key={k} className={k} d={d} style={vars({ "--w": Math.max(1, Math.min(4, 500 / events.length)) })} />
            ))}
          </svg>
          <div className="hdl" />
        </div>
        <input
          type="range"
          min={0}
          max={Math.max(0, events.length - 1)}
          value={i}
          aria-label="Version"
          aria-valuetext={`Version ${at}, ${clock(event?.time)}, ${event ? `${words(event.type)} by ${who(event.actor)}` : ""}`}
          onChange={(e) => show(events[e.currentTarget.valueAsNumber]?.version ?? now)}
        />
        <div className="flex small d3 n ax">
          <span>
            {from}
            <br />
            {clock(events[0]?.time)}
          </span>
          <span className="grow" />
          <span className="r">
            {now}, now
            <br />
            {clock(events.at(-1)?.time)}
          </span>
        </div>
      </div>
    </Card>
  );
}

function Parts(props: {
  kind: string;
  id: string;
  at: number | undefined;
  then: inspect.StoredObject | undefined;
  now: inspect.StoredObject | undefined;
  error: import("@holdfast/client").HoldfastError | undefined;
}) {
  const { then, now, kind } = props;
  const [tab, setTab] = useState<"state" | "entries" | "json">("state");
  const [only, setOnly] = useState(false);
  const [turned, turn] = useState<ReadonlySet<string>>(new Set());
  const rows = useMemo(
    () => tree(then?.state, now ? now.state : then?.state, (path, depth) => depth < 1 !== turned.has(path)),
    [then, now, turned],
  );
  const shown = only ? rows.filter((r) => r.differs) : rows;
  const differing = rows.filter((r) => r.differs && !r.parts).length;
  return (
    <Card
      className="parts"
      title={
        <div className="tabs" role="tablist" aria-label="Parts">
          {(
            [
              ["state", "State"],
              ["entries", "Entries"],
              ["json", "JSON"],
            ] as const
          ).map(([k, label]) => (
            <button key={k} type="button" role="tab" aria-selected={tab === k} onClick={() => setTab(k)}>
              {label}
              {k === "entries" && then?.size && <span className="n">{num(then.size.entryCount)}</span>}
            </button>
          ))}
        </div>
      }
      footer={
        now && tab === "state" ? (
          <>
            {differing ? `${count(differing, "value differs", "values differ")}.` : "Its state is as it is now."} <kbd>d</kbd>{" "}
            <button type="button" className="link" data-key="d" aria-pressed={only} onClick={() => setOnly(!only)}>
              {only ? "shows all again" : "shows what differs alone"}
            </button>
            . Secrets stay sealed, then as now.
          </>
        ) : undefined
      }
    >
      {props.error && <Failure error={props.error} />}
      {!then && !props.error && <Loading lines={5} />}
      {then && tab === "json" && (
        // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls is reached by keys
        <pre className="code big" tabIndex={0}>
          {JSON.stringify(then.state, null, 2)}
        </pre>
      )}
      {then && tab === "entries" && <Entries {...props} collections={then.collections} />}
      {then && tab === "state" && (
        <div className="tw">
          <table className={`tree ${now ? "" : "one"}`}>
            <thead>
              <tr>
                <th>Field</th>
                <th>{props.at ? `At version ${props.at}` : "Now"}</th>
                {now && <th>Now, where it differs</th>}
              </tr>
            </thead>
            <tbody>
              {shown.map((r) => {
                const open = r.parts && r.depth < 1 !== turned.has(r.path);
                const flip = () => {
                  const next = new Set(turned);
                  if (!next.delete(r.path)) next.add(r.path);
                  turn(next);
                };
                return (
                  <tr key={r.path} className={now && r.differs ? "dif" : ""}>
                    <td style={vars({ "--d": r.depth })}>
                      {r.parts ? (
                        <button type="button" className="fo" aria-expanded={open} onClick={flip}>
                          {open ? "▾" : "▸"} {r.name}
                        </button>
                      ) : (
                        r.name
                      )}
                    </td>
                    <td>
                      <Value of={r.value} kind={kind} />
                    </td>
                    {now && <td>{r.differs && <Value of={r.other} kind={kind} />}</td>}
                  </tr>
                );
              })}
            </tbody>
          </table>
          {shown.length === 0 && <Empty title={only ? "Nothing differs" : "Nothing is set"} />}
        </div>
      )}
    </Card>
  );
}

function Value({ of, kind }: { of: Json | undefined; kind: string }) {
  const [text, className] = brief(of, kind !== "state");
  return (
    <span className={className} title={typeof of === "string" && of.length > 20 ? of : undefined}>
      {text}
    </span>
  );
}

function Entries({ kind, id, at, collections }: { kind: string; id: string; at: number | undefined; collections: string[] }) {
  const [collection, setCollection] = useState(collections[0] ?? "");
  const [size, setSize] = useState(50);
  const asked = useAsk(
    `entries ${kind}/${id} ${collection} ${at} ${size}`,
    (hf, signal) =>
      hf.rpc.inspect.getObject(
        { ref: { kind, objectId: id }, collection, pageSize: size, ...(at ? { at: { version: at } } : {}) },
        { signal },
      ),
    { off: !collection },
  );
  if (!collection) return <Empty title="Objects of this kind have no entries" />;
  return (
    <>
      <div className="pad">
        <Seg label="Collection" of={collections.map((c) => [c, c] as const)} value={collection} set={setCollection} />
      </div>
      {asked.error && <Failure error={asked.error} />}
      {asked.loading && !asked.value && <Loading />}
      {asked.value?.entries.length === 0 && <Empty title={`No entry in ${collection}`} />}
      <ul className="ents">
        {asked.value?.entries.map((e) => (
          <li key={e.key}>
            <details>
              <summary data-row>
                <code className="b">{e.key}</code> <span className="cut d2">{gist(e.value)}</span>
              </summary>
              <pre className="code">{JSON.stringify(e.value, null, 2)}</pre>
            </details>
          </li>
        ))}
      </ul>
      {asked.value?.nextPageToken &&
        (size < 200 ? (
          <button type="button" className="btn ghost" onClick={() => setSize(200)}>
            More
          </button>
        ) : (
          <p className="pad small d3">These are the first 200. `holdfast object get` has the rest.</p>
        ))}
    </>
  );
}

const quoted = (text: string) => (/^[[{]/.test(text) ? "" : `“${text.length > 60 ? `${text.slice(0, 60)}…` : text}”`);

/** gist is what a person recognises an entry by. */
export function gist(value: JsonObject | undefined): string {
  if (!value) return "";
  for (const k of ["text", "title", "name", "identifier", "label", "step"]) {
    const v = value[k];
    if (typeof v === "string" && v) return v;
  }
  const text = JSON.stringify(value);
  return text.length > 160 ? `${text.slice(0, 160)}…` : text;
}

function Events(props: {
  events: inspect.Event[];
  at: number;
  show(v: number): void;
  more: (() => void) | undefined;
  busy: boolean;
}) {
  const { events, at } = props;
  const [size, setSize] = useState(12);
  // The chosen one is among those that are shown.
  const back = events.length - events.findIndex((e) => e.version === at);
  const shown = events.slice(-Math.max(size, back + 2)).reverse();
  const rest = events.length - shown.length;
  return (
    <Card
      title="Events"
      meta={
        <>
          <kbd>j</kbd>
          <kbd>k</kbd>
          <span className="hide-s">newest first</span>
        </>
      }
      footer={
        rest > 0 ? (
          <button type="button" className="link" onClick={() => setSize(shown.length + 50)}>
            {num(rest)} older
          </button>
        ) : props.more ? (
          <button type="button" className="link" disabled={props.busy} onClick={props.more}>
            Older ones
          </button>
        ) : undefined
      }
    >
      <table className="t evt">
        <thead>
          <tr>
            <th>Version</th>
            <th>What</th>
            <th>Who</th>
            <th className="hide-s">Wrote</th>
            <th className="r">When</th>
          </tr>
        </thead>
        <tbody>
          {shown.map((e) => (
            <tr key={e.version} aria-selected={e.version === at}>
              <td className="n b">
                <button
                  type="button"
                  className="plain"
                  data-row
                  aria-label={`Version ${e.version}`}
                  onClick={() => props.show(e.version)}
                >
                  {e.version}
                </button>
              </td>
              <td className="cut">
                <i className={`dot ${tint(e)}`} />
                {words(e.type)}
              </td>
              <td className="cut">{who(e.actor)}</td>
              <td className="cut mono d2 hide-s">{[...e.fields, ...e.entries].join(", ")}</td>
              <td className="r n d2">{clock(e.time)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </Card>
  );
}

function Maker({ event, first }: { event: inspect.Event; first: inspect.Event | undefined }) {
  const wrote = [...event.fields, ...event.entries.slice(0, 6)].join(", ");
  return (
    <Card title={`Who made version ${event.version}`}>
      <dl className="kv small pad">
        <dt>Who</dt>
        <dd>{who(event.actor, "a service, for nobody")}</dd>
        <dt>What</dt>
        <dd>{words(event.type)}</dd>
        <dt>When</dt>
        <dd className="n">{clock(event.time, true)}</dd>
        <dt>Request</dt>
        <dd className="mono">{event.requestId || "without an id"}</dd>
        <dt>Wrote</dt>
        <dd className="mono">
          {wrote || "nothing but the version"}
          {event.entryCount > 6 && ` and ${event.entryCount - 6} more`}
        </dd>
        {event.timers.length > 0 && (
          <>
            <dt>Timers</dt>
            <dd className="mono">{event.timers.join(", ")}</dd>
          </>
        )}
        {event === first && event.version > 1 && (
          <>
            <dt>Before</dt>
            <dd>Older versions are not loaded, or gone from the journal.</dd>
          </>
        )}
      </dl>
    </Card>
  );
}

function Timers({ object: o, again }: { object: inspect.StoredObject; again(): void }) {
  const hf = useHoldfast();
  return (
    <Card title="Timers" meta={o.timers.length}>
      <table className="t">
        <tbody>
          {o.timers.map((t) => (
            <tr key={t.name}>
              <td className="cut">
                <Mark as={t.parked ? "sq" : "off"} />
                {words(t.name)}
                <small className="n">{clock(t.nextTime ?? t.dueTime)}</small>
              </td>
              <td className="r n d2">
                {t.parked ? (
                  <Act label="Try again" run={async () => (await hf.inspect(o.kind, o.objectId).retryTimer(t.name), again())} />
                ) : (
                  <In time={t.nextTime ?? t.dueTime} />
                )}
                <small>{t.attempts ? `${t.attempts} failed: ${t.lastError}` : "never failed"}</small>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </Card>
  );
}

/** Restore is the preview of going back, with the smaller act next to it where there is one. */
function Restore(props: {
  kind: string;
  id: string;
  at: number;
  now: number;
  diff: inspect.DiffObjectResponse;
  restore(): Promise<unknown>;
}) {
  const { kind, id, at, now, diff } = props;
  const hf = useHoldfast();
  const title = diff.fields.find((f) => f.field === "title" && typeof f.before === "string");
  const others = diff.fields.filter((f) => f !== title);
  const groups = new Map<string, inspect.EntryDifference[]>();
  for (const e of diff.entries) {
    const sign = e.before && e.after ? "~" : e.before ? "+" : "−";
    groups.set(`${sign} ${e.collection}`, [...(groups.get(`${sign} ${e.collection}`) ?? []), e]);
  }
  const versions = now - at === 1 ? `Version ${now} stays` : `Versions ${at + 1} to ${now} stay`;
  return (
    <Card
      className="rst"
      title={
        <>
          <Icon name="back" />
          <h2>Restore version {at}</h2>
        </>
      }
    >
      <div className="pad">
        <p>
          Makes <b>version {now + 1}</b>, equal to version {at}. {versions} in the journal, so you can undo it.
        </p>
        <ul className="di">
          {title && (
            <li>
              <i>~</i>
              <span>
                <b>title</b> <del>{String(title.after ?? "none")}</del> <ins>{String(title.before)}</ins>
              </span>
            </li>
          )}
          {others.length > 0 && (
            <li>
              <i>~</i>
              <span>
                <b>{title ? count(others.length, "more field") : count(others.length, "field")}</b>{" "}
                <span className="d3">{others.map((f) => f.field).join(", ")}</span>
              </span>
            </li>
          )}
          {[...groups].map(([k, list]) => (
            <li key={k} className={k[0] === "−" ? "w" : ""}>
              <i>{k[0]}</i>
              <span>
                <b>{count(list.length, words(k.slice(2)).replace(/s$/, ""), words(k.slice(2)))}</b>{" "}
                <span className="d3">
                  {list
                    .slice(0, 3)
                    .map((e) => [e.key.replace(/^0+(?=.)/, ""), quoted(gist(e.after ?? e.before))].filter(Boolean).join(" "))
                    .join(", ")}
                  {list.length > 3 && ", …"}
                </span>
              </span>
            </li>
          ))}
          {diff.nextPageToken && (
            <li>
              <i>~</i>
              <span className="d3">{count(diff.entryCount, "entry", "entries")} in all</span>
            </li>
          )}
          <li>
            <i>~</i>
            <span>
              <b>Timers</b> <span className="d3">as they were. Those due by now run at once.</span>
            </span>
          </li>
        </ul>
        <div className="flex wrap">
          <Confirm
            label={`Restore as version ${now + 1}…`}
            className="main"
            keys="r"
            act={`Restore version ${at}`}
            title={`Restore version ${at}?`}
            run={props.restore}
          >
            <p>
              {sentence(id)} becomes what it was at version {at}. If someone changes it meanwhile, nothing happens. To undo it,
              restore version {now}.
            </p>
          </Confirm>
          {kind === "conversation" && (
            <Act
              className=""
              label="Fork from here"
              run={async () => {
                const made = await hf.conversation(id).fork({ atVersion: at });
                go(to("c", made.conversationId));
              }}
            />
          )}
        </div>
      </div>
      {title && kind === "conversation" && (
        <div className="alt">
          <p>
            <b>Want the title only?</b> That changes one field and keeps the rest as it is now.
          </p>
          <Act
            label="Take the title back"
            run={async () => {
              await hf.conversation(id).update({ title: String(title.before) }, { ifVersion: now });
              replace({ v: undefined });
            }}
          />
        </div>
      )}
    </Card>
  );
}

/** useTitle names the tab. */
export function useTitle(title: string | undefined): void {
  useEffect(() => {
    if (title) document.title = `${title} · Holdfast`;
  }, [title]);
}
