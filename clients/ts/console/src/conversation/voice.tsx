// The voice lane: who spoke when, and what one moment of it was.
import type { conversation, inspect, JsonObject } from "@holdfast/client";
import { useEffect, useMemo, useRef, useState } from "react";
import { useAsk, useNow } from "../ask.ts";
import { held } from "../home.tsx";
import { object } from "../route.ts";
import { Card, Icon, Seg, Steps, vars } from "../ui.tsx";
import { count, num, span, words } from "../words.ts";
import { type Lanes, lanesOf, type Moment, offset, type Scale, type Stretch, scale, textOf } from "./lane.ts";
import { argsOf } from "./ledger.tsx";
import { Plan } from "./plan.tsx";

interface Talk {
  c: conversation.Conversation;
  messages: readonly conversation.Message[];
  calls: readonly conversation.ToolCall[];
  events: readonly inspect.Event[];
  state: JsonObject | undefined;
}

export function Voice({ c, messages, calls, events, state }: Talk) {
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

const keys = {
  us: "user",
  ms: "heard",
  gh: "generated, not heard",
  tl: "tools",
  hk: "handle",
  nr: "cannot be resumed from",
};

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
          <Steps of="moment" at={at} last={lanes.moments.length - 1} step={step} />
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
          {Object.entries(keys).map(([k, name]) => (
            <span key={k} className="key">
              <i className={k} />
              {name}
            </span>
          ))}
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

const wordsIn = (text: string) => text.trim().split(/\s+/).filter(Boolean).length;

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
                  ? `The other ${count(wordsIn(rest), "word")} ${wordsIn(rest) === 1 ? "is" : "are"} kept here and told to no model.`
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
