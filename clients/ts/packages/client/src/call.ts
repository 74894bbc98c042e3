import { HoldfastError, is, milliseconds, type Reason } from "./error.ts";
import type { Problem } from "./gen/error.ts";
import { type Rpc, services } from "./gen/rpc.ts";
import { decode, encode } from "./json.ts";
import { frames } from "./stream.ts";
import { backoff, id, now, race, sleep, within } from "./time.ts";

/** What every call takes. */
export interface CallOptions {
  /** Ends the call, which then rejects with the signal's reason. A change may have happened all the same. */
  signal?: AbortSignal | undefined;
  /** How many milliseconds the call may take with all its retries; 30,000 unless the client says otherwise. Streams have none. */
  timeout?: number | undefined;
  /** More headers, such as `traceparent`. */
  headers?: { [name: string]: string } | undefined;
  /** Let the browser send it though the page goes; at most 64 KiB. */
  keepalive?: boolean | undefined;
}

/** Who a call is made as. */
export interface Credentials {
  /** bearer resolves to what is sent as `Authorization: Bearer`. */
  bearer(signal: AbortSignal): Promise<string | undefined>;
  /** refused is told that the server did not take a bearer, and resolves to whether there is another one to try. */
  refused(bearer: string | undefined, error: HoldfastError, signal: AbortSignal): Promise<boolean>;
}

export interface Transport {
  url: string;
  fetch: typeof globalThis.fetch;
  headers: { [name: string]: string };
  /** In milliseconds, as CallOptions has it. */
  timeout: number;
  /** How long one try may take before the request is sent again, in milliseconds. */
  attemptTimeout: number;
  credentials: Credentials;
  /** reached is told of each answer of the server, and of each try that had none. */
  reached(yes: boolean): void;
  /** As the client's option. */
  read?: ((message: string, answer: unknown) => unknown) | undefined;
}

/** A call as the table of services has it. */
interface Method {
  /** As in errors: conversation.append. */
  call: string;
  path: string;
  request: string;
  response: string;
  mark: string;
}

/** rpc makes the functions of all services, whose calls have the options given here where they have none of their own. */
export function rpc(transport: Transport, given: CallOptions = {}): Rpc {
  const how = (o: CallOptions = {}): CallOptions => ({
    signal: o.signal ?? given.signal,
    timeout: o.timeout ?? given.timeout,
    headers: { ...given.headers, ...o.headers },
    keepalive: o.keepalive ?? given.keepalive,
  });
  const out: { [service: string]: unknown } = {};
  for (const [service, [path, calls]] of Object.entries(services)) {
    const functions: { [call: string]: unknown } = {};
    const area = path.split(".")[1];
    for (const text of calls.split(" ")) {
      const [, name = "", mark = ""] = /^(\w+)(\W?)$/.exec(text) ?? [];
      const short = name[0]?.toLowerCase() + name.slice(1);
      const method = {
        call: `${service}.${short}`,
        path: `/${path}/${name}`,
        request: `${area}.${name}Request`,
        response: `${area}.${name}Response`,
        mark,
      };
      functions[short] =
        mark === "*"
          ? (request: object, options?: CallOptions) => stream(transport, method, request, how(options))
          : (request?: object, options?: CallOptions) => unary(transport, method, request ?? {}, how(options));
    }
    out[service] = functions;
  }
  return out as unknown as Rpc;
}

/**
 * unary makes a call until its outcome is known. The same bytes are sent each time, with the same request id, so that a change happens
 * once however often it is sent. What the server says of an error decides whether and when it is sent again.
 */
