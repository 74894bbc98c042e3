import {
  type conversation,
  type Holdfast,
  HoldfastError,
  is,
  type Json,
  type JsonObject,
  type live as wire,
} from "@holdfast/client";
import { Core } from "./core.ts";
import type { CoreOptions, Credential, Effect, Event, Timer } from "./event.ts";
import { audioFrame, read, type Sound } from "./frame.ts";
import { type Connect, type Socket, webSocket } from "./socket.ts";
import type { LiveView } from "./view.ts";

/** What a tool is told besides its arguments. */
export interface ToolCall {
  /** Ends when the provider withdraws the call, or another device has it. */
  readonly signal: AbortSignal;
  /** The same whenever this call is executed, by whichever device: an idempotency key. */
  readonly key: string;
  readonly call: conversation.ToolCall;
}

/** A tool: what it resolves to is the response, and what it throws is told as a failure. */
export type Tool = (args: JsonObject, call: ToolCall) => Json | Promise<Json>;

/** Where the provider's voice is played. `browserAudio()` of `@holdfast/live/audio` is one. */
export interface Output {
  play(sound: Sound): void;
  /** Drops what has not been played, and returns how many milliseconds that was. */
  interrupt(): number;
}

/** How a conversation is held. */
export interface LiveOptions extends Partial<CoreOptions["connect"]> {
  /** The setup as the Live API has it: `{ model, generationConfig, systemInstruction, tools }`. Transcriptions and resumption are added. */
  setup: { readonly model: string; readonly [field: string]: unknown };
  /** An ephemeral token of the provider's, for one connection: asked for with each. */
  token: (signal: AbortSignal) => string | Promise<string>;
  /** By their names; without them the calls are left to workers, which claim them. */
  tools?: { readonly [name: string]: Tool } | undefined;
  output?: Output | undefined;
  /** How to reach the provider: `webSocket()` unless it is given, or `genai(…)`. */
  connect?: Connect | undefined;
}

/** One device's side of a conversation by voice. Making it does no I/O. */
export interface LiveSession {
  readonly conversationId: string;
  /** The same value until something changes, as useSyncExternalStore wants it. */
  get(): LiveView;
  subscribe(changed: () => void): () => void;
  /** Connects, and resolves as soon as it is known how that went: `get().status` says so. */
  start(options?: { takeOver?: boolean }): Promise<LiveView>;
  /** Gives the conversation back; resolves when Holdfast has all that was said. Tools that run go on. */
  stop(): Promise<void>;
  /** Says something in writing. Without a connection it is made, and what is lost on the way is said again. */
  sendText(text: string): void;
  /** What the microphone brings: 16-bit PCM, one channel. It is sent at once; while there is no connection the newest ten seconds wait. */
  sendAudio(pcm: Uint8Array, rate?: number): void;
  /** Tells the provider that the microphone is off, or on again. */
  mute(muted: boolean): void;
  readonly muted: boolean;
}

/** How much of the microphone waits for a connection, in seconds. */
const kept = 10;

/** How many bytes may wait in a socket before it counts as dead: some six seconds of audio. */
const stuck = 256 * 1024;

/** How long things may take, in milliseconds. */
const limits = { token: 10_000, ingest: 15_000 };

/** What a browser lets a page send while it goes. */
const farewell = 60_000;

/** live makes a session of a conversation, which must exist. */
export function live(hf: Holdfast, conversationId: string, options: LiveOptions): LiveSession {
  return new Session(hf, conversationId, options);
}

class Session implements LiveSession {
  readonly conversationId: string;
  readonly #core: Core;
  readonly #hf: Holdfast;
  readonly #options: LiveOptions;
  readonly #connect: Connect;
  readonly #listeners = new Set<() => void>();
  readonly #timers = new Map<Timer, ReturnType<typeof setTimeout>>();
  readonly #running = new Map<number, AbortController>();
  readonly #events: Event[] = [];
  readonly #id = Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
  #busy = false;
  #view: LiveView;
  #seen = "";
  #socket: Socket | undefined;
  #waiting: JsonObject[] = [];
  #waitingMs = 0;
  #answerMs = 0;
  #answerOver = true;
  #farewell: Promise<unknown> = Promise.resolve();
  #listening = false;
  #again = false;
  #offline = false;
  muted = false;

