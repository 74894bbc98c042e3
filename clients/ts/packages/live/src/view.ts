// What a page is shown.
import type { HoldfastError, JsonObject, live } from "@holdfast/client";

/** What goes on, in the words that pages use. */
export type Mode = "idle" | "listening" | "thinking" | "speaking";

export type Status =
  /** No connection is wanted. */
  | "idle"
  /** The first connection is being made. */
  | "connecting"
  | "live"
  /** The connection is lost, or is being exchanged for the next. What is said meanwhile is kept. */
  | "resuming"
  /** Another device has the conversation. `start({ takeOver: true })` takes it. */
  | "elsewhere"
  /** It ended with an error that no repetition helps against. */
  | "failed";

/** Why there is no connection. */
export type LiveError =
  | { readonly from: "holdfast"; readonly error: HoldfastError }
  | { readonly from: "token"; readonly error: unknown }
  /** The provider has closed a socket before it was set up. */
  | { readonly from: "provider"; readonly code: number; readonly message: string };

/** A tool call that has no result yet, or whose result Holdfast does not have yet. */
export interface PendingTool {
  readonly seq: number;
  readonly name: string;
  readonly args: JsonObject;
  /** "theirs": another device has claimed it. It is claimed here as soon as that device is silent. */
  readonly state: "running" | "storing" | "theirs";
}

/** One thing that happened, for people who want to see what goes on. */
export interface Happened {
  /** In milliseconds, as performance.now() has it. */
  readonly at: number;
  readonly what:
    | "connected"
    | "resumed"
    | "lost"
    | "rotates"
    | "closes"
    | "handle"
    | "interrupted"
    | "fenced"
    | "refused"
    | "toolRuns"
    | "toolDone"
    | "stopped";
  /** A number or a name that belongs to it: a close code, a tool, milliseconds. */
  readonly detail: string | number;
}

/** Where a conversation by voice stands. Each change makes a new one. */
export interface LiveView {
  readonly status: Status;
  readonly mode: Mode;
  /** The words that the user is saying, as far as they are transcribed. */
  readonly interim: string;
  /** The connection that has the conversation's lease. */
  readonly connection?:
    | {
        /** Its fencing token: 1 for the first connection of the conversation. */
        readonly number: number;
        /** Whether the provider's session goes on, and why, or why not. */
        readonly plan: live.PlanReason;
        /** When it was set up, and when the provider closes it, in milliseconds of performance.now(). */
        readonly since: number;
        readonly closesAt?: number | undefined;
        /** When its lease was renewed. */
        readonly renewed: number;
        /** How many resumption handles came, and whether the newest can be used. */
        readonly handles: number;
        readonly resumable: boolean;
      }
    | undefined;
  /** How far a lost connection's successor is. */
  readonly resume?:
    | {
        readonly since: number;
        readonly attempt: number;
        readonly step: "asking" | "connecting" | "waiting";
        readonly closeCode: number;
        /** The frames that go along. */
        readonly frames: number;
        readonly plan?: live.PlanReason | undefined;
      }
    | undefined;
  /** Frames that Holdfast has not stored yet, and the last one that it has. */
  readonly unsent: number;
  readonly storedThrough: number;
  readonly tools: readonly PendingTool[];
  /** Texts that the provider has not been given yet. */
  readonly queued: readonly string[];
  /** Who has the conversation, where it is elsewhere. */
  readonly holder?: string | undefined;
  readonly error?: LiveError | undefined;
  /** How long each exchange of a connection took, in milliseconds, the newest last. */
  readonly gaps: readonly number[];
  /** The newest 30. */
  readonly happened: readonly Happened[];
}