async function unary(t: Transport, m: Method, request: object, options: CallOptions): Promise<unknown> {
  const body = encode(m.request, request as { [name: string]: unknown });
  if (m.mark === "!") body["requestId"] ||= id();
  if (m.mark === "+" && !body["peek"]) body["grantId"] ||= id();
  const requestId = m.mark === "!" ? String(body["requestId"]) : undefined;
  const sent = JSON.stringify(body);
  const end = now() + (options.timeout ?? t.timeout);
  let last: HoldfastError | undefined;
  const late = () =>
    // An error that came before the time was over tells more than the time does.
    last ??
    new HoldfastError(
      "the timeout is over; the change may have happened",
      m.call,
      { reason: "DEADLINE_EXCEEDED", retry: "same" },
      { requestId },
    );
  return await within(options.timeout ?? t.timeout, options.signal, late, async (signal) => {
    const tried: { [what: string]: number } = {};
    for (let failures = 0; ; failures++) {
      let bearer: string | undefined;
      let error: HoldfastError;
      try {
        bearer = await t.credentials.bearer(signal);
        return await send(t, m, sent, bearer, requestId, end, signal, options);
      } catch (e) {
        signal.throwIfAborted();
        if (!is(e)) throw e;
        error = e;
      }
      tried[error.reason] = (tried[error.reason] ?? 0) + 1;
      let wait = backoff(failures);
      if (error.retry === "reauth" || error.reason === "CREDENTIAL_INVALID") {
        // A second time is for another tab that refreshes in between.
        if ((tried[error.reason] ?? 0) > 2 || !(await t.credentials.refused(bearer, error, signal))) throw error;
        wait = 0;
      } else if (error.retry === "after") wait = error.retryAfter === undefined ? wait : error.retryAfter + wait / 10;
      else if (error.retry === "same" && m.mark !== "") {
        if (error.reason === "INTERNAL" && (tried[error.reason] ?? 0) > 1) throw error;
        wait = Math.max(wait, error.retryAfter ?? 0);
      } else throw error;
      if (wait >= end - now()) throw error;
      last = error;
      await sleep(wait, signal);
    }
  });
}

/** send makes one try. */
async function send(
  t: Transport,
  m: Method,
  body: string,
  bearer: string | undefined,
  requestId: string | undefined,
  end: number,
  signal: AbortSignal,
  { headers, keepalive }: CallOptions,
): Promise<unknown> {
  const ms = t.attemptTimeout;
  let response: Response;
  let answer: { [name: string]: unknown };
  try {
    [response, answer] = await within(
      ms,
      signal,
      () => new Error(`none within ${ms} ms`),
      async (s) => {
        const more = { ...headers, "Connect-Timeout-Ms": String(Math.max(1, Math.ceil(Math.min(ms, end - now())))) };
        const r = await post(t, m, body, bearer, "application/json", s, more, keepalive);
        if (!isJson(r)) throw await foreign(r, m, requestId);
        return [r, JSON.parse(await r.text()) as { [name: string]: unknown }] as const;
      },
    );
  } catch (cause) {
    signal.throwIfAborted();
    t.reached(false);
    throw unreachable(cause, m, requestId);
  }
  t.reached(true);
  if (response.ok) return decoded(t, m, answer, requestId);
  throw problem(m, answer, requestId) ?? (await foreign(response, m, requestId));
}

function post(
  t: Transport,
  m: Method,
  body: BodyInit,
  bearer: string | undefined,
  type: string,
  signal: AbortSignal,
  more: { [name: string]: string } = {},
  keepalive = false,
): Promise<Response> {
  const headers: { [name: string]: string } = { ...t.headers, ...more, "Content-Type": type, "Connect-Protocol-Version": "1" };
  if (bearer !== undefined) headers["Authorization"] = `Bearer ${bearer}`;
  // "manual", because Workers know no "error". `fetch` is called as a function: browsers refuse it as another object's method.
  const { fetch } = t;
  return fetch(t.url + m.path, { method: "POST", headers, body, signal, redirect: "manual", ...(keepalive && { keepalive }) });
}

const isJson = (r: Response): boolean => /^application\/json\b/.test(r.headers.get("Content-Type") ?? "");

function decoded(t: Transport, m: Method, answer: { [name: string]: unknown }, requestId?: string): unknown {
  let reason: Reason = "NUMBER_INEXACT";
  try {
    const value = decode(m.response, answer);
    reason = "ANSWER_UNREADABLE";
    return t.read ? t.read(m.response, value) : value;
  } catch (cause) {
    throw new HoldfastError((cause as Error).message, m.call, { reason, retry: "never" }, { requestId, cause });
  }
}

