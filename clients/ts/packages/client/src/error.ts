import type {
  Held,
  History,
  Limit,
  Mismatch,
  Problem,
  Retry,
  Reason as ServerReason,
  Transition,
  Violations,
} from "./gen/error.ts";

/** Where a value does not fit its schema, and why. */
export interface SchemaIssue {
  readonly message: string;
  readonly path?: readonly (PropertyKey | { readonly key: PropertyKey })[] | undefined;
}

/** Why a call failed without an answer of Holdfast's. */
export type ClientReason =
  /** No answer came, or only a proxy's: the change may have happened. Sent again with its `requestId` it happens once. */
  | "UNREACHABLE"
  /** The answer is not Holdfast's, such as a login page: the URL is wrong, or something stands between. */
  | "ANSWER_UNREADABLE"
  /** Nobody is signed in. Nothing is sent until `signIn()`, here or in another tab. */
  | "SIGNED_OUT"
  /** The application's `signIn` threw or took too long; `cause` has its error. Later calls try it again. */
  | "SIGN_IN_FAILED"
  /** What is stored, or was to be written, does not fit the object's schema; `issues` say where. */
  | "SCHEMA_MISMATCH";

/** Why a call failed: the server's reasons, of docs/errors.md, and the client's own. */
export type Reason = ServerReason | ClientReason;

/** HoldfastError is the error of every call that fails, except one that its `AbortSignal` ended: that rejects with the signal's reason. */
export class HoldfastError extends Error {
  override readonly name = "HoldfastError";
  /** Go by it. A newer server may send one that is not in the type: then go by `retry`. */
  readonly reason: Reason;
  /** What helps. The client has already done what it may by itself, within the call's timeout. */
  readonly retry: Retry;
  /** The call that failed, such as `conversation.append`. */
  readonly call: string;
  /** The change's own id. Send the same request with it to find out what became of it: it happens once. */
  readonly requestId?: string | undefined;
  /** How many milliseconds to wait before the next try. */
  readonly retryAfter?: number | undefined;
  /** What the server's log has. */
  readonly traceId?: string | undefined;
  /** Of VERSION_MISMATCH. */
  readonly mismatch?: Mismatch | undefined;
  /** Of FIELD_INVALID, FIELD_UNKNOWN and NUMBER_INEXACT. */
  readonly violations?: Violations | undefined;
  /** Of SIZE_EXCEEDED, LIMIT_REACHED and QUOTA_EXCEEDED. */
  readonly limit?: Limit | undefined;
  /** Of LEASE_HELD. */
  readonly held?: Held | undefined;
  /** Of ILLEGAL_TRANSITION. */
  readonly transition?: Transition | undefined;
  /** Of HISTORY_GONE. */
  readonly history?: History | undefined;
  /** Of SCHEMA_MISMATCH: what the schema says. */
  readonly issues?: readonly SchemaIssue[] | undefined;

  constructor(
    message: string,
    call: string,
    problem: Partial<Problem> & { reason: string; retry: Retry },
    more: {
      requestId?: string | undefined;
      retryAfter?: number | undefined;
      cause?: unknown;
      issues?: readonly SchemaIssue[] | undefined;
    } = {},
  ) {
    super(`${call}: ${message}`, more.cause === undefined ? undefined : { cause: more.cause });
    this.reason = problem.reason as Reason;
    this.retry = problem.retry;
    this.call = call;
    this.requestId = more.requestId;
    this.retryAfter = more.retryAfter ?? milliseconds(problem.retryAfter);
    this.traceId = problem.traceId || undefined;
    this.mismatch = problem.mismatch;
    this.violations = problem.violations;
    this.limit = problem.limit;
    this.held = problem.held;
    this.transition = problem.transition;
    this.history = problem.history;
    this.issues = more.issues;
  }
}

/** is reports whether an error is Holdfast's, and has one of the reasons, if any are given. */
export function is<R extends Reason = Reason>(error: unknown, ...reasons: R[]): error is HoldfastError & { readonly reason: R } {
  // By name, because a page may hold two copies of this package.
  const e = error as HoldfastError | null | undefined;
  return typeof e === "object" && e?.name === "HoldfastError" && (reasons.length === 0 || reasons.includes(e.reason as R));
}

/** milliseconds reads a span such as 1.5s. */
export function milliseconds(span: string | undefined): number | undefined {
  const seconds = span === undefined ? Number.NaN : Number(span.replace(/s$/, ""));
  return Number.isFinite(seconds) ? seconds * 1000 : undefined;
}
