// What the core decides, without a clock, a network or a server.
import assert from "node:assert/strict";
import { test } from "node:test";
import { HoldfastError, type live } from "@holdfast/client";
import { Core } from "../src/core.ts";
import type { Effect, Event } from "../src/event.ts";
import { read } from "../src/frame.ts";

/** A core that is driven by hand. */
function driven() {
  const core = new Core({ setup: { model: "m" }, tools: ["run"], connect: {} });
  let now = 0;
  const step = (event: Event): Effect[] => core.step(event, ++now);
  const of = <D extends Effect["do"]>(effects: Effect[], what: D) =>
    effects.filter((e): e is Extract<Effect, { do: D }> => e.do === what);
  const frame = (f: object) => {
    const one = read(JSON.stringify(f));
    assert.ok(one);
    return step({ on: "message", socket, read: one, playedMs: undefined });
  };
  let socket = 0;
  /** up answers a question, and sets the socket up. */
  const up = (asked: Effect[], number: number, handle = "") => {
    const [question] = of(asked, "connect");
    assert.ok(question);
    const plan: live.Plan = { handle, toolCalls: [], reason: handle ? "resumed" : "first" };
    const lease = { fencingToken: number, holder: "" };
    const opened = step({
      on: "connected",
      attempt: question.attempt,
      answer: { connectionId: "c", lease, plan, version: number },
      credential: { token: "t" },
    });
    socket = of(opened, "open")[0]?.socket ?? 0;
    step({ on: "opened", socket });
    frame({ setupComplete: {} });
    assert.equal(core.view().status, "live");
  };
  const ingested = (number: number, more: Partial<live.IngestLiveResponse> = {}) =>
    step({
      on: "ingested",
      number,
      answer: {
        storedThrough: 0,
        receivedThrough: 0,
        toolCalls: [],
        messages: [],
        unknownFrames: 0,
        version: 9,
        more: false,
        skippedFrames: 0,
        missingFrames: 0,
        ...more,
      },
    });
  return { core, step, of, frame, up, ingested };
}

const failed = (reason: string, retry: "same" | "never" | "reread") => new HoldfastError("", "live", { reason, retry });

test("a connection is left when Holdfast says so, unless a tool runs", () => {
  const d = driven();
  d.up(d.step({ on: "start", takeOver: false }), 1);
  const call = { seq: 1, name: "run", status: "running", claim: { fencingToken: 3, holder: "" } };
  const running = d.ingested(1, { toolCalls: [call as never], rotate: { now: true } });
  assert.equal(d.of(running, "run").length, 1);
  assert.equal(d.of(running, "connect").length, 0);
  d.step({ on: "ran", seq: 1, response: 7, isError: false });
  const left = d.ingested(1, { rotate: { now: true } });
  assert.equal(d.of(left, "close").length, 1);
  assert.equal(d.of(left, "connect")[0]?.request.previous?.fencingToken, 1);
  assert.equal(d.core.view().status, "resuming");
});

test("a question whose answer was lost is asked again as it was, whatever happened meanwhile", () => {
  const d = driven();
  d.up(d.step({ on: "start", takeOver: false }), 1);
  d.frame({ serverContent: { inputTranscription: { text: "Hello" } } });
  const [first] = d.of(d.step({ on: "closed", socket: 1, code: 1006, message: "" }), "connect");
  const sent = JSON.stringify(first);
  d.ingested(1, { storedThrough: 3 }); // the answer of a batch that was on its way
  d.step({ on: "connectFailed", attempt: first?.attempt ?? 0, error: failed("UNREACHABLE", "same") });
  const [again] = d.of(d.step({ on: "due", timer: "retry" }), "connect");
  assert.equal(JSON.stringify(again), sent);
});

test("a device that fences itself goes on; one that another fences stops, and names who has it", () => {
  const d = driven();
  d.up(d.step({ on: "start", takeOver: false }), 1);
  const asked = d.step({ on: "suspect" });
  d.step({ on: "ingestFailed", number: 1, error: failed("FENCED", "reread") });
  assert.equal(d.core.view().status, "resuming");
  d.up(asked, 2);
  const stopped = d.step({ on: "ingestFailed", number: 2, error: failed("FENCED", "reread") });
  assert.equal(d.core.view().status, "elsewhere");
  assert.deepEqual([d.of(stopped, "close").length, d.of(stopped, "silence").length], [1, 1]);
});

test("a handle that is refused is not tried again, and a provider that refuses everything ends it", () => {
  const d = driven();
  d.up(d.step({ on: "start", takeOver: false }), 1);
  let asked = d.step({ on: "suspect" });
  const refuse = (handle: string) => {
    const [question] = d.of(asked, "connect");
    const effects = d.step({
      on: "connected",
      attempt: question?.attempt ?? 0,
      answer: {
        connectionId: "c",
        lease: { fencingToken: 2, holder: "" },
        plan: { handle, toolCalls: [], reason: "resumed" },
        version: 2,
      },
      credential: { token: "t" },
    });
    asked = d.step({ on: "closed", socket: d.of(effects, "open")[0]?.socket ?? 0, code: 1008, message: "no" });
  };
  refuse("h");
  assert.equal(d.of(asked, "connect")[0]?.request.previous?.handleRefused, true);
  for (let i = 0; i < 6; i++) {
    refuse("");
    if (i < 5) asked = d.step({ on: "due", timer: "retry" });
  }
  assert.equal(d.core.view().status, "failed");
  assert.deepEqual(d.core.view().error, { from: "provider", code: 1008, message: "no" });
});

test("of audio only its length is kept, and a large number stays as it came", () => {
  const pcm = "A".repeat(6400); // 4,800 bytes: 100 ms of 24,000 samples a second
  const one = read(
    JSON.stringify({
      serverContent: { modelTurn: { parts: [{ inlineData: { mimeType: "audio/pcm;rate=24000", data: pcm } }] } },
    }),
  );
  assert.equal(one?.sounds[0]?.pcm.length, 4800);
  const kept = JSON.parse(one?.text ?? "{}").serverContent.modelTurn.parts[0].inlineData;
  assert.deepEqual([kept.mimeType, kept.data.length], ["audio/pcm;rate=1000", 267]); // 200 bytes
  const text = '{"toolCall":{"functionCalls":[{"id":"a","args":{"n":12345678901234567890}}]}}';
  assert.equal(read(text)?.text, text);
  assert.equal(read("[1]") ?? read("{"), undefined);
});