/** problem reads an error of Holdfast's. */
function problem(m: Method, error: { [name: string]: unknown }, requestId?: string): HoldfastError | undefined {
  const details = error["details"] as { type?: string; debug?: { [name: string]: unknown } }[] | undefined;
  const found = details?.find((d) => d.type === "holdfast.error.v1.Problem")?.debug;
  if (!found) return undefined;
  return new HoldfastError(String(error["message"]), m.call, decode("error.Problem", found) as Problem, { requestId });
}

/**
 * foreign is the error of an answer that is not Holdfast's. What a proxy says while the server is away passes. So does a success without
 * JSON, unless it is a page: browsers take a head that was cut for one that ended.
 */
async function foreign(r: Response, m: Method, requestId?: string): Promise<HoldfastError> {
  if (!r.bodyUsed) await r.body?.cancel();
  const passes =
    r.status >= 500 || r.status === 408 || r.status === 429 || (r.ok && !/html/.test(r.headers.get("Content-Type") ?? ""));
  return new HoldfastError(
    `HTTP ${r.status} that is not an answer of Holdfast's`,
    m.call,
    passes ? { reason: "UNREACHABLE", retry: "same" } : { reason: "ANSWER_UNREADABLE", retry: "never" },
    {
      requestId,
      retryAfter: milliseconds(r.headers.get("Retry-After") ?? undefined),
    },
  );
}

function unreachable(cause: unknown, m: Method, requestId?: string): HoldfastError {
  if (is(cause)) return cause;
  const why = cause instanceof Error ? cause.message : String(cause);
  return new HoldfastError(`no answer: ${why}`, m.call, { reason: "UNREACHABLE", retry: "same" }, { requestId, cause });
}

/** stream makes a call whose answers come one by one, once: who watches decides how to go on. */
async function* stream(t: Transport, m: Method, request: object, options: CallOptions): AsyncGenerator<unknown, void, undefined> {
  const controller = new AbortController();
  const abort = () => controller.abort(options.signal?.reason);
  if (options.signal?.aborted) abort();
  options.signal?.addEventListener("abort", abort);
  const { signal } = controller;
  try {
    const body = JSON.stringify(encode(m.request, request as { [name: string]: unknown }));
    for (let tries = 0; ; tries++) {
      const bearer = await race(t.credentials.bearer(signal), signal);
      try {
        for await (const [last, text] of open(t, m, body, bearer, signal, options.headers)) {
          const answer = JSON.parse(text) as { [name: string]: unknown };
          if (!last) yield decoded(t, m, answer);
          else if (!answer["error"]) return;
          else {
            const error = answer["error"] as { [name: string]: unknown };
            throw (
              problem(m, error) ?? new HoldfastError(String(error["message"]), m.call, { reason: "UNREACHABLE", retry: "same" })
            );
          }
        }
      } catch (e) {
        signal.throwIfAborted();
        const error = unreachable(e, m);
        if (error.retry !== "reauth" || tries > 1 || !(await t.credentials.refused(bearer, error, signal))) throw error;
        continue;
      }
      throw unreachable(new Error("the stream was cut"), m);
    }
  } finally {
    options.signal?.removeEventListener("abort", abort);
    controller.abort();
  }
}

async function* open(
  t: Transport,
  m: Method,
  body: string,
  bearer: string | undefined,
  signal: AbortSignal,
  headers: CallOptions["headers"],
): AsyncGenerator<[last: boolean, text: string]> {
  const text = new TextEncoder().encode(body);
  const framed = new Uint8Array(5 + text.length);
  new DataView(framed.buffer).setUint32(1, text.length);
  framed.set(text, 5);
  const response = await post(t, m, framed, bearer, "application/connect+json", signal, headers);
  if (!response.ok || !response.body || !/^application\/connect\+json\b/.test(response.headers.get("Content-Type") ?? "")) {
    if (isJson(response))
      throw problem(m, (await response.json()) as { [name: string]: unknown }) ?? (await foreign(response, m));
    throw await foreign(response, m);
  }
  t.reached(true);
  yield* frames(response.body);
}
