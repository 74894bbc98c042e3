import type { conversation, HoldfastError, Json, JsonObject, live } from "@holdfast/client";
import type { CoreOptions, Credential, Effect, Event, Timer } from "./event.ts";
import { type Frame, hash, type Read } from "./frame.ts";
import type { Happened, LiveError, LiveView, Mode, PendingTool } from "./view.ts";

/** How long things wait, in milliseconds. */
const waits = {
  /** Frames are gathered so long, unless one of them is urgent. */
  batch: 100,
  /** Holdfast stores words that may still change within 250 ms: then it is asked whether it has. */
  settle: 300,
  /** The lease is for 30 s. */
  beat: 10_000,
  claims: 10_000,
  /** How often a call of another device's is asked for. */
  theirs: 5000,
};

const batch = { frames: 200, bytes: 500_000 };

/** previous takes 1,000. */
const owed = 1000;

/** So often in a row may the provider refuse a connection. */
const patience = 6;

/** Close codes with which providers refuse a handle. */
const refusals = new Set([1002, 1003, 1007, 1008, 1011]);

interface Kept {
  clientIndex: number;
  text: string;
}

/** Connection is the one that has the lease, or had it last. */
interface Connection {
  number: number;
  version: number;
  plan: live.PlanReason;
  handle: string;
  send: JsonObject | undefined;
  next: number;
  frames: Kept[];
  stored: number;
  /** The highest frame that an ingest took along. */
  sent: number;
  renewed: number;
  since: number;
  closesAt: number | undefined;
  handles: number;
  resumable: boolean;
  closeCode: number;
  refused: boolean;
  /** The provider did something besides setting it up. */
  useful: boolean;
}

interface Call {
  seq: number;
  name: string;
  args: JsonObject;
  token: number;
  state: PendingTool["state"];
  result?: { response: Json; isError: boolean };
  failures: number;
}

/** Something that the provider is told as soon as it listens; of a tool's result the version that has it. */
interface Told {
  frame: JsonObject;
  text?: string;
  version?: number;
}

/**
 * Core decides everything that happens between a provider's socket and Holdfast, and does nothing: events go in, effects come out. It has no
 * clock, no network and no promises.
 *
 *     off ──start──▶ asking ──connected──▶ opening ──setupComplete──▶ up
 *      ▲               ▲                      │                      │
 *      │               └── resting ◀── closed ┴──── closed, rotate ──┘
 *      └── stop, FENCED, or an error that nothing helps against, from anywhere
 */
export class Core {
  #phase: "off" | "asking" | "draining" | "resting" | "opening" | "up" = "off";
  #status: "idle" | "elsewhere" | "failed" = "idle"; // while off
  #connection: Connection | undefined;
  #first = true; // no connection was up since the start
  #takeOver = false;
  #attempt = 0;
  #request: Extract<Effect, { do: "connect" }> | undefined; // whose answer is not known
  #socket = 0;
  #token = "";
  #sending = false;
  #urgent = false;
  #one = false; // send frames one by one, because one of them is refused
  #playedMs: number | undefined;
  #failures = 0;
  #refused = 0;
  #ingestFailures = 0;
  #lost: { at: number; code: number } | undefined;
  readonly #calls = new Map<number, Call>();
  readonly #ran = new Set<number>(); // calls that this device has run
  #told: Told[] = [];
  #mode: Mode = "idle";
  #interim = "";
  #asked = false; // an answer came since the user's last words
  #holder: string | undefined;
  #error: LiveError | undefined;
  readonly #gaps: number[] = [];
  readonly #happened: Happened[] = [];
  #effects: Effect[] = [];
  #now = 0;
  readonly #options: CoreOptions;
  readonly #setupHash: string;

  constructor(options: CoreOptions) {
    this.#options = options;
    this.#setupHash = hash(options.setup);
  }

  /** up reports whether the provider listens. */
  get up(): boolean {
    return this.#phase === "up";
  }

  /** wanted reports whether there is, or is to be, a connection. */
  get wanted(): boolean {
    return this.#phase !== "off";
  }

