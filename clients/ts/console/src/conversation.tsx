// A conversation: who spoke when, what a model would be told, and what happens if its socket dies.
import type { conversation, inspect, JsonObject, live } from "@holdfast/client";
import { useConversation, useConversations, useHoldfast } from "@holdfast/react";
import { useEffect, useMemo, useRef, useState } from "react";
import { useAsk, useNow } from "./ask.ts";
import { going, held, Talks } from "./home.tsx";
import { handlesOf, type Lanes, lanesOf, type Moment, offset, type Scale, type Stretch, scale, textOf } from "./lane.ts";
import { useEvents, useTitle } from "./object.tsx";
import { object, replace, useRoute } from "./route.ts";
import { Card, Empty, explain, Failure, Icon, Loading, Mark, Seg, vars } from "./ui.tsx";
import { clock, count, ms, num, span, until, who, words } from "./words.ts";

export function Conversations() {
  const { query } = useRoute();
  const live = useConversations({}, { limit: 200 });
  const now = useNow();
  const text = query.get("name") ?? "";
  const all = live.value ?? [];
  const shown = all.filter((c) => `${c.title} ${c.conversationId} ${c.owner}`.toLowerCase().includes(text.toLowerCase()));
  const open = all.filter((c) => held(c, now)).length;
  return (
    <>
      <div className="head">
        <div className="grow">
          <h1>{open ? `${count(open, "conversation")} ${open === 1 ? "is" : "are"} live` : "Conversations"}</h1>
          <p>The last changed first, live. {all.length === 200 && "These are the newest 200; Objects has all of them."}</p>
        </div>
      </div>
      {live.status === "failed" && <Failure error={live.error} again={live.retry} />}
      <Card
        title={
          <label className="filter">
            <span className="vh">Name, id or owner</span>
            <input
              type="search"
              placeholder="Name, id or owner"
              defaultValue={text}
              onChange={(e) => replace({ name: e.target.value })}
            />
          </label>
        }
        meta={num(shown.length)}
      >
        {live.status === "loading" ? (
          <Loading lines={5} />
        ) : all.length === 0 ? (
          <Empty title="No conversation yet" code="holdfast replay examples/gemini-live-session.jsonl">
            Start one, or watch a recorded voice session become one. It appears here while it happens.
          </Empty>
        ) : shown.length === 0 ? (
          <Empty title={`Nothing has “${text}” in its name`} />
        ) : (
          <Talks of={shown} />
        )}
      </Card>
    </>
  );
}

export function Conversation({ id }: { id: string }) {
  const view = useConversation(id, { messages: 200, signals: true });
  const now = useNow();
  const version = view.value?.version;
  const { events } = useEvents("conversation", id, version);
  const stored = useAsk(
    `stored ${id}`,
    (hf, signal) => hf.rpc.inspect.getObject({ ref: { kind: "conversation", objectId: id } }, { signal }),
    {
      since: version,
      off: version === undefined || version === 0,
    },
  );
  const past = useAsk(
    `calls ${id}`,
    (hf, signal) => hf.rpc.conversation.listRecords({ conversationId: id, types: ["tool_call"], pageSize: 200 }, { signal }),
    { since: version },
  );
  const calls = useMemo(() => {
    const all = new Map<number, conversation.ToolCall>();
    for (const r of past.value?.records ?? []) if (r.toolCall) all.set(r.toolCall.seq, r.toolCall);
    for (const t of view.value?.toolCalls ?? []) all.set(t.seq, t);
    return [...all.values()].sort((a, b) => a.seq - b.seq);
  }, [past.value, view.value?.toolCalls]);
  const c = view.value?.conversation;
  useTitle(c?.title);
  if (view.status === "failed" && !view.value) return <Failure error={view.error} again={view.retry} />;
  if (view.status === "loading") return <Loading lines={5} />;
  if (!c)
    return (
      <div className="card">
        <Empty page title={`There is no conversation ${id}`}>
          It appears here when it is made. If it was deleted,{" "}
          <a className="link" href={object("conversation", id)}>
            its versions
          </a>{" "}
          can bring it back.
        </Empty>
      </div>
    );
  const messages = view.value?.messages ?? [];
  const [mark, word] = going(c, now);
  const state = stored.value?.object?.state;
  return (
    <>
      <div className="head">
        <div className="grow">
          <div className="flex wrap">
            <h1>{c.title || c.conversationId}</h1>
            <span className={`chip ${mark === "live" ? "tide" : mark === "half" ? "warn" : ""}`}>
              <Mark as={mark} />
              {word}
              {mark === "live" && c.live?.openTime && `, ${span(now - Date.parse(c.live.openTime))}`}
            </span>
          </div>
          <p className="small">
            <code>{id}</code>, {c.owner ? `${c.owner}’s` : "the tenant’s"}
            {c.projectId && `, project ${c.projectId}`}, {count(c.messageCount, "message")}, {count(c.tokenCount, "token")}.{" "}
            <Renamed id={id} events={events} />
          </p>
        </div>
        <a className="btn" href={object("conversation", id)}>
          <Icon name="clock" />
          Versions<span className="d3 n">{num(c.version)}</span>
        </a>
      </div>
      <Voice c={c} messages={messages} calls={calls} events={events} state={state} />
      <Told id={id} version={c.version} messages={messages} calls={calls} total={c.messageCount} voice={view.value?.voice} />
      {calls.length > 0 && <Ledger calls={calls} c={c} />}
    </>
  );
}

