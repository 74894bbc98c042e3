// The few parts that pages are made of.
import type { HoldfastError } from "@holdfast/client";
import { type CSSProperties, type ReactNode, useEffect, useId, useRef, useState } from "react";
import { useAct, useNow } from "./ask.ts";
import { clock, span, until } from "./words.ts";

const icons = {
  mark: "M8 1.5a2 2 0 1 1 0 4 2 2 0 0 1 0-4M8 5.5V14M8 8c0 3.5-1.8 5-5.2 6M8 8c0 3.5 1.8 5 5.2 6",
  find: "M7 2.8a4.2 4.2 0 1 1 0 8.4 4.2 4.2 0 0 1 0-8.4m3.2 7.4 3.3 3.3",
  home: "M2.5 7 8 2.5 13.5 7v6.5h-11zM6.5 13.5V9.5h3v4",
  object: "M8 1.8 13.5 5v6L8 14.2 2.5 11V5zM2.5 5 8 8.2 13.5 5M8 8.2v6",
  talk: "M2.5 3.5h11v7.5h-6l-3 2.5v-2.5h-2z",
  session: "M2 3h9v7H2zM5 13h3M11.5 6.5H14V13h-3.5v-3",
  project: "M2.5 4h4l1.5 2h5.5v7h-11z",
  api: "M5 2v3M11 2v3M3.5 5h9v2.5a4.5 4.5 0 0 1-9 0zM8 12v2.5",
  clock: "M8 2.3a5.7 5.7 0 1 1 0 11.4A5.7 5.7 0 0 1 8 2.3m0 2.5V8l2.2 1.6",
  state: "M3 4c0-2 10-2 10 0v8c0 2-10 2-10 0zM3 4c0 2 10 2 10 0M3 8c0 2 10 2 10 0",
  copy: "M5.5 5.5h8v8h-8zM10.5 3.2V2.5h-8v8h.8",
  fork: "M4 1.9a1.6 1.6 0 1 1 0 3.2 1.6 1.6 0 0 1 0-3.2m8 0a1.6 1.6 0 1 1 0 3.2 1.6 1.6 0 0 1 0-3.2m-4 9a1.6 1.6 0 1 1 0 3.2 1.6 1.6 0 0 1 0-3.2M4 5.1c0 3 4 2.4 4 5.8M12 5.1c0 3-4 2.4-4 5.8",
  back: "M6 3 2.5 6.5 6 10M2.5 6.5h7a4 4 0 0 1 0 8H8",
  theme: "M8 2.5a5.5 5.5 0 1 1 0 11zm0 0a5.5 5.5 0 1 0 0 11",
  tool: "M9.5 5.5 3 12l1 1 6.5-6.5M9.5 5.5a3 3 0 0 1 4-3.5L11.7 4l.3 1.3 1.3.2 1.8-1.7a3 3 0 0 1-4.6 2.7",
  keys: "M1.5 4.5h13v7h-13zM4 7h.1M6.6 7h.1M9.3 7h.1M12 7h.1M5 9.3h6",
};

export type IconName = keyof typeof icons;

export function Icon({ name }: { name: IconName }) {
  return (
    <svg className="i" viewBox="0 0 16 16" aria-hidden="true">
      <path d={icons[name]} />
    </svg>
  );
}

export type State = "" | "half" | "ring" | "sq" | "off" | "wait" | "live";

/** Mark says how something goes by its shape; a word must stand next to it. */
export const Mark = ({ as }: { as: State }) => <i className={`m ${as}`} aria-hidden="true" />;

/** vars are custom properties, which the stylesheet reads. */
export const vars = (v: Record<`--${string}`, string | number>) => v as CSSProperties;

export function Card(props: {
  title: ReactNode;
  meta?: ReactNode;
  footer?: ReactNode;
  label?: string;
  className?: string;
  children?: ReactNode;
}) {
  return (
    <section className={`card ${props.className ?? ""}`} aria-label={props.label}>
      <header>
        {typeof props.title === "string" ? <h2>{props.title}</h2> : props.title}
        {props.meta !== undefined && <span className="meta">{props.meta}</span>}
      </header>
      {props.children}
      {props.footer && <footer>{props.footer}</footer>}
    </section>
  );
}