  /** ingests reports whether frames of the connection are sent: not while they go along with the question for the next. */
  get #ingests(): boolean {
    return this.#phase === "up" || this.#phase === "opening" || this.#phase === "draining";
  }

  step(event: Event, now: number): Effect[] {
    this.#effects = [];
    this.#now = now;
    this.#take(event);
    return this.#effects;
  }

  view(): LiveView {
    const c = this.#connection;
    const on = this.wanted;
    return {
      status: !on ? this.#status : this.up ? "live" : this.#first ? "connecting" : "resuming",
      mode: on ? this.#mode : "idle",
      interim: this.#interim,
      connection:
        on && c
          ? {
              number: c.number,
              plan: c.plan,
              since: c.since,
              closesAt: c.closesAt,
              renewed: c.renewed,
              handles: c.handles,
              resumable: c.resumable,
            }
          : undefined,
      resume:
        on && !this.up && this.#lost
          ? {
              since: this.#lost.at,
              attempt: this.#failures + 1,
              step: this.#phase === "opening" ? "connecting" : this.#phase === "resting" ? "waiting" : "asking",
              closeCode: this.#lost.code,
              frames: this.#phase === "opening" ? 0 : (c?.frames.length ?? 0),
              plan: this.#phase === "opening" ? c?.plan : undefined,
            }
          : undefined,
      unsent: c?.frames.length ?? 0,
      storedThrough: c?.stored ?? 0,
      tools: [...this.#calls.values()].map(({ seq, name, args, state }) => ({ seq, name, args, state })),
      queued: this.#told.flatMap((t) => t.text ?? []),
      holder: this.#holder,
      error: this.#error,
      gaps: [...this.#gaps],
      happened: [...this.#happened],
    };
  }

  #do(effect: Effect) {
    this.#effects.push(effect);
  }

  #note(what: Happened["what"], detail: string | number = "") {
    this.#happened.push({ at: this.#now, what, detail });
    if (this.#happened.length > 30) this.#happened.shift();
  }

  #take(e: Event) {
    switch (e.on) {
      case "start":
        if (this.wanted) return;
        this.#takeOver = e.takeOver;
        this.#first = true;
        this.#failures = this.#refused = 0;
        this.#holder = this.#error = this.#lost = undefined;
        return this.#ask();
      case "stop":
        return this.#stop(e.leaving ?? false);
      case "text":
        this.#told.push({ frame: { realtimeInput: { text: e.text } }, text: e.text });
        return this.#tell();
      case "connected":
        return this.#connected(e.attempt, e.answer, e.credential);
      case "connectFailed":
        if (e.attempt === this.#attempt) this.#connectFailed(e.error);
        return;
      case "opened":
        if (this.#current(e.socket)) this.#keep(JSON.stringify({ setup: this.#setup() }), false);
        return;
      case "message":
        if (this.#current(e.socket)) this.#read(e.read, e.playedMs);
        return;
      case "closed":
        if (this.#current(e.socket)) this.#closed(e.code, e.message);
        return;
      case "suspect":
        if (this.#phase === "up" || this.#phase === "opening") {
          this.#do({ do: "close" });
          this.#lose(1006);
          this.#ask();
        } else if (this.#phase === "resting") this.#due("retry");
        return;
      case "ingested":
        return this.#ingested(e.number, e.answer);
      case "ingestFailed":
        return this.#ingestFailed(e.number, e.error);
      case "due":
        return this.#due(e.timer);
      case "ran":
        return this.#finish(e.seq, e.response, e.isError);
      case "completed":
        return this.#completed(e.seq, e.answer);
      case "completeFailed":
        return this.#completeFailed(e.seq, e.error);
      case "claimed":
        return this.#own(e.call);
      case "claimFailed":
        return this.#claimFailed(e.seq, e.error);
      case "answered":
        if (!this.#calls.delete(e.seq) || e.text === undefined) return;
        this.#told.push({
          frame: { clientContent: { turns: [{ role: "user", parts: [{ text: e.text }] }], turnComplete: true } },
          version: Number.POSITIVE_INFINITY,
        });
        return this.#tell();
    }
  }

  // The connection.

  #current(socket: number): boolean {
    return socket === this.#socket && (this.#phase === "opening" || this.#phase === "up");
  }

  /** ask takes the lease for a new connection. A question whose answer was lost is asked again as it was: else it would hold up this one. */
  #ask() {
    this.#do({ do: "wait", timer: "retry", ms: undefined });
    const c = this.#connection;
    if (!this.#request && c && c.frames.length > owed) {
      this.#phase = "draining";
      return this.#flush();
    }
    this.#phase = "asking";
    this.#request ??= {
      do: "connect",
      attempt: ++this.#attempt,
      request: {
        ...this.#options.connect,
        setupHash: this.#setupHash,
        takeOver: this.#takeOver,
        options: { ...this.#options.connect.options, leaveToolCalls: this.#options.tools === undefined },
        previous: c && {
          fencingToken: c.number,
          frames: c.frames,
          closeCode: c.closeCode,
          handleRefused: c.refused,
          playedMs: this.#playedMs,
        },
      },
    };
    this.#do(this.#request);
  }

  #connected(attempt: number, answer: live.ConnectLiveResponse, credential: Credential) {
    const number = answer.lease?.fencingToken ?? 0;
    if (attempt !== this.#attempt || this.#phase !== "asking") {
      // It was stopped meanwhile.
      this.#do({ do: "disconnect", request: { fencingToken: number, closeCode: 1000 }, leaving: false });
      return;
    }
    this.#request = this.#playedMs = undefined;
    this.#takeOver = false;
    this.#sending = this.#one = false;
    this.#ingestFailures = 0;
    const plan = answer.plan;
    this.#connection = {
      number,
      version: answer.version,
      plan: plan?.reason ?? "unspecified",
      handle: plan?.handle ?? "",
      send: plan?.send,
      next: 1,
      frames: [],
      stored: 0,
      sent: 0,
      renewed: this.#now,
      since: this.#now,
      closesAt: undefined,
      handles: 0,
      resumable: false,
      closeCode: 0,
      refused: false,
      useful: false,
    };
    // What was completed before is in the plan.
    this.#told = this.#told.filter((t) => t.version === undefined || t.version > answer.version);
    for (const call of plan?.toolCalls ?? []) this.#offer(call);
    this.#do({ do: "wait", timer: "beat", ms: waits.beat });
    if ("error" in credential) {
      this.#error = { from: "token", error: credential.error };
      return this.#rest();
    }
    this.#token = credential.token;
    const wait = seconds(plan?.connectAfter);
    if (wait > 0) {
      this.#phase = "resting";
      this.#do({ do: "wait", timer: "retry", ms: wait });
    } else this.#open();
  }

  #open() {
    this.#phase = "opening";
    this.#socket++;
    const token = this.#token;
    this.#token = "";
    this.#do({ do: "open", socket: this.#socket, token, setup: this.#setup() });
  }

  #setup(): JsonObject {
    const handle = this.#connection?.handle;
    return {
      inputAudioTranscription: {},
      outputAudioTranscription: {},
      contextWindowCompression: { slidingWindow: {} },
      ...this.#options.setup,
      sessionResumption: { ...(this.#options.setup["sessionResumption"] as JsonObject), ...(handle ? { handle } : {}) },
    };
  }

  #connectFailed(error: HoldfastError) {
    if (this.#phase !== "asking") return;
    if (error.reason === "LEASE_HELD") return this.#elsewhere(error.held?.deviceName);
    // Another has taken over since the lost answer, or since this connection fell silent.
    if (error.reason === "FENCED") return this.#elsewhere(undefined);
    this.#error = { from: "holdfast", error };
    if (!passes(error)) return this.#fail();
    this.#rest(error.retryAfter);
  }

  /** rest waits before the next try. The first comes at once. */
  #rest(atLeast = 0) {
    this.#phase = "resting";
    const wait = this.#failures === 0 ? 0 : Math.min(5000, 125 * 2 ** this.#failures);
    this.#failures++;
    this.#do({ do: "wait", timer: "retry", ms: Math.max(atLeast, wait) });
  }

  #closed(code: number, message: string) {
    const c = this.#connection;
    const opening = this.#phase === "opening";
    const useful = c?.useful ?? false;
    if (opening && refusals.has(code)) {
      this.#error = { from: "provider", code, message };
      this.#note("refused", code);
      if (c?.handle) c.refused = true;
      else this.#refused++;
    }
    this.#lose(code);
    if (this.#refused >= patience) return this.#fail();
    // A refused handle costs one try: the next has none.
    if (useful || c?.refused) this.#ask();
    else this.#rest();
  }

  /** lose ends the socket's time. What it brought goes along with the next connection. */
  #lose(code: number) {
    if (this.#connection?.useful) this.#failures = 0;
    if (this.up) this.#note("lost", code);
    this.#lost ??= { at: this.#now, code };
    if (this.#connection) this.#connection.closeCode = code;
    this.#socket++;
    for (const timer of ["flush", "beat", "rotate"] as const) this.#do({ do: "wait", timer, ms: undefined });
    this.#sending = false;
  }

  #stop(leaving: boolean) {
    const c = this.#connection;
    if (this.wanted) {
      this.#note("stopped");
      if (c)
        this.#do({
          do: "disconnect",
          leaving,
          request: {
            fencingToken: c.number,
            frames: c.frames,
            closeCode: c.closeCode || 1000,
            playedMs: this.#playedMs,
          },
        });
    }
    this.#off("idle");
  }

  #off(status: "idle" | "elsewhere" | "failed") {
    this.#phase = "off";
    this.#status = status;
    this.#socket++;
    this.#connection = this.#request = undefined;
    this.#attempt++;
    this.#sending = false;
    this.#interim = "";
    this.#mode = "idle";
    this.#told = this.#told.filter((t) => t.text !== undefined && status !== "idle");
    for (const [seq, call] of this.#calls) if (call.state === "theirs") this.#calls.delete(seq);
    for (const timer of ["flush", "beat", "rotate", "retry"] as const) this.#do({ do: "wait", timer, ms: undefined });
    this.#do({ do: "silence" });
    this.#do({ do: "close" });
  }

  #elsewhere(holder: string | undefined) {
    this.#note("fenced", holder ?? "");
    this.#holder = holder;
    this.#off("elsewhere");
  }

  #fail() {
    this.#off("failed");
  }

  // The frames.

  #read({ frame, text, sounds }: Read, playedMs: number | undefined) {
    for (const sound of sounds) this.#do({ do: "play", sound });
    const c = this.#connection;
    const s = frame.serverContent;
    const urgent = Boolean(
      frame.toolCall || frame.toolCallCancellation || frame.goAway || s?.turnComplete || s?.interrupted || frame.setupComplete,
    );
    if (c && (s || frame.toolCall || frame.voiceActivity)) c.useful = true;
    if (playedMs !== undefined) {
      this.#playedMs = playedMs;
      this.#note("interrupted", playedMs);
    }
    this.#keep(text, urgent && !frame.setupComplete);
    this.#follow(frame, sounds.length > 0);
    if (frame.goAway && c) {
      c.closesAt = this.#now + seconds(frame.goAway.timeLeft as live.Plan["connectAfter"]);
      this.#note("closes", Math.round((c.closesAt - this.#now) / 1000));
    }
    if (frame.sessionResumptionUpdate && c) {
      c.resumable = frame.sessionResumptionUpdate.resumable ?? false;
      if (frame.sessionResumptionUpdate.newHandle && c.resumable) this.#note("handle", ++c.handles);
    }
    if (frame.setupComplete && this.#phase === "opening") this.#up();
  }

  #up() {
    const c = this.#connection;
    if (!c) return;
    this.#phase = "up";
    this.#refused = 0;
    this.#error = undefined;
    c.since = this.#now;
    if (this.#lost) {
      const gap = Math.round(this.#now - this.#lost.at);
      this.#gaps.push(gap);
      this.#note("resumed", gap);
    } else this.#note("connected", c.number);
    this.#lost = undefined;
    this.#first = false;
    if (c.send) this.#do({ do: "send", frame: c.send });
    c.send = undefined;
    this.#tell();
    this.#do({ do: "ready" });
    this.#do({ do: "wait", timer: "beat", ms: waits.beat });
  }

  /** follow keeps what a page shows of who speaks. */
  #follow(frame: Frame, sounds: boolean) {
    const s = frame.serverContent;
    const said = s?.inputTranscription?.text;
    const kind = frame.voiceActivity?.voiceActivityType;
    if (said || kind === "ACTIVITY_START") {
      if (this.#asked) this.#interim = "";
      this.#asked = false;
      this.#interim += said ?? "";
      this.#mode = "listening";
    }
    if (kind === "ACTIVITY_END" || frame.toolCall) this.#mode = "thinking";
    if (sounds || s?.outputTranscription?.text) {
      this.#mode = "speaking";
      this.#asked = true;
    }
    if (s?.interrupted) this.#mode = "listening";
    else if (s?.turnComplete) {
      this.#mode = "idle";
      this.#interim = "";
    }
  }

  /** keep gives a frame its number. */
  #keep(text: string, urgent: boolean) {
    const c = this.#connection;
    if (!c) return;
    c.frames.push({ clientIndex: c.next++, text });
    this.#schedule(urgent);
  }

  #schedule(urgent: boolean) {
    this.#urgent ||= urgent;
    if (this.#sending || (this.#phase !== "up" && this.#phase !== "opening")) return;
    const c = this.#connection;
    const fresh = c ? c.next - 1 - c.sent : 0;
    if (this.#urgent || fresh >= batch.frames) return this.#flush();
    if (fresh === 1) this.#do({ do: "wait", timer: "flush", ms: waits.batch });
  }

  /** flush sends what Holdfast has not stored; with nothing to send it renews the lease. */
  #flush() {
    const c = this.#connection;
    if (!c || this.#sending) return;
    this.#do({ do: "wait", timer: "flush", ms: undefined });
    this.#do({ do: "wait", timer: "beat", ms: undefined });
    this.#sending = true;
    this.#urgent = false;
    const frames: Kept[] = [];
    for (let bytes = 0, i = 0; i < Math.min(c.frames.length, this.#one ? 1 : batch.frames); i++) {
      const frame = c.frames[i] as Kept;
      bytes += frame.text.length;
      if (i > 0 && bytes > batch.bytes) break;
      frames.push(frame);
    }
    c.sent = Math.max(c.sent, frames.at(-1)?.clientIndex ?? 0);
    this.#do({ do: "ingest", request: { fencingToken: c.number, frames, playedMs: this.#playedMs } });
    this.#playedMs = undefined;
  }

  #ingested(number: number, answer: live.IngestLiveResponse) {
    const c = this.#connection;
    if (!c || c.number !== number) return;
    this.#sending = false;
    this.#ingestFailures = 0;
    this.#one = false;
    // What a repeated question takes along must not change.
    if (!this.#ingests) return;
    c.renewed = this.#now;
    c.stored = Math.max(c.stored, answer.storedThrough);
    c.frames = c.frames.filter((f) => f.clientIndex > c.stored);
    for (const call of answer.toolCalls) this.#offer(call);
    if (this.#phase === "draining") return this.#ask();
    const { rotate } = answer;
    if (rotate?.now && this.#phase === "up" && ![...this.#calls.values()].some((t) => t.state === "running")) {
      // The next takes over: this one's socket is left at a moment when no one speaks.
      this.#note("rotates", number);
      this.#do({ do: "close" });
      this.#lose(1000);
      return this.#ask();
    }
    this.#do({ do: "wait", timer: "rotate", ms: rotate?.within ? seconds(rotate.within) : undefined });
    if (c.next - 1 > c.sent) {
      if (this.#urgent || c.next - 1 - c.sent >= batch.frames) this.#flush();
      else this.#do({ do: "wait", timer: "flush", ms: waits.batch });
    } else if (c.frames.length > 0) this.#do({ do: "wait", timer: "flush", ms: waits.settle });
    else this.#do({ do: "wait", timer: "beat", ms: waits.beat });
  }

  #ingestFailed(number: number, error: HoldfastError) {
    const c = this.#connection;
    // While the next connection is asked for, this device itself fences the last.
    if (!c || c.number !== number || !this.#ingests) return;
    this.#sending = false;
    if (error.reason === "FENCED" || error.reason === "LEASE_HELD") return this.#elsewhere(error.held?.deviceName);
    if (error.reason === "SIZE_EXCEEDED" || error.reason === "FIELD_INVALID") {
      // One frame that cannot be stored must not hold up the rest.
      if (this.#one) c.frames.shift();
      this.#one = true;
      return this.#flush();
    }
    if (!passes(error)) {
      this.#error = { from: "holdfast", error };
      return this.#fail();
    }
    const wait = Math.max(error.retryAfter ?? 0, Math.min(5000, 125 * 2 ** this.#ingestFailures++));
    this.#do({ do: "wait", timer: "flush", ms: wait });
  }

  #due(timer: Timer) {
    switch (timer) {
      case "flush":
      case "beat":
      case "rotate":
        if (this.#ingests) this.#flush();
        return;
      case "retry":
        if (this.#phase !== "resting") return;
        if (this.#token) this.#open();
        else this.#ask();
        return;
      case "claims":
        for (const call of this.#calls.values()) {
          if (call.state === "theirs") this.#do({ do: "claim", seq: call.seq });
          else if (call.state === "running") this.#do({ do: "claim", seq: call.seq, fencingToken: call.token });
        }
        return this.#renew();
    }
  }

  // The tools.

  /** offer takes a tool call that an answer has. */
  #offer(call: conversation.ToolCall) {
    const known = this.#calls.get(call.seq);
    if (call.status === "completed" || call.status === "cancelled") {
      // A result of one's own is told by the answer of its completion.
      if (known && (known.state === "theirs" || call.status === "cancelled")) {
        this.#calls.delete(call.seq);
        this.#do({ do: "abort", seq: call.seq });
      }
    } else if (this.#options.tools === undefined) return;
    else if (call.claim) this.#own(call);
    else if (!known && call.status === "orphaned") {
      this.#calls.set(call.seq, { ...brief(call), token: 0, state: "theirs", failures: 0 });
      this.#do({ do: "claim", seq: call.seq });
    }
  }

  /** own runs a call that this device has claimed, once. */
  #own(call: conversation.ToolCall) {
    const known = this.#calls.get(call.seq);
    const token = call.claim?.fencingToken ?? 0;
    // A plan may be older than the answer that its completion had.
    if (!known && this.#ran.has(call.seq)) return;
    if (known && known.state !== "theirs") {
      known.token = Math.max(known.token, token);
      return;
    }
    this.#ran.add(call.seq);
    this.#calls.set(call.seq, { ...brief(call), token, state: "running", failures: 0 });
    this.#note("toolRuns", call.name);
    this.#do({ do: "run", call });
    this.#renew();
  }

  #finish(seq: number, response: Json, isError: boolean) {
    const call = this.#calls.get(seq);
    if (!call) return;
    call.state = "storing";
    call.result = { response, isError };
    this.#do({ do: "complete", seq, fencingToken: call.token, response, isError, after: 0 });
  }

  #completed(seq: number, answer: live.CompleteToolCallResponse) {
    const call = this.#calls.get(seq);
    if (!call) return;
    this.#calls.delete(seq);
    this.#note("toolDone", call.name);
    this.#renew();
    if (!answer.send) return;
    this.#told.push({ frame: answer.send, version: answer.version });
    this.#tell();
  }

  #completeFailed(seq: number, error: HoldfastError) {
    const call = this.#calls.get(seq);
    if (!call?.result) return;
    if (!passes(error)) {
      // Someone else has it, or it is cancelled: theirs is the result.
      this.#calls.delete(seq);
      return this.#renew();
    }
    const after = Math.max(error.retryAfter ?? 0, Math.min(5000, 250 * 2 ** call.failures++));
    this.#do({ do: "complete", seq, fencingToken: call.token, ...call.result, after });
  }

  #claimFailed(seq: number, error: HoldfastError) {
    const call = this.#calls.get(seq);
    if (!call) return;
    if (call.state === "theirs") {
      if (error.reason === "ILLEGAL_TRANSITION") this.#do({ do: "ask", seq });
      else if (!passes(error) && error.reason !== "LEASE_HELD") this.#calls.delete(seq);
      return this.#renew();
    }
    if (passes(error)) return;
    // It was withdrawn, or taken by another, because this one was silent for too long.
    this.#calls.delete(seq);
    this.#do({ do: "abort", seq });
    this.#renew();
  }

  /** renew waits until claims are renewed, or asked for. */
  #renew() {
    const states = [...this.#calls.values()].map((c) => c.state);
    const ms = states.includes("theirs") ? waits.theirs : states.includes("running") ? waits.claims : undefined;
    this.#do({ do: "wait", timer: "claims", ms });
  }

  /** tell gives the provider what waits for it, and Holdfast the same frames. */
  #tell() {
    if (!this.up) return;
    const version = this.#connection?.version ?? 0;
    for (const told of this.#told) {
      if (told.version !== undefined && told.version <= version) continue; // the plan had it
      this.#do({ do: "send", frame: told.frame });
      this.#keep(JSON.stringify(told.frame), true);
      this.#mode = "thinking";
    }
    this.#told = [];
  }
}

const brief = ({ seq, name, args }: conversation.ToolCall) => ({ seq, name, args: args ?? {} });

/** seconds reads a span such as 1.5s, in milliseconds. */
function seconds(span: string | undefined): number {
  return span === undefined ? 0 : 1000 * (Number.parseFloat(span) || 0);
}

/** passes reports whether the same request may succeed later. */
const passes = (error: HoldfastError): boolean => error.retry === "same" || error.retry === "after";