/** Renamed says which change gave the title, and leads to the version before it. */
function Renamed({ id, events }: { id: string; events: readonly inspect.Event[] }) {
  const last = events.findLast((e) => e.fields.includes("title") && e.version > 1);
  const v = last?.version ?? 0;
  const asked = useAsk(
    `renamed ${id} ${v}`,
    (hf, signal) =>
      hf.rpc.inspect.diffObject(
        { ref: { kind: "conversation", objectId: id }, from: { version: v - 1 }, to: { version: v } },
        { signal },
      ),
    { off: v < 2 },
  );
  const before = asked.value?.fields.find((f) => f.field === "title")?.before;
  if (!last || !before) return null;
  return (
    <>
      Renamed by {who(last.actor)} at {clock(last.time)}, was “{String(before)}”.{" "}
      <a className="link" href={`${object("conversation", id)}?v=${v - 1}`}>
        Go back
      </a>
    </>
  );
}

interface Talk {
  c: conversation.Conversation;
  messages: readonly conversation.Message[];
  calls: readonly conversation.ToolCall[];
  events: readonly inspect.Event[];
  state: JsonObject | undefined;
}

function Voice({ c, messages, calls, events, state }: Talk) {
  const tick = useNow();
  const open = held(c, tick);
  const now = open ? tick : 0;
  // A minute is enough where nothing is open.
  const lanes = useMemo(
    () => lanesOf(c, messages, calls, events, state, now || Date.now()),
    [c, messages, calls, events, state, now],
  );
  const places = useMemo(() => lanes && scale(lanes), [lanes]);
  const [chosen, choose] = useState<Moment>();
  const spoken = messages.some((m) => m.modality === "voice") || c.live;
  const moment =
    lanes?.moments.find((m) => m.what === chosen?.what && m.seq === chosen.seq) ??
    lanes?.moments.findLast((m) => m.what === "interrupted") ??
    lanes?.moments.at(-1);
  if (!lanes || !places || !spoken || !moment) return null;
  return (
    <>
      <Lane lanes={lanes} places={places} moment={moment} choose={choose} open={open} />
      <div className="g2">
        <MomentCard lanes={lanes} moment={moment} messages={messages} calls={calls} events={events} id={c.conversationId} />
        <Plan c={c} state={state} />
      </div>
    </>
  );
}

