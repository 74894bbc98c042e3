import { webSocket } from "@holdfast/live";
import { type LiveConversation, useLiveConversation, type VoiceOptions } from "@holdfast/react/voice";
import { useEffect, useRef, useState } from "react";
import { Icon } from "./icon.tsx";
import { Now } from "./now.tsx";
import { act, post } from "./post.ts";
import { Talk } from "./talk.tsx";

const fake = import.meta.env["GEMINI"] as string;

/** What the provider is set up with. A session is resumed only with the same. */
const setup = {
  model: "models/gemini-live-2.5-flash-native-audio",
  generationConfig: { responseModalities: ["AUDIO"] },
  systemInstruction: { parts: [{ text: "You are a coding assistant. Answer in one or two sentences." }] },
  tools: [
    {
      functionDeclarations: [
        {
          name: "start_run",
          description: "Starts a run of a coding agent.",
          parameters: {
            type: "OBJECT",
            properties: { prompt: { type: "STRING" }, issue: { type: "STRING" } },
            required: ["prompt"],
          },
        },
        {
          name: "move_issue",
          description: "Moves an issue of Linear's to another state.",
          parameters: {
            type: "OBJECT",
            properties: { issue: { type: "STRING" }, state: { type: "STRING" } },
            required: ["issue", "state"],
          },
        },
      ],
    },
  ],
};

const options: VoiceOptions = {
  setup,
  device: { name: device() },
  token: async (signal) => (await post<{ token: string }>("/api/gemini-token", {}, signal)).token,
  tools: {
    start_run: async (args, { key, signal }) => await act("/api/run", { ...args, key }, signal),
    move_issue: async (args, { key, signal }) => await act("/api/move", { ...args, key }, signal),
  },
  ...(fake ? { connect: webSocket({ url: fake }) } : {}),
};

/** device is what this one is called on the others. */
function device(): string {
  const agent = navigator.userAgent;
  const kind = /iPhone|iPad|Android|Macintosh|Windows|Linux/.exec(agent)?.[0] ?? "";
  const names: { [kind: string]: string } = {
    Android: "Android phone",
    Macintosh: "Mac",
    Windows: "PC",
    Linux: "Linux computer",
  };
  return names[kind] ?? (kind || "other device");
}

export type State = "idle" | "live" | "resuming" | "elsewhere" | "error";

/** stateOf is which of its five faces the page has. */
function stateOf(talk: LiveConversation): State {
  if (talk.microphone === "blocked" && !talk.floor.mine) return "error";
  if (talk.status === "failed") return "error";
  if (talk.floor.holder) return "elsewhere";
  if (talk.status === "live") return "live";
  return talk.status === "resuming" || talk.status === "connecting" ? "resuming" : "idle";
}

function sentence(state: State, talk: LiveConversation): string {
  switch (state) {
    case "idle":
      return "Ready. Press the button and talk.";
    case "live": {
      const stored = talk.unsent === 0 ? "All that was said is stored." : "The last words are on their way.";
      const mode = { idle: "Listening", listening: "Listening", thinking: "Thinking", speaking: "Speaking" }[talk.mode];
      return talk.muted ? `Muted. ${stored}` : `${mode}. ${stored}`;
    }
    case "resuming":
      return talk.status === "connecting" ? "Connecting." : "Connection ended. Resuming, words are kept.";
    case "elsewhere":
      return `Live on the ${talk.floor.holder}. You read along.`;
    case "error":
      return talk.microphone === "blocked" ? "The microphone is blocked. Allow it, or type." : "The model cannot be reached.";
  }
}

const marks = { idle: "off", live: "live", resuming: "half", elsewhere: "off", error: "sq" };

