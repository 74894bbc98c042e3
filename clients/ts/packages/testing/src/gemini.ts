import { createServer } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { type WebSocket, WebSocketServer } from "ws";

type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
type JsonObject = { [key: string]: Json };

/** One turn of a conversation. */
export interface Turn {
  /** What the user says. */
  user: string;
  /** What the model says. */
  say?: string | undefined;
  /** A tool that it calls then, and what it says once it has the response. */
  tool?: { name: string; args: JsonObject } | undefined;
  done?: string | undefined;
  /** The user speaks over the answer after so many of its pieces. */
  cut?: number | undefined;
}

/** How a fake Gemini Live behaves. */
export interface GeminiOptions {
  port?: number | undefined;
  /** What is said, turn by turn. After it, and of texts that are typed, `improvise` makes turns. */
  script?: readonly Turn[] | undefined;
  improvise?: ((text: string) => Turn) | undefined;
  /** When a turn begins: by itself, or as soon as the microphone hears something. */
  speaker?: "script" | "microphone" | undefined;
  /** Whether what the microphone hears cuts an answer off; true. */
  bargeIn?: boolean | undefined;
  /** Milliseconds between frames. */
  pace?: number | undefined;
  /** The key that mints tokens. */
  key?: string | undefined;
  /** Called with each frame after it has gone out, and waited for: a close code ends the socket; 1006 cuts it without a word. */
  after?: ((number: number, frame: JsonObject) => number | undefined | Promise<undefined>) | undefined;
}

/** A server that speaks Gemini Live's protocol, and whose mood can be set. */
export interface Gemini extends AsyncDisposable {
  /** Its base URL: what a session's `webSocket({ url })` takes, and where tokens are minted as Google's are. */
  readonly url: string;
  /** How many sockets were opened, and frames sent. */
  readonly connections: number;
  readonly frames: number;
  /** The turns that are over. */
  readonly turns: number;
  /** What the clients sent, without audio. */
  readonly heard: readonly JsonObject[];
  /** A token for one connection. */
  token(): string;
  /** Cuts all sockets, or closes them with a code. */
  drop(code?: number): void;
  /** Refuses so many of the next setups that have a handle. */
  refuseHandles(times: number): void;
  /** Says that it closes the connections, and does. */
  goAway(ms: number): void;
  /** Resolves after so many turns in all. */
  over(turns: number): Promise<void>;
  stop(): Promise<void>;
}

/** A step is a frame, or the wait for a call's response. */
type Step = { frame: JsonObject } | { wait: string; name: string } | { turn: true };

/** Stage is the conversation, which sockets come and go under: what one socket brought is not said again on the next. */
interface Stage {
  steps: Step[];
  begun: number;
  over: number;
  answered: Set<string>;
  /** The pieces of an answer that is being spoken, which the user may speak over. */
  speaking: boolean;
}