function Lane(props: { lanes: Lanes; places: Scale; moment: Moment; choose(m: Moment): void; open: boolean }) {
  const { lanes, places, moment, choose, open } = props;
  const { x } = places;
  const [zoom, setZoom] = useState(1);
  const box = useRef<HTMLDivElement>(null);
  const at = lanes.moments.indexOf(moment);
  const step = (by: number) => {
    const next = lanes.moments[Math.max(0, Math.min(lanes.moments.length - 1, at + by))];
    if (next) choose(next);
  };
  const cuts = lanes.moments.filter((m) => m.what === "interrupted");
  const p = x(moment.at);
  // While it is live the newest is in view, unless someone looks at a moment.
  const end = lanes.end;
  useEffect(() => {
    const e = box.current;
    if (!e || zoom === 1) return;
    const place = (p / 100) * (e.scrollWidth - 96) + 96;
    if (place < e.scrollLeft + 110 || place > e.scrollLeft + e.clientWidth - 20) e.scrollLeft = place - e.clientWidth / 2;
  }, [p, zoom]);
  return (
    <Card
      label="Voice lane"
      title={
        <>
          <h2>Voice lane</h2>
          <span className="small d3 hide-s">
            {span(end - lanes.begin)}
            {places.folds.length > 0 && ", quiet folded"}
          </span>
        </>
      }
      meta={
        <>
          <span className="hide-s">
            <kbd>←</kbd> <kbd>→</kbd> next moment, <kbd>i</kbd> next interruption
          </span>
          <button type="button" className="btn sm" data-key="ArrowLeft" aria-label="The moment before" onClick={() => step(-1)}>
            ‹
          </button>
          <button type="button" className="btn sm" data-key="ArrowRight" aria-label="The next moment" onClick={() => step(1)}>
            ›
          </button>
          <button type="button" className="vh" data-key="Shift+ArrowLeft" tabIndex={-1} onClick={() => step(-10)}>
            Ten back
          </button>
          <button type="button" className="vh" data-key="Shift+ArrowRight" tabIndex={-1} onClick={() => step(10)}>
            Ten on
          </button>
          <button
            type="button"
            className="btn sm"
            data-key="i"
            disabled={cuts.length === 0}
            onClick={() => {
              const next = cuts.find((m) => m.at > moment.at) ?? cuts[0];
              if (next) choose(next);
            }}
          >
            {cuts.length === 0 ? "No interruption" : count(cuts.length, "interruption")}
          </button>
          <Seg
            label="Zoom"
            of={[
              ["1", "Fit"],
              ["2", "×2"],
              ["5", "×5"],
            ]}
            value={String(zoom) as "1" | "2" | "5"}
            set={(z) => setZoom(Number(z))}
          />
        </>
      }
      footer={
        <div className="flex wrap keys">
          <span className="key">
            <i className="us" />
            user
          </span>
          <span className="key">
            <i className="ms" />
            heard
          </span>
          <span className="key">
            <i className="gh" />
            generated, not heard
          </span>
          <span className="key">
            <i className="tl" />
            tools
          </span>
          <span className="key">
            <i className="hk" />
            handle
          </span>
          <span className="key">
            <i className="nr" />
            cannot be resumed from
          </span>
          <span className="grow" />
          <span>Where a stretch ends is when its words had come.</span>
        </div>
      }
    >
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls is reached by keys */}
      <section ref={box} className="lw" tabIndex={0} aria-label="Lanes over time, scrolls sideways">
        <div className="lanes" style={vars({ "--z": zoom })}>
          <div className="ln rl">
            <div className="lb" />
            <div className="tk">
              {places.ticks.map((k) => (
                <span key={k.t} style={vars({ "--x": k.at })}>
                  {offset(k.t, false)}
                </span>
              ))}
            </div>
          </div>
          <Track name="User" hint="voice, text" of={lanes.user} {...{ x, choose, moment }} />
          <Track name="Model" hint="words" of={lanes.model} {...{ x, choose, moment }} />
          <Track name="Tools" hint="asked to done" of={lanes.tools} what="tool" {...{ x, choose, moment }} />
          <div className="ln">
            <div className="lb">
              <b>Socket</b>
              <span>handles</span>
            </div>
            <div className="tk short">
              {lanes.sockets.map((s) => (
                <span key={s.from} className={`bar sb ${s.open ? "" : "over"}`} style={place(s, x)} title={s.text}>
                  {s.text}
                </span>
              ))}
              {lanes.handles.map((h, i) => {
                const next = lanes.handles.slice(i + 1).find((n) => n.resumable);
                return h.resumable ? (
                  <i key={h.id} className="hd" title={`handle ${h.id}`} style={vars({ "--x": x(h.at) })} />
                ) : (
                  <span
                    key={h.id}
                    className="bar nr"
                    style={place({ from: h.at, to: next?.at ?? end }, x)}
                    title="not resumable"
                  />
                );
              })}
            </div>
          </div>
          <div className="ov" aria-hidden="true">
            {places.folds.map((f) => (
              <div key={f.at} className="fold" style={vars({ "--x": f.at, "--w": f.width })}>
                <span>{span(f.ms)} quiet</span>
              </div>
            ))}
            {cuts.map((m) => (
              <i key={m.seq} className="hot" style={vars({ "--x": x(m.at) })} />
            ))}
            {open && <i className="nw" style={vars({ "--x": x(end) })} />}
            <div className="cur" style={vars({ "--x": p })}>
              <b>{offset(moment.at - lanes.begin)}</b>
            </div>
          </div>
        </div>
      </section>
    </Card>
  );
}

