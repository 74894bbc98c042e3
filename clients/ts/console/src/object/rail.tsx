// Every version of an object as a bar, and the place in time on it.
import type { inspect } from "@holdfast/client";
import { useMemo, useState } from "react";
import { Card, Seg, Steps, vars } from "../ui.tsx";
import { clock, who, words } from "../words.ts";
import { tint, tints } from "./journal.tsx";

/** Rail is every version as a bar, and the place in time on it. */
export function Rail({
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
          <Steps of="version" at={i} last={events.length - 1} step={step} />
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
