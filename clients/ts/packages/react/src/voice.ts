import type { ConversationView, conversation, Holdfast } from "@holdfast/client";
import { type LiveOptions, type LiveSession, type LiveView, live } from "@holdfast/live";
import { type BrowserAudio, browserAudio } from "@holdfast/live/audio";
import { useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import { withToolCalls } from "./calls.ts";
import { type Conversation, useTalk } from "./hooks.ts";
import { useHoldfast } from "./live.ts";

/** How a page holds a conversation by voice. */
export interface VoiceOptions extends Omit<LiveOptions, "output"> {
  /** How many of the newest messages are shown; 50. */
  messages?: number | undefined;
  /** In place of the browser's microphone and loudspeaker. */
  audio?: BrowserAudio | undefined;
}

/** Who speaks into the conversation. */
export interface Floor {
  readonly mine: boolean;
  /** The device that has it, as it named itself; undefined: none. */
  readonly holder?: string | undefined;
  /** Takes it from another device of the same user, and starts. */
  readonly take: () => void;
}

/** A conversation by voice, as a page shows it. */
export interface LiveConversation extends Omit<LiveView, "interim" | "tools" | "holder"> {
  /** Undefined until it is loaded; `absent` where it does not exist. */
  readonly conversation: ConversationView | undefined;
  /** What was said; `m.spoken?.heardText` is what was heard of an answer that the user spoke over. */
  readonly messages: readonly conversation.Message[];
  /** The words that are being said, here or on another device, and are in no message yet. */
  readonly interim: string;
  readonly floor: Floor;
  /** Tool calls of this device's that wait for something, and those of all devices, with those that are over. */
  readonly tools: LiveView["tools"];
  readonly toolCalls: readonly conversation.ToolCall[];
  readonly microphone: "off" | "on" | "blocked";
  readonly muted: boolean;
  /** Asks for the microphone, where there is none yet, and connects. Without a microphone it does not connect: text does. */
  readonly start: () => Promise<void>;
  readonly stop: () => Promise<void>;
  readonly mute: (muted: boolean) => void;
  readonly sendText: (text: string) => void;
  /** How loud it is right now, from 0 to 1: for a meter, which asks at each frame of its own. */
  readonly level: () => { readonly in: number; readonly out: number };
}

/**
 * useLiveConversation holds a conversation by voice, and shows it: what was said on every device, and what goes on here. Components with the same
 * id share the session; it ends with the last of them. The conversation must exist.
 */
export function useLiveConversation(conversationId: string, options: VoiceOptions): LiveConversation {
  const hf = useHoldfast();
  const voice = useMemo(() => voiceOf(hf, conversationId, options), [hf, conversationId]);
  const latest = useRef(options);
  useEffect(() => {
    latest.current = options;
    voice.options = options; // tokens and tools may close over what a component shows
  });
  useEffect(() => voice.hold(), [voice]);
  const state = useSyncExternalStore(voice.subscribe, voice.get, voice.get);
  const how = { messages: options.messages ?? 50, signals: true };
  const follow = (hf: Holdfast) =>
    withToolCalls(hf.conversation(conversationId).watch(how), hf.conversation(conversationId).records);
  const shown = useTalk(conversationId, "voice", how, follow, false);
  const view = shown.value;
  // A device that is gone without a word has the floor until its lease is over.
  const end = leaseEnd(view);
  const [over, setOver] = useState(0);
  useEffect(() => {
    const timer = setTimeout(() => setOver(end), end - Date.now());
    return () => clearTimeout(timer);
  }, [end]);
  const held = over !== end && end > Date.now();
  return useMemo(() => together(voice, state, view, held), [voice, state, view, held]);
}

interface State {
  readonly view: LiveView;
  readonly microphone: LiveConversation["microphone"];
  readonly muted: boolean;
}

/** leaseEnd is when the lease of a conversation's connection is over; 0: nobody has it. */
function leaseEnd(talk: Conversation | undefined): number {
  const live = talk?.conversation?.live;
  return live?.lease?.expireTime && !live.closeTime ? Date.parse(live.lease.expireTime) : 0;
}

function together(
  voice: Voice,
  { view, microphone, muted }: State,
  talk: Conversation | undefined,
  held: boolean,
): LiveConversation {
  const { interim, holder, ...rest } = view;
  const mine = view.status === "live" || view.status === "connecting" || view.status === "resuming";
  const connection = talk?.conversation?.live;
  const messages = talk?.messages ?? [];
  const said = mine ? interim : talk?.voice.interim && talk.voice.status === "listening" ? talk.voice.lastTranscription : "";
  return {
    ...rest,
    conversation: talk,
    messages,
    interim: unsaid(said, messages),
    floor: {
      mine,
      holder: mine ? undefined : (holder ?? (held ? connection?.device?.name || "another device" : undefined)),
      take: voice.take,
    },
    toolCalls: talk?.toolCalls ?? [],
    microphone,
    muted,
    start: voice.start,
    stop: voice.stop,
    mute: voice.mute,
    sendText: voice.sendText,
    level: voice.level,
  };
}

/** unsaid is what the newest message of the user's does not have yet of the words that are being said. */
function unsaid(words: string, messages: readonly conversation.Message[]): string {
  const last = messages.findLast((m) => m.role === "user");
  if (!last || last !== messages.at(-1)) return words;
  return words.startsWith(last.text) ? words.slice(last.text.length) : last.status === "streaming" ? "" : words;
}

/** Voice is a session with its microphone, for all components that show it. */
interface Voice {
  options: VoiceOptions;
  get(): State;
  subscribe(changed: () => void): () => void;
  hold(): () => void;
  start(): Promise<void>;
  stop(): Promise<void>;
  take(): void;
  mute(muted: boolean): void;
  sendText(text: string): void;
  level(): { in: number; out: number };
}

const voices = new WeakMap<Holdfast, Map<string, Voice>>();

function voiceOf(hf: Holdfast, id: string, options: VoiceOptions): Voice {
  let mine = voices.get(hf);
  if (!mine) {
    mine = new Map();
    voices.set(hf, mine);
  }
  const found = mine.get(id);
  if (found) return found;
  const made: Voice = make(hf, id, options, (shown) => (shown ? mine.set(id, made) : mine.delete(id)));
  mine.set(id, made);
  return made;
}

function make(hf: Holdfast, id: string, options: VoiceOptions, keep: (shown: boolean) => void): Voice {
  const audio = options.audio ?? browserAudio();
  const tools = options.tools && Object.fromEntries(Object.keys(options.tools).map((name) => [name, tool(name)]));
  const session: LiveSession = live(hf, id, {
    ...options,
    tools,
    token: (signal) => voice.options.token(signal),
    output: audio,
  });
  function tool(name: string): NonNullable<LiveOptions["tools"]>[string] {
    return (args, call) => {
      const now = voice.options.tools?.[name];
      if (!now) throw new Error(`there is no tool ${name} here`);
      return now(args, call);
    };
  }
  const listeners = new Set<() => void>();
  let microphone: State["microphone"] = "off";
  let state: State = { view: session.get(), microphone, muted: false };
  let users = 0;
  let leaving: ReturnType<typeof setTimeout> | undefined;
  const changed = () => {
    const view = session.get();
    // Who hands the conversation over, or stops, gives the microphone back.
    if (microphone === "on" && (view.status === "idle" || view.status === "elsewhere" || view.status === "failed") && !starting) {
      audio.stop();
      microphone = "off";
    }
    state = { view, microphone, muted: session.muted };
    for (const listener of [...listeners]) listener();
  };
  session.subscribe(changed);
  let starting = false;
  const begin = async (takeOver: boolean) => {
    starting = true; // until it is wanted: before, it looks as if it were stopped
    try {
      await audio.start((pcm) => session.sendAudio(pcm));
      microphone = "on";
      await session.start({ takeOver });
    } catch {
      microphone = "blocked";
    } finally {
      starting = false;
      changed();
    }
  };
  const voice: Voice = {
    options,
    get: () => state,
    subscribe(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    hold() {
      users++;
      keep(true);
      clearTimeout(leaving);
      return () => {
        // Not at once: StrictMode takes each component off and puts it on again.
        if (--users === 0)
          leaving = setTimeout(() => {
            keep(false);
            void session.stop();
          }, 0);
      };
    },
    start: () => begin(false),
    stop: () => session.stop(),
    take: () => void begin(true),
    mute(muted) {
      session.mute(muted);
    },
    sendText: (text) => session.sendText(text),
    level: () => audio.level(),
  };
  return voice;
}