const place = (s: Pick<Stretch, "from" | "to">, x: Scale["x"]) =>
  vars({ "--x": x(s.from), "--w": Math.max(0.35, x(s.to) - x(s.from)) });

function Track(props: {
  name: string;
  hint: string;
  of: Stretch[];
  what?: "tool";
  x: Scale["x"];
  choose(m: Moment): void;
  moment: Moment;
}) {
  const { x, of, moment, what = "said" } = props;
  return (
    <div className="ln">
      <div className="lb">
        <b>{props.name}</b>
        <span>{props.hint}</span>
      </div>
      <div className="tk">
        {of.map((s, i) => {
          const next = of[i + 1];
          const room = (next ? x(next.from) : 100) - x(s.from);
          return (
            <button
              key={`${s.from} ${s.seq}`}
              type="button"
              className={`st ${moment.seq === s.seq && moment.what === what ? "on" : ""}`}
              style={vars({ "--x": x(s.from), "--w": room })}
              onClick={() => props.choose({ at: s.from, what, seq: s.seq ?? 0 })}
              title={s.text}
            >
              {s.typed ? (
                <span className="kb">
                  <Icon name="keys" />
                </span>
              ) : (
                <i
                  className={`sound ${s.className}`}
                  style={vars({
                    "--w": (100 * Math.max(0.35, x(s.to) - x(s.from))) / Math.max(0.35, room),
                    "--heard": (s.heard ?? 1) * 100,
                  })}
                />
              )}
              <span className="tx">{s.text}</span>
            </button>
          );
        })}
      </div>
    </div>
  );
}

const count2 = (text: string) => text.trim().split(/\s+/).filter(Boolean).length;