/** Empty says what is not there and what to do next. With `page` it is all that the page shows. */
export function Empty({ title, children, code, page }: { title: string; children?: ReactNode; code?: string; page?: boolean }) {
  return (
    <div className="empty">
      {page ? <h1>{title}</h1> : <b>{title}</b>}
      {children}
      {code && <code>{code}</code>}
    </div>
  );
}

/** Loading shows nothing at first, and then lines where text will be. */
export const Loading = ({ lines = 3 }: { lines?: number }) => (
  <div className="pad loading" aria-busy="true">
    {[34, 62, 48, 55, 40].slice(0, lines).map((w) => (
      <i key={w} className="sk-l" style={vars({ "--w": `${w}%` })} />
    ))}
  </div>
);

const reasons: Partial<Record<string, string>> = {
  ROLE_REQUIRED: "This key may not do that. Sign in with one that may.",
  NOT_FOUND: "It is not there: it was never made, was deleted, has expired, or belongs to someone else.",
  UNREACHABLE: "The server does not answer.",
  VERSION_MISMATCH: "Someone changed it while you looked. See what changed, then do it again.",
  HISTORY_GONE: "The journal does not reach so far back. Older states are gone.",
};

export function explain(error: HoldfastError): string {
  const version = error.mismatch?.currentVersion;
  if (error.reason === "VERSION_MISMATCH" && version)
    return `Someone made version ${version} while you looked. See what changed, then do it again.`;
  return reasons[error.reason] ?? `${error.message.replace(/^[\w.]+: /, "")} (${error.reason})`;
}

