// The journal of an object: its events, who made them, and where it stands.
import type { Holdfast, inspect } from "@holdfast/client";
import { type Source, useHoldfast } from "@holdfast/react";
import { useCallback, useMemo, useState } from "react";
import { useAct, useAsk } from "../ask.ts";
import { Card } from "../ui.tsx";
import { clock, num, who, words } from "../words.ts";

interface Standing {
  version: number;
  absent: boolean;
}

/** standing follows an object's version: by a watch where there is one for its kind, and otherwise by a look at its newest event. */
export function standing(hf: Holdfast, kind: string, id: string): Source<Standing> {
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

export const tints = { voice: "words", tools: "tools", edits: "edits", sockets: "sockets", quiet: "timers" };

export function Events(props: {
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

export function Maker({ event, first }: { event: inspect.Event; first: inspect.Event | undefined }) {
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