function MomentCard(props: { lanes: Lanes; moment: Moment; id: string } & Omit<Talk, "c" | "state">) {
  const { lanes, moment, messages, calls, events, id } = props;
  const m = moment.what === "said" || moment.what === "interrupted" ? messages.find((m) => m.seq === moment.seq) : undefined;
  const call = moment.what === "tool" ? calls.find((t) => t.seq === moment.seq) : undefined;
  const frames = useAsk(`frames ${id}`, (hf, signal) =>
    hf.rpc.live.listLiveFrames({ conversationId: id, pageSize: 1 }, { signal }),
  );
  const text = m ? textOf(m) : "";
  const heard = m?.spoken?.heardText;
  const rest = heard !== undefined ? text.slice(heard.length) : "";
  // What the journal has around that moment.
  const near = events.filter((e) => e.type !== "created");
  const i = near.findIndex((e) => Date.parse(e.time ?? "") >= moment.at);
  const around = near.slice(Math.max(0, (i < 0 ? near.length : i) - 2), (i < 0 ? near.length : i) + 3);
  const says = {
    interrupted: "the user spoke over the model",
    said: m?.role === "user" ? (m.modality === "voice" ? "the user speaks" : "the user types") : "the model speaks",
    tool: `the model asks for ${call?.name ?? "a tool"}`,
    socket: `epoch ${moment.seq} begins`,
  }[moment.what];
  return (
    <Card
      className="moment"
      title={`${offset(moment.at - lanes.begin)}, ${says}`}
      meta={m ? `message ${m.seq}` : call ? call.callId : ""}
      footer={
        frames.value?.batches.length ? (
          <>
            Frames are kept here. <code>holdfast replay --conversation {id} --explain</code> shows what each of them changed, and
            by which rule.
          </>
        ) : (
          "No frames are kept here. A connection that is opened with keepFramesFor keeps them."
        )
      }
    >
      <div className="pad">
        {m && (
          <>
            <p className="cutx">
              {heard !== undefined ? (
                <>
                  {heard}
                  {m.status === "interrupted" && <i className="ck" title="cut" />}
                  <del>{rest}</del>
                </>
              ) : (
                text
              )}
            </p>
            {heard !== undefined && (
              <p className="small d2">
                {m.spoken?.playedMs !== undefined && !m.spoken.heardEstimated
                  ? `Heard ${num(m.spoken.playedMs)} ms, as the page reported.`
                  : "Nobody reported what was played. This is what had been transcribed when the user spoke."}{" "}
                {rest.trim()
                  ? `The other ${count(count2(rest), "word")} ${count2(rest) === 1 ? "is" : "are"} kept here and told to no model.`
                  : "All of it was heard."}
              </p>
            )}
            {m.status === "interrupted" && heard === undefined && (
              <p className="small d2">The user spoke before any of its words came.</p>
            )}
          </>
        )}
        {call && <p className="mono small">{argsOf(call)}</p>}
      </div>
      <ol className="fr">
        {around.map((e) => (
          <li key={e.version} className={e === near[i] ? "on" : ""}>
            <time>{offset(Date.parse(e.time ?? "") - lanes.begin)}</time>
            <a className="link" href={`${object("conversation", id)}?v=${e.version}`}>
              version {e.version}
            </a>
            <span className="cut">
              {words(e.type)}
              {e.entries.length > 0 &&
                `: ${e.entries
                  .filter((k) => !k.startsWith("call_refs"))
                  .map((k) => k.replace(/s\/0*/, " "))
                  .join(", ")}`}
            </span>
          </li>
        ))}
      </ol>
    </Card>
  );
}

/** What the plan says, in a verdict and its reasons. */
function verdict(plan: live.Plan): ["" | "half" | "off", string] {
  const told = turnsOf(plan);
  if (plan.reason === "resumed") return ["", told ? "Resume, and tell it what it missed." : "Resume at once. No word is lost."];
  const why = {
    first: "Begin: it is the first connection.",
    handle_expired: "Start fresh: the handle is too old.",
    handle_refused: "Start fresh: the handle was refused.",
    setup_changed: "Start fresh.",
    no_handle: "Start fresh: there is no handle to resume with.",
  };
  return ["half", why[plan.reason as keyof typeof why] ?? "Start fresh."];
}

function turnsOf(plan: live.Plan): number {
  const content = (plan.send?.["clientContent"] ?? {}) as JsonObject;
  return Array.isArray(content["turns"]) ? content["turns"].length : 0;
}