export function Failure({ error, again }: { error: HoldfastError; again?: (() => void) | undefined }) {
  return (
    <div className="note warn" role="alert">
      <span className="grow">
        <b>{explain(error)}</b>
        {error.traceId && (
          <span className="d2">
            {" "}
            Trace <code>{error.traceId}</code>
          </span>
        )}
      </span>
      {again && (
        <button type="button" className="btn sm" onClick={again}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Seg<T extends string>(props: {
  label: string;
  of: readonly (readonly [NoInfer<T>, ReactNode])[];
  value: T;
  set: (value: NoInfer<T>) => void;
  className?: string;
}) {
  return (
    <fieldset className={`seg ${props.className ?? ""}`}>
      <legend className="vh">{props.label}</legend>
      {props.of.map(([value, label]) => (
        <button key={value} type="button" aria-pressed={value === props.value} onClick={() => props.set(value)}>
          {label}
        </button>
      ))}
    </fieldset>
  );
}

/** Confirm is a button that asks first: what will happen, and whether it can be undone. The button below repeats the verb. */
export function Confirm(props: {
  label: ReactNode;
  act: string;
  title: string;
  children: ReactNode;
  run(): Promise<unknown>;
  className?: string;
  main?: boolean;
  disabled?: boolean;
  keys?: string;
}) {
  const [open, setOpen] = useState(false);
  const { run, busy, error } = useAct();
  const button = useRef<HTMLButtonElement>(null);
  const box = useRef<HTMLDivElement>(null);
  const title = useId();
  const close = () => {
    setOpen(false);
    button.current?.focus();
  };
  useEffect(() => {
    if (!open) return;
    box.current?.querySelector<HTMLElement>("input,button")?.focus();
    const away = (e: Event) => !box.current?.parentElement?.contains(e.target as Node) && setOpen(false);
    addEventListener("pointerdown", away);
    return () => removeEventListener("pointerdown", away);
  }, [open]);
  return (
    <span className="pw">
      <button
        ref={button}
        type="button"
        className={`btn ${props.className ?? ""}`}
        aria-haspopup="dialog"
        data-key={props.keys}
        aria-expanded={open}
        disabled={props.disabled}
        onClick={() => setOpen(!open)}
      >
        {props.label}
      </button>
      {open && (
        <div
          ref={box}
          className="pop"
          role="dialog"
          aria-labelledby={title}
          onKeyDown={(e) => e.key === "Escape" && (e.stopPropagation(), close())}
        >
          <b id={title}>{props.title}</b>
          <div className="d2">{props.children}</div>
          {error && (
            <p className="bad" role="alert">
              {explain(error)}
            </p>
          )}
          <div className="flex">
            <button
              type="button"
              className={`btn ${props.main === false ? "danger" : "main"}`}
              aria-busy={busy}
              disabled={busy}
              onClick={async () => (await run(props.run)) && close()}
            >
              {props.act}
            </button>
            <button type="button" className="btn ghost" onClick={close}>
              Leave it
            </button>
          </div>
        </div>
      )}
    </span>
  );
}

/** Copy is a button that copies, and says so. */
export function Copy({
  text,
  label,
  name,
  className = "",
}: {
  text: string;
  label: ReactNode;
  name?: string;
  className?: string;
}) {
  const [done, set] = useState(false);
  useEffect(() => {
    if (!done) return;
    const timer = setTimeout(() => set(false), 1500);
    return () => clearTimeout(timer);
  }, [done]);
  return (
    <button
      type="button"
      className={`btn ${className}`}
      aria-label={name}
      onClick={() => navigator.clipboard.writeText(text).then(() => set(true))}
    >
      {done ? "Copied" : label}
    </button>
  );
}

/** In is how long until a time, counted down, or since it. */
export function In({ time, ago }: { time: string | undefined; ago?: boolean }) {
  const left = until(time, useNow());
  if (!time) return null;
  return ago ? (
    <span>{left > -1000 ? "now" : `${span(left)} ago`}</span>
  ) : left > 0 ? (
    <>in {span(Math.ceil(left / 1000) * 1000)}</>
  ) : (
    <>due {clock(time)}</>
  );
}

/** Window is how much of a limit is used. */
export function Window({
  used,
  limit,
  label,
  big,
  refused,
}: {
  used: number;
  limit: number;
  label: string;
  big?: boolean;
  refused?: boolean;
}) {
  const v = limit > 0 ? Math.min(100, Math.round((used / limit) * 100)) : 0;
  return (
    // biome-ignore lint/a11y/useSemanticElements: browsers draw a <meter> their own way
    <div
      className={`win ${big ? "big" : ""} ${refused || v >= 100 ? "bad" : v >= 85 ? "warn" : ""}`}
      role="meter"
      aria-label={label}
      aria-valuenow={v}
      aria-valuemin={0}
      aria-valuemax={100}
      style={vars({ "--v": v })}
    >
      <i />
    </div>
  );
}

/** useRows moves a selection through the rows of the page by j and k; Enter opens it, because a row has a link. */
export function rows(key: "j" | "k"): void {
  const links = [...document.querySelectorAll<HTMLElement>("[data-row]")].filter((e) => e.offsetParent);
  const at = links.indexOf(document.activeElement as HTMLElement);
  links[Math.max(0, Math.min(links.length - 1, at < 0 ? 0 : at + (key === "j" ? 1 : -1)))]?.focus();
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

/** useTitle names the tab. */
export function useTitle(title: string | undefined): void {
  useEffect(() => {
    if (title) document.title = `${title} · Holdfast`;
  }, [title]);
}

/** Steps are the buttons that go one back and one on, and the keys that go ten. */
export function Steps(props: { of: string; at: number; last: number; step(by: number): void }) {
  const { of, at, last, step } = props;
  return (
    <>
      <button
        type="button"
        className="btn sm"
        data-key="ArrowLeft"
        aria-label={`One ${of} back`}
        disabled={at <= 0}
        onClick={() => step(-1)}
      >
        ‹
      </button>
      <button
        type="button"
        className="btn sm"
        data-key="ArrowRight"
        aria-label={`One ${of} on`}
        disabled={at >= last}
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
    </>
  );
}
