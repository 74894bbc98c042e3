// What the core is told, and what it wants done.
import type { conversation, HoldfastError, Json, JsonObject, live } from "@holdfast/client";
import type { Read, Sound } from "./frame.ts";

/** What the core is told once. */
export interface CoreOptions {
  setup: JsonObject;
  /** Names of the tools that are here; undefined: tool calls are left to workers. */
  tools: readonly string[] | undefined;
  connect: Pick<live.ConnectLiveRequest, "device" | "provider" | "seedBudgetTokens" | "seedEndsWithUser" | "options">;
}

/** What happens to the core. */
export type Event =
  | { on: "start"; takeOver: boolean }
  | { on: "stop"; leaving?: boolean }
  | { on: "text"; text: string }
  | { on: "connected"; attempt: number; answer: live.ConnectLiveResponse; credential: Credential }
  | { on: "connectFailed"; attempt: number; error: HoldfastError }
  | { on: "opened"; socket: number }
  /** playedMs: how much of the newest answer was heard when the user spoke over it. */
  | { on: "message"; socket: number; read: Read; playedMs: number | undefined }
  | { on: "closed"; socket: number; code: number; message: string }
  /** The network was away: the socket is dead, though it does not say so. */
  | { on: "suspect" }
  | { on: "ingested"; number: number; answer: live.IngestLiveResponse }
  | { on: "ingestFailed"; number: number; error: HoldfastError }
  | { on: "due"; timer: Timer }
  | { on: "ran"; seq: number; response: Json; isError: boolean }
  | { on: "completed"; seq: number; answer: live.CompleteToolCallResponse }
  | { on: "completeFailed"; seq: number; error: HoldfastError }
  | { on: "claimed"; call: conversation.ToolCall }
  | { on: "claimFailed"; seq: number; error: HoldfastError }
  /** Another device has completed a call, and text tells the model; undefined: it knows. */
  | { on: "answered"; seq: number; text: string | undefined };

/** What the token callback gave. */
export type Credential = { readonly token: string } | { readonly error: unknown };

export type Timer = "flush" | "beat" | "retry" | "rotate" | "claims";

/** What the core wants done. */
export type Effect =
  /** Ask for the lease; the same attempt is the same request. */
  | { do: "connect"; attempt: number; request: Omit<live.ConnectLiveRequest, "conversationId" | "requestId"> }
  | { do: "open"; socket: number; token: string; setup: JsonObject }
  | { do: "send"; frame: JsonObject }
  | { do: "close" }
  /** The provider listens: send what the microphone brought meanwhile. */
  | { do: "ready" }
  | { do: "play"; sound: Sound }
  /** Drop what is not played yet, and what the microphone brought. */
  | { do: "silence" }
  | { do: "ingest"; request: Omit<live.IngestLiveRequest, "conversationId"> & { fencingToken: number } }
  | { do: "disconnect"; request: Omit<live.DisconnectLiveRequest, "conversationId" | "requestId">; leaving: boolean }
  /** Replaces the timer's last; undefined: there is none. */
  | { do: "wait"; timer: Timer; ms: number | undefined }
  | { do: "run"; call: conversation.ToolCall }
  | { do: "abort"; seq: number }
  | { do: "complete"; seq: number; fencingToken: number; response: Json; isError: boolean; after: number }
  | { do: "claim"; seq: number; fencingToken?: number | undefined }
  /** Find out what became of a call that another device has completed. */
  | { do: "ask"; seq: number };