function Plan({ c, state }: { c: conversation.Conversation; state: JsonObject | undefined }) {
  const [how, setHow] = useState<"now" | "fresh">("now");
  const now = useNow();
  const hf = useHoldfast();
  // A handle is given to the user who received it, so the question is asked as that user.
  const user = c.live?.user;
  const as = useMemo(() => (user ? hf.as(user) : hf), [hf, user]);
  const stored = state?.["live"] as JsonObject | undefined;
  const fencingToken = c.live?.lease?.fencingToken;
  const asked = useAsk(
    `plan ${c.conversationId} ${how} ${user}`,
    (_, signal) =>
      as.rpc.live.connectLive(
        {
          conversationId: c.conversationId,
          validateOnly: true,
          takeOver: true,
          setupHash: how === "fresh" ? "another" : String(stored?.["setup_hash"] ?? ""),
          ...(c.live ? { provider: c.live.provider } : {}),
          ...(fencingToken ? { previous: { fencingToken } } : {}),
        },
        { signal },
      ),
    { since: c.version, off: !stored },
  );
  const plan = asked.value?.plan;
  const handle = handlesOf(state).findLast((h) => h.resumable);
  if (!c.live) return null;
  const [mark, says] = plan ? verdict(plan) : (["off", ""] as const);
  const told = plan ? turnsOf(plan) : 0;
  return (
    <Card title="If the socket dies now">
      <div className="pad">
        <Seg
          label="When"
          of={[
            ["now", "Now"],
            ["fresh", "If it must start fresh"],
          ]}
          value={how}
          set={setHow}
        />
        {asked.error && <p className="bad small">{explain(asked.error)}</p>}
        {plan && (
          <div className="pl">
            <p className="verdict">
              <Mark as={mark} />
              {says}
            </p>
            <ul>
              {plan.reason === "resumed" && handle && (
                <li>
                  <i className="y">✓</i>
                  <span>
                    Handle {handle.id} came at {clock(new Date(handle.at).toISOString())}, {span(now - handle.at)} ago.
                  </span>
                </li>
              )}
              {told > 0 ? (
                <li>
                  <i>→</i>
                  <span>
                    {plan.reason === "resumed" ? "It does not know all." : "A new session knows nothing."} {count(told, "turn")}{" "}
                    {told === 1 ? "is" : "are"} told after the setup.
                  </span>
                </li>
              ) : (
                <li>
                  <i className="y">✓</i>
                  <span>It knows every message. Nothing is told again.</span>
                </li>
              )}
              {plan.toolCalls.map((t) => (
                <li key={t.seq}>
                  <i className="w">!</i>
                  <span>
                    <code>{t.callId || t.name}</code> has no response yet.{" "}
                    {t.claim ? `It goes on at ${t.claim.holder}.` : "Nobody has claimed it."} Its result becomes a message if the
                    session is another.
                  </span>
                </li>
              ))}
              {plan.connectAfter && ms(plan.connectAfter) > 0 && (
                <li>
                  <i className="w">!</i>
                  <span>Wait {span(ms(plan.connectAfter))} before connecting.</span>
                </li>
              )}
              {c.live.goAwayTime && until(c.live.goAwayTime, now) > 0 && (
                <li>
                  <i className="w">!</i>
                  <span>Google closes this socket at {clock(c.live.goAwayTime)}.</span>
                </li>
              )}
              <li>
                <i className="y">✓</i>
                <span>
                  Epoch {fencingToken} is stored up to frame {c.live.storedThrough}. Newer ones are sent again.
                </span>
              </li>
            </ul>
          </div>
        )}
      </div>
    </Card>
  );
}

const role = {
  user: ["User", "cu"],
  assistant: ["Model", "cmo"],
  system: ["System", "d2"],
  tool: ["Tool", "cto"],
  unspecified: ["", ""],
} as const;

function argsOf(t: conversation.ToolCall): string {
  return t.argsJson || (t.args ? JSON.stringify(t.args) : t.argsOmitted || "without arguments");
}

function resultOf(t: conversation.ToolCall): string {
  return t.responseJson || (t.response !== undefined ? JSON.stringify(t.response) : t.responseOmitted || "");
}

