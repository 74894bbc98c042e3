import type { LiveConversation } from "@holdfast/react/voice";
import { type ReactElement, type ReactNode, useEffect, useState } from "react";
import { Icon } from "./icon.tsx";
import type { State } from "./page.tsx";

/** Now explains what Holdfast does, in sentences. */
export function Now({ talk, state }: { talk: LiveConversation; state: State }) {
  const now = useClock();
  const stored = `all ${talk.messages.length} messages`;
  const tools = talk.tools.length === 0 ? "none waits" : talk.tools.map((t) => `${t.name} ${t.state}`).join(", ");
  switch (state) {
    case "idle":
      return (
        <Box title="Nothing is open" foot="Talking opens one socket and takes the microphone for this device.">
          <Row name="Socket">none</Row>
          <Row name="Microphone">free, nobody holds it</Row>
          <Row name="Stored">{stored}</Row>
          <Row name="Tools">{tools}</Row>
        </Box>
      );
    case "live": {
      const c = talk.connection;
      const closes = c?.closesAt && Math.max(0, c.closesAt - now);
      return (
        <Box
          title={talk.unsent === 0 ? "If this tab dies now, nothing is lost" : "If this tab dies now, a word is lost"}
          foot={
            talk.gaps.length > 0 ? `The last change of sockets took ${talk.gaps.at(-1)} ms.` : "Another device goes on from here."
          }
          talk={talk}
        >
          <Row name="Socket" warn={closes !== undefined}>
            {`open ${span(now - (c?.since ?? now))}, number ${c?.number}`}
            {closes !== undefined && <small>Google closes it in {span(closes)}. A new one takes over at the next pause.</small>}
          </Row>
          <Row name="Microphone">
            {talk.microphone === "on" ? (talk.muted ? "yours, muted" : "yours") : "not in use, you type"}
            <small>lease renewed {span(now - (c?.renewed ?? now))} ago</small>
          </Row>
          <Row name="Stored">
            {talk.unsent === 0 ? "up to the last word" : "all but the last words"}
            <small>
              frame {talk.storedThrough}, {talk.unsent} unsent
            </small>
          </Row>
          <Row name="Handle">
            {c?.resumable ? `${c.handles}` : "none that can be used"}
            <small>{c?.plan === "resumed" ? "this socket resumed the session" : "this socket began the session"}</small>
          </Row>
          <Row name="Tools">{tools}</Row>
        </Box>
      );
    }
    case "resuming": {
      const r = talk.resume;
      const steps = ["asking", "connecting", "listen"];
      const at = steps.indexOf(r?.step === "waiting" ? "asking" : (r?.step ?? "asking"));
      return (
        <Box
          title={r ? `Resuming, ${((now - r.since) / 1000).toFixed(1)} s so far` : "Connecting"}
          foot={
            r
              ? `The connection ended with code ${r.closeCode}. If the handle is refused, a fresh session is told all ${talk.messages.length} messages.`
              : "One call says how: resume the last session, or begin one."
          }
        >
          <ol className="steps">
            <Step state="y" note={`${talk.unsent} frames`}>
              Kept what you said
            </Step>
            <Step state={at > 0 ? "y" : "go"} note={r?.plan ?? (r?.step === "waiting" ? "waits" : "")}>
              Ask what to do
            </Step>
            <Step state={at === 1 ? "go" : ""} note={r ? `try ${r.attempt}` : ""}>
              Connect
            </Step>
            <Step state="">Listen</Step>
          </ol>
        </Box>
      );
    }
    case "elsewhere":
      return (
        <Box
          title={`The ${talk.floor.holder} has the microphone`}
          foot={`If you continue here, the ${talk.floor.holder} stops and shows this view. The model is told nothing twice.`}
        >
          <Row name="Socket">theirs</Row>
          <Row name="Microphone" warn>
            {talk.floor.holder}
            <small>renewed while it talks</small>
          </Row>
          <Row name="You see">everything, as it is said</Row>
          <Row name="Tools">
            {talk.toolCalls.some((c) => c.status === "running") ? "one runs, its result goes there" : "none runs"}
          </Row>
        </Box>
      );
    case "error":
      return (
        <Box
          title="The conversation is safe"
          foot={
            talk.microphone === "blocked"
              ? "Allow the microphone in the address bar, then try again. No reload is needed."
              : "Try again. What was said is stored."
          }
        >
          <Row name="Socket">none</Row>
          <Row name="Microphone" warn={talk.microphone === "blocked"}>
            {talk.microphone === "blocked" ? "blocked for this page" : "free"}
          </Row>
          <Row name="Stored">{stored}</Row>
          <Row name="Text">works without it</Row>
        </Box>
      );
  }
}

function Box(props: { title: string; foot: string; children: ReactNode; talk?: LiveConversation }) {
  const steps = !Array.isArray(props.children) && (props.children as ReactElement).type === "ol";
  return (
    <div className="box">
      <h2>{props.title}</h2>
      {steps ? props.children : <dl>{props.children}</dl>}
      <p className="ft">{props.foot}</p>
      {props.talk && <Happened talk={props.talk} />}
    </div>
  );
}

function Row({ name, warn, children }: { name: string; warn?: boolean; children: ReactNode }) {
  return (
    <div className={warn ? "w" : undefined}>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}

function Step({ state, note, children }: { state: "y" | "go" | ""; note?: string; children: ReactNode }) {
  return (
    <li className={state}>
      <i>{state === "y" && <Icon name="check" />}</i>
      <span className="grow">{children}</span>
      <span className="note">{note}</span>
    </li>
  );
}

const sayings: { [what in LiveConversation["happened"][number]["what"]]: (detail: string | number) => string } = {
  connected: () => "Connected",
  resumed: (ms) => `Went on after ${ms} ms`,
  lost: (code) => `The socket ended, code ${code}`,
  rotates: () => "Changed the socket in a pause",
  closes: (s) => `Google said it closes in ${s} s`,
  handle: (n) => `Handle ${n} came`,
  interrupted: (ms) => `You cut in, ${ms} ms were heard`,
  fenced: () => "Another device took over",
  refused: (code) => `The provider refused, code ${code}`,
  toolRuns: (name) => `Claimed ${name}`,
  toolDone: (name) => `Stored the result of ${name}`,
  stopped: () => "You stopped",
};

function Happened({ talk }: { talk: LiveConversation }) {
  const first = talk.happened[0]?.at ?? 0;
  return (
    <>
      <h2 className="jn">Just now</h2>
      <ol className="ev">
        {talk.happened
          .slice(-6)
          .reverse()
          .map((h) => (
            <li key={`${h.at} ${h.what}`}>
              <time>{span(h.at - first)}</time>
              {sayings[h.what](h.detail)}
            </li>
          ))}
      </ol>
    </>
  );
}

/** useClock is the time, four times a second. */
function useClock(): number {
  const [now, set] = useState(() => performance.now());
  useEffect(() => {
    const timer = setInterval(() => set(performance.now()), 250);
    return () => clearInterval(timer);
  }, []);
  return now;
}

/** span is a length of time, as people read it. */
function span(ms: number): string {
  const s = Math.max(0, Math.round(ms / 1000));
  return s < 60 ? `${s} s` : `${Math.floor(s / 60)} min ${s % 60} s`;
}
