import type { HoldfastError as ClientError, Reason as ReasonName } from "@holdfast/client";
import { Data, Duration } from "effect";

/** What the error says besides its reason: what the client's HoldfastError has, and its spans as durations. */
type Details = Readonly<
  Pick<
    ClientError,
    | "call"
    | "retry"
    | "requestId"
    | "traceId"
    | "mismatch"
    | "violations"
    | "limit"
    | "held"
    | "transition"
    | "history"
    | "message"
  >
> & { readonly retryAfter: Duration.Duration | undefined };

/** Why a call failed, by the names of docs/errors.md as `_tag`. */
export type Reason = { readonly [R in ReasonName]: Details & { readonly _tag: R } }[ReasonName];

/**
 * The error of everything that fails. Take its reasons apart by `Effect.catchReason`:
 *
 *     Effect.catchReason("HoldfastError", "VERSION_MISMATCH", (reason) => Effect.log(`now at ${reason.mismatch?.currentVersion}`))
 *
 * The client has already sent again what was worth sending again.
 */
export class HoldfastError extends Data.TaggedError("HoldfastError")<{ readonly reason: Reason; readonly cause: ClientError }> {
  constructor(cause: ClientError) {
    const { call, retry, requestId, traceId, mismatch, violations, limit, held, transition, history, message } = cause;
    const retryAfter = cause.retryAfter === undefined ? undefined : Duration.millis(cause.retryAfter);
    const details: Details = {
      ...{ call, retry, requestId, traceId, mismatch, violations, limit, held, transition, history, message, retryAfter },
    };
    super({ reason: { ...details, _tag: cause.reason } as Reason, cause });
  }

  override get message(): string {
    return this.cause.message;
  }

  /** The same call may succeed later. */
  get isRetryable(): boolean {
    return this.reason.retry === "same" || this.reason.retry === "after";
  }
}