/** Told is the conversation as it is, next to what a model would be told of it within a budget. */
function Told(props: {
  id: string;
  version: number;
  messages: readonly conversation.Message[];
  calls: readonly conversation.ToolCall[];
  total: number;
  voice: { status: string; lastTranscription: string; interim: boolean } | undefined;
}) {
  const { id, messages, calls, voice } = props;
  const [budget, setBudget] = useState<"32000" | "8000" | "256">("8000");
  const asked = useAsk(
    `told ${id} ${budget}`,
    (hf, signal) =>
      hf.rpc.conversation.getContextWindow({ conversationId: id, budgetTokens: Number(budget), format: "neutral" }, { signal }),
    { since: props.version },
  );
  const { window: w, items = [] } = asked.value ?? {};
  const saidOf = new Map(items.flatMap((i) => (i.message ? [[i.message.seq, i.message] as const] : [])));
  const callsOf = new Map(items.flatMap((i) => (i.toolCall ? [[i.toolCall.seq, i.toolCall] as const] : [])));
  const summary = items.find((i) => i.summary)?.summary;
  const first = messages[0];
  const begin = Date.parse(first?.createTime ?? "");
  const rows = [
    ...messages.map((m) => ({ at: m.seq, m, t: undefined })),
    ...calls
      .filter((t) => !first || t.afterSeq >= first.seq)
      .map((t) => ({ at: t.afterSeq + 0.5 + t.seq / 1e6, m: undefined, t })),
  ].sort((a, b) => a.at - b.at);
  const why = (m: conversation.Message): string =>
    m.hidden
      ? "Hidden from models."
      : summary && m.seq <= summary.toSeq
        ? `In summary ${summary.seq}.`
        : m.status === "streaming"
          ? "Not yet: it is still being said."
          : "Left out: the budget is spent on newer ones.";
  return (
    <Card
      title="As it is, and as a model is told"
      meta={
        <>
          <span className="hide-s">
            {w &&
              `${count(w.totalTokens, "token")}${w.droppedCount ? `, ${w.droppedCount} left out` : ", all told"}${w.overBudget ? ", over the budget" : ""}`}
          </span>
          <Seg
            label="Budget in tokens"
            of={[
              ["32000", "32,000"],
              ["8000", "8,000"],
              ["256", "256"],
            ]}
            value={budget}
            set={setBudget}
          />
        </>
      }
    >
      {asked.error && <Failure error={asked.error} again={asked.again} />}
      <div className="chat">
        <div className="cm hd2">
          <div />
          <div />
          <div>As it is</div>
          <div className="told">As a model is told</div>
        </div>
        {props.total > messages.length && (
          <div className="brk">
            {count(props.total - messages.length, "older message")} are not shown here.{" "}
            <a className="link" href={object("conversation", id)}>
              Its entries have them
            </a>
          </div>
        )}
        {summary && (
          <div className="brk">
            Summary {summary.seq} stands for messages up to {summary.toSeq}: {summary.text}
          </div>
        )}
        {rows.length === 0 && <Empty title="Nothing was said yet">Messages appear here as they are said.</Empty>}
        {rows.map(({ m, t }) => {
          if (m) {
            const said = saidOf.get(m.seq);
            const text = textOf(m);
            const told = said && textOf(said);
            const heard = m.spoken?.heardText;
            const same = told === text;
            return (
              <div key={`m${m.seq}`} className={`cm ${same ? "" : "df"}`}>
                <div className="mt n">{m.seq}</div>
                <div className="wh">
                  <b className={role[m.role][1]}>{role[m.role][0]}</b>
                  <time>{offset(Date.parse(m.createTime ?? "") - begin, false)}</time>
                </div>
                <div className="as">
                  <p>
                    {heard !== undefined ? (
                      <>
                        {heard}
                        {m.status === "interrupted" && <i className="ck" />}
                        <del>{text.slice(heard.length)}</del>
                      </>
                    ) : (
                      text
                    )}
                    {m.modality !== "voice" && m.role === "user" && <span className="kd">typed</span>}
                    {m.status !== "complete" && m.status !== "unspecified" && <span className="kd">{m.status}</span>}
                    {m.pinned && <span className="kd">pinned</span>}
                  </p>
                </div>
                <div className="told">
                  {!asked.value ? null : same ? (
                    <span className="same">Same words, {count(m.tokenCount ?? 0, "token")}</span>
                  ) : told === undefined ? (
                    <span className="lo">{why(m)}</span>
                  ) : (
                    <>
                      {told || "Nothing"}
                      <span className="why">{heard !== undefined ? "cut to what was heard" : "told in other words"}</span>
                    </>
                  )}
                </div>
              </div>
            );
          }
          if (!t) return null;
          const told = callsOf.get(t.seq);
          const result = resultOf(t);
          return (
            <div key={`t${t.seq}`} className={`cm tc ${told ? "" : "df"}`}>
              <div />
              <div className="wh">
                <b className="flex">
                  <Icon name="tool" />
                  Tool
                </b>
                <time>{offset(Date.parse(t.createTime ?? "") - begin, false)}</time>
              </div>
              <div className="as">
                <p className="mono">
                  <b>{t.name}</b> <span className="d3">{t.callId}</span>
                  <br />
                  {argsOf(t)}
                  {result && (
                    <>
                      <br />
                      <span className={t.isError ? "bad" : "d3"}>
                        → {result.length > 400 ? `${result.slice(0, 400)}…` : result}
                      </span>
                    </>
                  )}
                </p>
              </div>
              <div className="told">
                {!asked.value ? null : told ? (
                  <span className="same">{result ? "The call and its response" : "The call, without a response"}</span>
                ) : (
                  <span className="lo">{result ? "Left out." : "Not yet told. It waits for its response."}</span>
                )}
              </div>
            </div>
          );
        })}
        {voice?.interim && voice.lastTranscription && (
          <div className="cm">
            <div />
            <div className="wh">
              <b className="cu">User</b>
            </div>
            <div className="as d3">{voice.lastTranscription}…</div>
            <div className="told">
              <span className="same">Being said</span>
            </div>
          </div>
        )}
      </div>
    </Card>
  );
}

