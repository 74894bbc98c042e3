// What the tests of sessions share: a conversation of ten turns, a device that talks, and what is compared.
import type { Holdfast, JsonObject } from "@holdfast/client";
import { type Gemini, type GeminiOptions, gemini, type Turn } from "../../testing/src/gemini.ts";
import { type LiveOptions, type LiveSession, live, webSocket } from "../src/index.ts";

export const script: Turn[] = [
  { user: "Can you look at issue ENG-142?", say: "Sure. It is about token refresh." },
  {
    user: "Start a run that refactors the auth module.",
    say: "I start a run for it. ",
    tool: { name: "start_run", args: { prompt: "Refactor the auth module" } },
    done: "It is number 90211.",
  },
  { user: "How long does that take?", say: "About ten minutes, as the last one did." },
  {
    user: "And add a test for expired tokens.",
    say: "Good idea. I tell the agent to cover expired tokens and clock skew too.",
    cut: 3,
  },
  { user: "No, just expired ones please.", say: "Understood, only expired tokens." },
  {
    user: "Set the issue to in progress.",
    tool: { name: "move_issue", args: { issue: "ENG-142", state: "In Progress" } },
    done: "ENG-142 is in progress now.",
  },
  { user: "Who else works on it?", say: "Lea had it until Tuesday." },
  {
    user: "Then start another run for the docs.",
    say: "The docs, too. ",
    tool: { name: "start_run", args: { prompt: "Write the docs" } },
    done: "That is number 90212.",
  },
  { user: "Yes.", say: "Anything else?" },
  { user: "No, thank you. Good night.", say: "Good night." },
];

/** Stage is a conversation with a provider of its own, whose tools count how often they ran. */
export interface Stage {
  provider: Gemini;
  id: string;
  ran: Map<string, number>;
  device(hf: Holdfast, more?: Partial<LiveOptions>): LiveSession;
}

let stages = 0;

/** on runs something on a stage of its own. */
export async function on<T>(hf: Holdfast, options: GeminiOptions, run: (stage: Stage) => Promise<T>): Promise<T> {
  const provider = await gemini({ script, ...options });
  const id = `live-${process.pid}-${++stages}`;
  await hf.conversation(id).create();
  const ran = new Map<string, number>();
  const sessions = new Set<LiveSession>();
  const tool = (name: string) => (_: JsonObject, call: { key: string }) => {
    ran.set(`${name} ${call.key.split("/")[1]}`, (ran.get(`${name} ${call.key.split("/")[1]}`) ?? 0) + 1);
    return { output: `${name} is done` };
  };
  const device: Stage["device"] = (as, more = {}) => {
    const session = live(as, id, {
      setup: { model: "models/fake", generationConfig: { responseModalities: ["AUDIO"] } },
      token: () => provider.token(),
      tools: { start_run: tool("start_run"), move_issue: tool("move_issue") },
      connect: webSocket({ url: provider.url }),
      ...more,
    });
    sessions.add(session);
    return session;
  };
  try {
    return await run({ provider, id, ran, device });
  } finally {
    await Promise.all([...sessions].map((s) => s.stop()));
    await provider.stop();
  }
}

/** told is a transcript as people remember it: who said what, in order, and each tool's call and result. Where a socket cut an answer, its parts are joined. */
export async function told(hf: Holdfast, id: string): Promise<string[]> {
  const talk = hf.conversation(id);
  const out: string[] = [];
  let last = "";
  for await (const m of talk.messages()) {
    if (m.role === "tool") continue; // a result that came after its connection: the call has it
    if (m.role === last) out.push(`${out.pop()} ${m.text}`);
    else out.push(`${m.role}: ${m.text}`);
    last = m.role;
  }
  for await (const { toolCall: c } of talk.records({ types: ["tool_call"] }))
    if (c) out.push(`${c.name} ${JSON.stringify(c.args)} ${c.status} ${JSON.stringify(c.response)}`);
  for await (const { fragment } of talk.records({ types: ["fragment"] })) out.push(`fragment ${JSON.stringify(fragment)}`);
  return out.map((line) => line.replace(/\s+/g, " ").trim());
}

/** settled waits until Holdfast has all of it. */
export async function settled(session: LiveSession): Promise<void> {
  while (session.get().unsent > 0 || session.get().tools.length > 0) {
    if (session.get().status !== "live" && session.get().status !== "resuming") return;
    await new Promise<void>((done) => {
      const stop = session.subscribe(() => {
        stop();
        done();
      });
    });
  }
}