/** gemini starts one. */
export async function gemini(options: GeminiOptions = {}): Promise<Gemini> {
  const { script = [], pace = 0, key = "fake-key", speaker = "script", bargeIn = true } = options;
  const improvise = options.improvise ?? reply;
  const stage: Stage = { steps: [], begun: 0, over: 0, answered: new Set(), speaking: false };
  const tokens = new Set<string>();
  const handles = new Set<string>();
  const sockets = new Set<WebSocket>();
  const heard: JsonObject[] = [];
  const waiting = new Set<() => void>();
  let [connections, frames, ids, refusals] = [0, 0, 0, 0];
  let wake: () => void = () => {};
  const mint = () => {
    const token = `auth_tokens/fake-${++ids}`;
    tokens.add(token);
    return token;
  };

  const http = createServer((request, response) => {
    response.setHeader("Access-Control-Allow-Origin", "*");
    response.setHeader("Access-Control-Allow-Headers", "*");
    if (request.method === "OPTIONS") response.writeHead(204).end();
    else if (request.method !== "POST" || !request.url?.startsWith("/v1alpha/auth_tokens")) response.writeHead(404).end();
    else if (request.headers["x-goog-api-key"] !== key) response.writeHead(403).end('{"error":{"code":403}}');
    else response.writeHead(200, { "Content-Type": "application/json" }).end(JSON.stringify({ name: mint() }));
  });
  const server = new WebSocketServer({ server: http });

  /** play sends what is next on the stage as long as the socket is the newest. */
  const play = async (socket: WebSocket) => {
    const here = () => sockets.has(socket);
    while (here()) {
      const step = stage.steps[0];
      if (!step && speaker === "script" && stage.begun < script.length) begin(script[stage.begun++] as Turn);
      else if (!step || ("wait" in step && !stage.answered.has(step.wait))) await new Promise<void>((done) => (wake = done));
      else {
        stage.steps.shift();
        if ("frame" in step) {
          await send(socket, step.frame);
          await new Promise((done) => setTimeout(done, pace));
        } else if ("turn" in step) {
          stage.over++;
          for (const check of [...waiting]) check();
        }
      }
    }
  };
  const begin = (turn: Turn) => {
    stage.steps.push(...steps(turn, () => ++ids, handles));
    wake();
  };
  const send = async (socket: WebSocket, frame: JsonObject) => {
    stage.speaking = "modelTurn" in ((frame["serverContent"] as JsonObject) ?? {}) || (stage.speaking && !frame["serverContent"]);
    socket.send(JSON.stringify(frame));
    frames++;
    const code = await options.after?.(frames, frame);
    if (code !== undefined) close(socket, code);
  };
  const close = (socket: WebSocket, code: number) => {
    sockets.delete(socket);
    wake();
    // What was sent arrives, and no word of goodbye.
    if (code === 1006) (socket as unknown as { _socket: Socket })._socket.end();
    else socket.close(code, code === 1008 ? "the handle is not valid" : "");
  };

  /** told notes that the model was told a call's response, as a toolResponse or, on another connection, in words. */
  const told = (frame: JsonObject) => {
    const step = stage.steps.find((s) => "wait" in s);
    if (!step || !("wait" in step)) return;
    const text = JSON.stringify(frame["clientContent"] ?? "");
    const responses = ((frame["toolResponse"] as JsonObject)?.["functionResponses"] ?? []) as JsonObject[];
    if (responses.some((r) => r["id"] === step.wait) || text.includes(step.wait) || text.includes(`result of ${step.name}`))
      stage.answered.add(step.wait);
    wake();
  };

  server.on("connection", (socket, request) => {
    const token = new URL(request.url ?? "", "http://fake").searchParams.get("access_token") ?? "";
    connections++;
    if (!tokens.delete(token)) return socket.close(1008, "the token is not valid, or was used");
    let sound = { quiet: 0, loud: false };
    const setUp = async (setup: JsonObject) => {
      const handle = (setup["sessionResumption"] as JsonObject)?.["handle"] as string | undefined;
      if (handle !== undefined && (!handles.has(handle) || refusals > 0)) {
        refusals = Math.max(0, refusals - 1);
        return close(socket, 1008);
      }
      for (const old of sockets) close(old, 1000);
      sockets.add(socket);
      await send(socket, { setupComplete: { sessionId: `fake-${connections}` } });
      // What the client has to say first comes first.
      await new Promise((done) => setTimeout(done, Math.max(pace, 5)));
      void play(socket);
    };
    socket.on("close", () => {
      sockets.delete(socket);
      wake();
    });
    socket.on("error", () => {});
    socket.on("message", (data) => {
      const frame = JSON.parse(String(data)) as JsonObject;
      const input = frame["realtimeInput"] as JsonObject | undefined;
      if (!input?.["audio"]) heard.push(frame);
      if (frame["setup"]) void setUp(frame["setup"] as JsonObject);
      else if (frame["toolResponse"] || frame["clientContent"]) told(frame);
      else if (typeof input?.["text"] === "string") {
        if (stage.steps.length > 0 && stage.speaking) cut();
        stage.steps.push(...steps({ ...improvise(input["text"]), user: "" }, () => ++ids, handles));
        wake();
      } else if (input?.["audio"] && speaker === "microphone") sound = listen(input["audio"] as JsonObject, sound);
    });
  });

  /** cut drops the rest of an answer, because the user speaks. */
  const cut = () => {
    const end = stage.steps.findIndex((s) => "turn" in s);
    if (end < 0 || stage.steps.slice(0, end).some((s) => "wait" in s)) return;
    stage.steps.splice(
      0,
      end,
      { frame: { serverContent: { interrupted: true } } },
      { frame: { serverContent: { turnComplete: true } } },
      { frame: resumption(++ids, handles) },
    );
    stage.speaking = false;
  };

  /** listen begins a turn when the microphone becomes loud after a pause. */
  const listen = (audio: JsonObject, before: { quiet: number; loud: boolean }) => {
    const pcm = Buffer.from(String(audio["data"]), "base64");
    let sum = 0;
    for (let i = 0; i + 1 < pcm.length; i += 2) sum += pcm.readInt16LE(i) ** 2;
    const loud = Math.sqrt(sum / Math.max(1, pcm.length / 2)) > 600;
    const quiet = loud ? 0 : before.quiet + pcm.length / 32;
    if (!loud && quiet < 300) return { quiet, loud: before.loud };
    if (loud && !before.loud) {
      const turn = script[stage.begun] ?? improvise("");
      if (stage.steps.length === 0 || (bargeIn && stage.speaking)) {
        if (stage.steps.length > 0) cut();
        stage.begun++;
        begin(turn);
      }
    }
    return { quiet, loud };
  };

  await new Promise<void>((done) => http.listen(options.port ?? 0, "127.0.0.1", done));
  const stop = async () => {
    for (const socket of server.clients) socket.terminate();
    http.closeAllConnections();
    await new Promise((done) => http.close(done));
  };
  return {
    url: `http://127.0.0.1:${(http.address() as AddressInfo).port}`,
    get connections() {
      return connections;
    },
    get frames() {
      return frames;
    },
    get turns() {
      return stage.over;
    },
    heard,
    token: mint,
    drop(code = 1006) {
      for (const socket of sockets) close(socket, code);
    },
    refuseHandles(times) {
      refusals = times;
    },
    goAway(ms) {
      for (const socket of sockets) {
        void send(socket, { goAway: { timeLeft: `${ms / 1000}s` } });
        setTimeout(() => sockets.has(socket) && close(socket, 1000), ms).unref();
      }
    },
    over: (turns) =>
      new Promise((done) => {
        const check = () => {
          if (stage.over < turns) return;
          waiting.delete(check);
          done();
        };
        waiting.add(check);
        check();
      }),
    stop,
    [Symbol.asyncDispose]: stop,
  };
}