export function Page({ id }: { id: string }) {
  const talk = useLiveConversation(id, options);
  const state = stateOf(talk);
  const act = state === "elsewhere" ? talk.floor.take : state === "live" || state === "resuming" ? talk.stop : talk.start;
  useKeys({
    " ": () => (state === "live" || state === "resuming" ? undefined : void act()),
    Escape: () => void talk.stop(),
    m: () => state === "live" && talk.mute(!talk.muted),
  });
  return (
    <div className="page" data-state={state}>
      <a className="skip" href="#text">
        Skip to the text box
      </a>
      <header className="top">
        <span className="brand">
          <Icon name="mark" />
        </span>
        <div className="grow">
          <h1>{talk.conversation?.conversation?.title ?? "Auth refactor"}</h1>
          <p>{fake ? "with a fake Gemini Live" : "with Gemini Live"}</p>
        </div>
        <button type="button" className="ghost" aria-label="Light or dark" onClick={theme}>
          <Icon name="sun" />
        </button>
      </header>
      <main>
        <Talk talk={talk} state={state} />
        <div className="dock">
          <div className="stat" role="status">
            <i className={`m ${marks[state]}`} />
            <span>{sentence(state, talk)}</span>
          </div>
          <div className="mr">
            <Meter talk={talk} side="left" />
            <button type="button" className="mic" onClick={() => void act()}>
              {state === "elsewhere" ? (
                <>
                  <Icon name="mic" />
                  Continue here
                </>
              ) : (
                <>
                  <span className="vh">{{ idle: "Talk", live: "Stop", resuming: "Stop", error: "Try again" }[state]}</span>
                  <Icon name={({ idle: "mic", live: "stop", resuming: "stop", error: "off" } as const)[state]} />
                </>
              )}
            </button>
            <Meter talk={talk} side="right" />
          </div>
          <p className="cap">
            {state === "elsewhere" ? (
              `The ${talk.floor.holder} stops, you go on`
            ) : state === "live" ? (
              <>
                Stop <kbd>Esc</kbd> <span className="also">Mute</span> <kbd>M</kbd>
              </>
            ) : state === "resuming" ? (
              <>
                Stop <kbd>Esc</kbd>
              </>
            ) : (
              <>
                {state === "idle" ? "Talk" : "Try again"} <kbd>Space</kbd>
              </>
            )}
          </p>
          <form
            className="tb"
            onSubmit={(e) => {
              e.preventDefault();
              const text = String(new FormData(e.currentTarget).get("text")).trim();
              if (text) talk.sendText(text);
              e.currentTarget.reset();
            }}
          >
            <label className="vh" htmlFor="text">
              Message
            </label>
            <input id="text" name="text" placeholder="Type instead" autoComplete="off" disabled={state === "elsewhere"} />
            <button type="submit" aria-label="Send" disabled={state === "elsewhere"}>
              <Icon name="send" />
            </button>
          </form>
          <details className="pm">
            <summary>What Holdfast does now</summary>
            <Now talk={talk} state={state} />
          </details>
        </div>
      </main>
      <aside aria-label="What Holdfast does now">
        <Now talk={talk} state={state} />
      </aside>
    </div>
  );
}

function theme() {
  const root = document.documentElement;
  const dark = root.dataset["theme"] ? root.dataset["theme"] === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset["theme"] = dark ? "light" : "dark";
}

/** useKeys calls what a key does, except in a text box and on a button. */
function useKeys(keys: { [key: string]: () => void }): void {
  const latest = useRef(keys);
  useEffect(() => {
    latest.current = keys;
  });
  useEffect(() => {
    const pressed = (e: KeyboardEvent) => {
      const at = (e.target as HTMLElement).tagName;
      if (at === "INPUT" || (e.key === " " && (at === "BUTTON" || at === "SUMMARY")) || e.metaKey || e.ctrlKey || e.altKey)
        return;
      const key = latest.current[e.key];
      if (!key) return;
      e.preventDefault();
      key();
    };
    addEventListener("keydown", pressed);
    return () => removeEventListener("keydown", pressed);
  }, []);
}

const bars = 14;

/** Meter shows how loud it is, bar by bar, without React. */
function Meter({ talk, side }: { talk: LiveConversation; side: "left" | "right" }) {
  const ref = useRef<HTMLDivElement>(null);
  const [still] = useState(() => matchMedia("(prefers-reduced-motion: reduce)").matches);
  const { level, status } = talk;
  useEffect(() => {
    const all = [...(ref.current?.children ?? [])] as HTMLElement[];
    if (status !== "live" || still) {
      for (const bar of all) bar.style.setProperty("--l", "0");
      return;
    }
    const past: number[] = Array(bars).fill(0);
    let frame = requestAnimationFrame(function draw() {
      const now = level();
      past.unshift(Math.max(now.in, now.out));
      past.length = bars * 3;
      for (const [i, bar] of all.entries()) {
        const near = side === "left" ? bars - 1 - i : i; // the loudest now is at the button
        bar.style.setProperty("--l", (past[near * 3] ?? 0).toFixed(3));
      }
      frame = requestAnimationFrame(draw);
    });
    return () => cancelAnimationFrame(frame);
  }, [level, status, still, side]);
  return (
    <div className="lv" aria-hidden="true" ref={ref}>
      {Array.from({ length: bars }, (_, i) => (
        <i key={i} />
      ))}
    </div>
  );
}