const marks = {
  pending: "wait",
  running: "live",
  completed: "",
  cancelled: "off",
  orphaned: "half",
  unspecified: "off",
} as const;

function Ledger({ calls, c }: { calls: readonly conversation.ToolCall[]; c: conversation.Conversation }) {
  const now = useNow();
  const done = calls.filter((t) => t.status === "completed").length;
  return (
    <Card title="Tool calls" meta={`${done} done, ${calls.length - done} not`}>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls is reached by keys */}
      <section className="tw" tabIndex={0} aria-label="The ledger, scrolls sideways">
        <table className="t wide">
          <thead>
            <tr>
              <th>Call</th>
              <th>Asked</th>
              <th>Claimed by</th>
              <th>State</th>
              <th>Where the result went</th>
            </tr>
          </thead>
          <tbody>
            {calls.map((t) => {
              const lasted = Date.parse(t.updateTime ?? "") - Date.parse(t.createTime ?? "");
              const open = t.status === "pending" || t.status === "running";
              return (
                <tr key={t.seq}>
                  <td className="cut">
                    <b>{t.name}</b>
                    <small className="mono cut">{t.callId}</small>
                  </td>
                  <td>
                    epoch {t.fromConnection}
                    <small>{t.afterSeq ? `after message ${t.afterSeq}` : "at the beginning"}</small>
                  </td>
                  <td className="cut">
                    {t.claim?.holder || (t.claim ? "its connection" : "nobody")}
                    <small className="n">
                      {t.claim
                        ? `fence ${t.claim.fencingToken}${open ? `, lease ${span(Math.max(0, until(t.claim.expireTime, now)))}` : ""}`
                        : open
                          ? "a worker may claim it"
                          : ""}
                    </small>
                  </td>
                  <td>
                    <Mark as={marks[t.status]} />
                    {t.status === "orphaned" ? "Its socket is gone" : words(t.status).replace(/^./, (a) => a.toUpperCase())}
                    <small className="n">
                      {open ? `for ${span(now - Date.parse(t.createTime ?? ""))}` : `in ${span(lasted)}`}
                    </small>
                  </td>
                  <td>
                    {t.resultSeq
                      ? `Message ${t.resultSeq}`
                      : t.deliveredConnection
                        ? `A frame on epoch ${t.deliveredConnection}`
                        : t.status === "completed"
                          ? "Not told yet"
                          : "Nowhere yet"}
                    <small>
                      {t.resultSeq
                        ? "as text, since its socket was gone"
                        : t.isError
                          ? "as an error"
                          : !t.deliveredConnection && c.live
                            ? "if the socket goes: a message"
                            : ""}
                    </small>
                  </td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </section>
    </Card>
  );
}