/** steps are the frames of a turn. */
function steps(turn: Turn, id: () => number, handles: Set<string>): Step[] {
  const out: Step[] = [];
  const frame = (f: JsonObject) => out.push({ frame: f });
  const content = (c: JsonObject) => frame({ serverContent: c });
  if (turn.user) {
    frame({ voiceActivity: { voiceActivityType: "ACTIVITY_START" } });
    for (const text of pieces(turn.user)) content({ inputTranscription: { text } });
    frame({ voiceActivity: { voiceActivityType: "ACTIVITY_END" } });
  }
  const say = (text: string, most = Number.POSITIVE_INFINITY) => {
    const all = pieces(text);
    for (const piece of all.slice(0, most)) {
      content({ modelTurn: { parts: [{ inlineData: { mimeType: "audio/pcm;rate=24000", data: hum(piece) } }] } });
      content({ outputTranscription: { text: piece } });
    }
    return all.length > most;
  };
  const interrupted = turn.say !== undefined && say(turn.say, turn.cut);
  if (turn.tool && !interrupted) {
    const call = `call-${id()}`;
    frame({ toolCall: { functionCalls: [{ id: call, ...turn.tool }] } });
    frame({ sessionResumptionUpdate: { resumable: false } });
    out.push({ wait: call, name: turn.tool.name });
    if (turn.done) say(turn.done);
  }
  content(interrupted ? { interrupted: true } : { generationComplete: true });
  const words = `${turn.say ?? ""}${turn.done ?? ""}`.length;
  frame({
    serverContent: { turnComplete: true },
    usageMetadata: { promptTokenCount: 100, responseTokenCount: words, totalTokenCount: 100 + words },
  });
  frame(resumption(id(), handles));
  out.push({ turn: true });
  return out;
}

function resumption(id: number, handles: Set<string>): JsonObject {
  const newHandle = `handle-${id}`;
  handles.add(newHandle);
  return { sessionResumptionUpdate: { newHandle, resumable: true } };
}

/** pieces cuts a text where a transcription would: after every second word. */
function pieces(text: string): string[] {
  return text.match(/\S+\s*(\S+\s*)?/g) ?? [];
}

/** hum is the sound of a text: 60 ms a character of something like a voice. */
function hum(text: string): string {
  const rate = 24_000;
  const samples = Math.round(text.length * 0.06 * rate);
  const pcm = Buffer.alloc(samples * 2);
  for (let i = 0; i < samples; i++) {
    const t = i / rate;
    const syllable = Math.sin(Math.PI * ((t * 4) % 1)) ** 2;
    const voice =
      Math.sin(2 * Math.PI * 165 * t) + 0.5 * Math.sin(2 * Math.PI * 330 * t) + 0.25 * Math.sin(2 * Math.PI * 660 * t);
    pcm.writeInt16LE(Math.round(2600 * syllable * voice), i * 2);
  }
  return pcm.toString("base64");
}

/** reply makes a turn of a text, as a model that has two tools might. */
function reply(text: string): Turn {
  const issue = /\b([A-Z]{2,5}-\d+)\b/i.exec(text)?.[1]?.toUpperCase() ?? "ENG-142";
  if (/\b(run|agent|refactor|fix|start)\b/i.test(text))
    return {
      user: text,
      say: "I’ll start a run for that. ",
      tool: { name: "start_run", args: { prompt: text.slice(0, 200), issue } },
      done: "It is on its way.",
    };
  if (/\b(move|set|progress|done|close|review)\b/i.test(text)) {
    const state = /\bdone|close/i.test(text) ? "Done" : /review/i.test(text) ? "In Review" : "In Progress";
    return {
      user: text,
      say: "Moving it. ",
      tool: { name: "move_issue", args: { issue, state } },
      done: `${issue} is in ${state} now.`,
    };
  }
  return { user: text || "And what else is open?", say: "I have noted that. Ask me to start a run, or to move an issue." };
}