  constructor(hf: Holdfast, conversationId: string, options: LiveOptions) {
    this.#hf = hf;
    this.conversationId = conversationId;
    this.#options = options;
    this.#connect = options.connect ?? webSocket();
    const { setup, tools, device, provider, seedBudgetTokens, seedEndsWithUser, options: more } = options;
    this.#core = new Core({
      setup: setup as JsonObject,
      tools: tools && Object.keys(tools),
      connect: { device, provider, seedBudgetTokens, seedEndsWithUser, options: more },
    });
    this.#view = this.#core.view();
  }

  readonly get = (): LiveView => this.#view;

  readonly subscribe = (changed: () => void): (() => void) => {
    const listener = () => changed();
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  };

  async start({ takeOver = false } = {}): Promise<LiveView> {
    await this.#farewell; // the last connection's, so that they are not in each other's way
    this.#dispatch({ on: "start", takeOver });
    while (this.#view.status === "connecting")
      await new Promise<void>((done) => {
        const stop = this.subscribe(() => {
          stop();
          done();
        });
      });
    return this.#view;
  }

  async stop(): Promise<void> {
    this.#dispatch({ on: "stop" });
    await this.#farewell;
  }

  sendText(text: string): void {
    this.#dispatch({ on: "text", text });
    if (!this.#core.wanted) void this.start();
  }

  sendAudio(pcm: Uint8Array, rate = 16_000): void {
    if (this.muted || !this.#core.wanted) return;
    const frame = audioFrame(pcm, rate);
    if (this.#core.up) {
      this.#socket?.send(frame);
      if ((this.#socket?.waiting?.() ?? 0) > stuck) this.#dispatch({ on: "suspect" });
      return;
    }
    const ms = (pcm.length / 2 / rate) * 1000;
    this.#waiting.push(frame);
    this.#waitingMs += ms;
    while (this.#waitingMs > kept * 1000 && this.#waiting.length > 1) {
      this.#waiting.shift();
      this.#waitingMs -= ms; // the pieces of a microphone are as long as each other
    }
  }

  mute(muted: boolean): void {
    if (muted === this.muted) return;
    this.muted = muted;
    if (muted && this.#core.up) this.#socket?.send({ realtimeInput: { audioStreamEnd: true } });
    this.#publish(true);
  }

  // Events in, effects out.

  #dispatch(event: Event) {
    this.#events.push(event);
    if (this.#busy) return;
    this.#busy = true;
    try {
      for (let next = this.#events.shift(); next; next = this.#events.shift())
        for (const effect of this.#core.step(next, performance.now())) this.#perform(effect);
    } finally {
      this.#busy = false;
    }
    this.#listen();
    this.#publish(false);
  }

  #publish(changed: boolean) {
    const view = this.#core.view();
    const seen = JSON.stringify(view);
    if (seen === this.#seen && !changed) return;
    this.#seen = seen;
    this.#view = view;
    for (const listener of [...this.#listeners]) listener();
  }

  #perform(e: Effect) {
    const talk = this.#hf.conversation(this.conversationId).live;
    switch (e.do) {
      case "connect": {
        const { attempt } = e;
        Promise.all([talk.connect(e.request, { requestId: `${this.#id}-${attempt}` }), this.#credential()]).then(
          ([answer, credential]) => this.#dispatch({ on: "connected", attempt, answer, credential }),
          (cause) => this.#dispatch({ on: "connectFailed", attempt, error: failure(cause) }),
        );
        return;
      }
      case "open":
        return this.#open(e.socket, e.token, e.setup);
      case "send":
        this.#socket?.send(e.frame);
        return;
      case "close":
        this.#socket?.close();
        this.#socket = undefined;
        return;
      case "ready":
        // Providers take it faster than it was spoken.
        for (const frame of this.#waiting.splice(0)) this.#socket?.send(frame);
        this.#waitingMs = 0;
        return;
      case "play":
        if (this.#answerOver) this.#answerMs = 0;
        this.#answerOver = false;
        this.#answerMs += (e.sound.pcm.length / 2 / e.sound.rate) * 1000;
        this.#options.output?.play(e.sound);
        return;
      case "silence":
        this.#options.output?.interrupt();
        this.#waiting = [];
        this.#waitingMs = 0;
        return;
      case "ingest": {
        const number = e.request.fencingToken;
        talk.ingest(e.request, { timeout: limits.ingest }).then(
          (answer) => this.#dispatch({ on: "ingested", number, answer }),
          (cause) => this.#dispatch({ on: "ingestFailed", number, error: failure(cause) }),
        );
        return;
      }
      case "disconnect":
        this.#farewell = this.#disconnect(e.request, e.leaving).catch(() => {});
        return;
      case "wait": {
        clearTimeout(this.#timers.get(e.timer));
        this.#timers.delete(e.timer);
        if (e.ms === undefined) return;
        const timer = setTimeout(() => this.#dispatch({ on: "due", timer: e.timer }), e.ms);
        this.#timers.set(e.timer, timer);
        return;
      }
      case "run":
        void this.#run(e.call);
        return;
      case "abort":
        this.#running.get(e.seq)?.abort(new Error("the call is withdrawn, or another device has it"));
        return;
      case "complete": {
        const { seq, fencingToken, response, isError } = e;
        const complete = () =>
          talk.completeToolCall({ seq, fencingToken, response, isError }, { requestId: `${this.#id}-tool-${seq}` }).then(
            (answer) => this.#dispatch({ on: "completed", seq, answer }),
            (cause) => this.#dispatch({ on: "completeFailed", seq, error: failure(cause) }),
          );
        if (e.after > 0) setTimeout(complete, e.after);
        else void complete();
        return;
      }
      case "claim": {
        const { seq, fencingToken } = e;
        talk.claimToolCall({ seq, fencingToken, worker: this.#options.device?.name || "a page", leaseDuration: "30s" }).then(
          ({ toolCall }) => toolCall && this.#dispatch({ on: "claimed", call: toolCall }),
          (cause) => this.#dispatch({ on: "claimFailed", seq, error: failure(cause) }),
        );
        return;
      }
      case "ask":
        this.#ask(e.seq).then(
          (text) => this.#dispatch({ on: "answered", seq: e.seq, text }),
          () => {}, // it is asked again
        );
        return;
    }
  }

  async #credential(): Promise<Credential> {
    const controller = new AbortController();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        const error = new Error(`no token came within ${limits.token} ms`);
        controller.abort(error);
        reject(error);
      }, limits.token);
    });
    try {
      return { token: await Promise.race([this.#options.token(controller.signal), late]) };
    } catch (error) {
      return { error };
    } finally {
      clearTimeout(timer);
    }
  }

  #open(socket: number, token: string, setup: JsonObject) {
    this.#socket = this.#connect(token, setup, {
      opened: () => this.#dispatch({ on: "opened", socket }),
      message: (data) => {
        const one = read(data);
        if (!one) return;
        const s = one.frame.serverContent;
        // At once: the user speaks, and what is playing is in the way.
        const playedMs = s?.interrupted && !this.#answerOver ? this.#silence() : undefined;
        this.#dispatch({ on: "message", socket, read: one, playedMs });
        if (s?.turnComplete || s?.interrupted) this.#answerOver = true;
      },
      closed: (code, message) => this.#dispatch({ on: "closed", socket, code, message }),
    });
  }

  /** silence stops the playback, and returns how much of the newest answer was heard. */
  #silence(): number | undefined {
    const { output } = this.#options;
    return output && Math.max(0, Math.round(this.#answerMs - output.interrupt()));
  }

  async #run(call: conversation.ToolCall): Promise<void> {
    const controller = new AbortController();
    this.#running.set(call.seq, controller);
    let response: Json;
    let isError = false;
    try {
      const tool = this.#options.tools?.[call.name];
      if (!tool) throw new Error(`there is no tool ${call.name} here`);
      if (call.argsOmitted) throw new Error(call.argsOmitted);
      const args = call.args ?? (call.argsJson ? (JSON.parse(call.argsJson) as JsonObject) : {});
      response = await tool(args, { call, signal: controller.signal, key: `${this.conversationId}/${call.seq}` });
    } catch (e) {
      response = { error: e instanceof Error ? e.message : String(e) };
      isError = true;
    }
    this.#running.delete(call.seq);
    this.#dispatch({ on: "ran", seq: call.seq, response: response ?? null, isError });
  }

  /** ask is the text that tells the model what another device's execution of a call came to; undefined: it knows. */
  async #ask(seq: number): Promise<string | undefined> {
    const talk = this.#hf.conversation(this.conversationId);
    for await (const { toolCall } of talk.records({ types: ["tool_call"], newestFirst: true })) {
      if (toolCall?.seq !== seq) continue;
      if (toolCall.resultSeq === 0 || toolCall.deliveredConnection !== 0) return undefined;
      for await (const m of talk.messages({ afterSeq: toolCall.resultSeq - 1, pageSize: 1 })) return m.text;
    }
    return undefined;
  }

  async #disconnect(request: Omit<wire.DisconnectLiveRequest, "conversationId" | "requestId">, leaving: boolean): Promise<void> {
    const talk = this.#hf.conversation(this.conversationId).live;
    const { fencingToken, playedMs } = request;
    let frames = request.frames ?? [];
    if (leaving) {
      let bytes = 0;
      frames = frames.filter((f) => {
        bytes += f.text?.length ?? 0;
        return bytes < farewell;
      });
    }
    while (frames.length > 500) {
      await talk.ingest({ fencingToken, frames: frames.slice(0, 500), playedMs });
      frames = frames.slice(500);
    }
    await talk.disconnect({ ...request, frames }, { keepalive: leaving });
  }

  // What the browser tells.

  #listen() {
    const wanted = this.#core.wanted || this.#again;
    if (wanted === this.#listening || typeof document !== "object") return;
    this.#listening = wanted;
    const set = wanted ? "addEventListener" : "removeEventListener";
    for (const event of ["pagehide", "pageshow", "online", "offline"]) globalThis[set](event, this.#changed);
  }

  readonly #changed = ({ type }: { type: string }) => {
    switch (type) {
      case "pagehide":
        this.#again = this.#core.wanted;
        return this.#dispatch({ on: "stop", leaving: true });
      case "pageshow": // from the back-forward cache
        if (this.#again) void this.start();
        this.#again = false;
        return;
      case "offline":
        this.#offline = true;
        return;
      case "online":
        // Sockets do not outlive a network, and are the last to know.
        if (this.#offline) this.#dispatch({ on: "suspect" });
        this.#offline = false;
        return;
    }
  };
}

/** failure is what a call of Holdfast's rejected with. */
function failure(cause: unknown): HoldfastError {
  if (is(cause)) return cause;
  return new HoldfastError(String(cause), "live", { reason: "UNREACHABLE", retry: "same" }, { cause });
}
