// The client's calls as effects, and its watches and lists as streams.
import { type Holdfast as Client, type HoldfastError as ClientError, is, type Watch } from "@holdfast/client";
import { Cause, Effect, Queue, Stream } from "effect";
import { HoldfastError } from "./error.ts";

/** The same functions, of effects instead of promises, and of streams instead of watches and lists. */
export type Effected<T> = T extends (...args: infer A) => infer R
  ? (...args: A) => Returned<R>
  : T extends object
    ? { readonly [K in keyof T]: Effected<T[K]> }
    : T;

type Returned<R> =
  R extends Promise<infer V>
    ? Effect.Effect<V, HoldfastError>
    : R extends AsyncIterable<infer V>
      ? Stream.Stream<V, HoldfastError>
      : Effected<R>;

/** The names of functions that return no promise. That the table below is complete, its type proves. */
type Unpromised<T> = {
  [K in keyof T & string]: T[K] extends (...args: never[]) => infer R
    ? R extends Promise<unknown>
      ? never
      : R extends AsyncIterable<unknown>
        ? { readonly [N in K]: "stream" }
        : { readonly [N in K]: "handle" } | Unpromised<R>
    : T[K] extends object
      ? Unpromised<T[K]>
      : never;
}[keyof T & string];

type All<U> = (U extends unknown ? (u: U) => void : never) extends (all: infer I) => void ? { [K in keyof I]: I[K] } : never;

/** What of the client is made into effects. */
export type Called = Omit<Client, "as" | "with" | "is" | "status" | typeof Symbol.asyncDispose>;

const kinds: All<Unpromised<Called>> = {
  acquireAndWait: "stream",
  api: "handle",
  apis: "stream",
  assistant: "stream",
  calls: "stream",
  conversation: "handle",
  conversations: "stream",
  entries: "stream",
  events: "stream",
  frames: "stream",
  inspect: "handle",
  issues: "stream",
  messages: "stream",
  project: "handle",
  projects: "stream",
  records: "stream",
  session: "handle",
  sessions: "stream",
  state: "handle",
  task: "handle",
  tasks: "stream",
  timers: "stream",
  transitions: "stream",
  watch: "stream",
};

type Functions = { readonly [name: string]: unknown };

/** effected wraps what `at` finds in a client, of which `sample` has the names. */
export function effected<T extends object>(client: Client, sample: T, at: (client: Client) => T, path: string): Effected<T> {
  const out: { [name: string]: unknown } = {};
  for (const [name, value] of Object.entries(sample)) {
    const where = `${path}.${name}`;
    const within = (c: Client) => (at(c) as Functions)[name];
    if (typeof value === "object" && value !== null) out[name] = effected(client, value, within as (c: Client) => object, where);
    else if (typeof value !== "function") out[name] = value;
    else {
      const kind = (kinds as { readonly [name: string]: "stream" | "handle" | undefined })[name];
      out[name] = (...args: unknown[]) => {
        const run = (c: Client) => (within(c) as (...args: unknown[]) => never)(...args);
        if (kind === "handle") return effected(client, run(client) as object, run, where);
        return kind === "stream" ? stream(client, run) : call(client, where, run);
      };
    }
  }
  return out as Effected<T>;
}

/** call makes a call in a span, which the server's spans continue. An interruption ends the call. */
export function call<A>(client: Client, name: string, run: (client: Client) => Promise<A>): Effect.Effect<A, HoldfastError> {
  return Effect.currentSpan.pipe(
    Effect.orDie,
    Effect.flatMap((span) =>
      Effect.tryPromise({
        try: (signal) =>
          run(client.with({ signal, headers: { traceparent: `00-${span.traceId}-${span.spanId}-0${span.sampled ? 1 : 0}` } })),
        catch: (error) => error,
      }),
    ),
    Effect.catch(failed),
    Effect.withSpan(name, { kind: "client" }),
  );
}

/** failed is what a call fails with; what is no error of Holdfast's is a defect, as of a function that `update` was given. */
const failed = (error: unknown): Effect.Effect<never, HoldfastError> =>
  is(error) ? Effect.fail(new HoldfastError(error)) : Effect.die(error);

function stream<A>(client: Client, run: (client: Client) => AsyncIterable<A>): Stream.Stream<A, HoldfastError> {
  return Stream.suspend(() => {
    const controller = new AbortController();
    const items = run(client.with({ signal: controller.signal }));
    if ("subscribe" in items) return changes(items as unknown as Watch<A>);
    return Stream.fromAsyncIterable(abortable(items, controller), (error) => error).pipe(
      Stream.catch((error) => Stream.fromEffect(failed(error))),
    );
  });
}

/** abortable ends the call that is waited for when the loop is left: a generator alone would wait for it first. */
function abortable<A>(items: AsyncIterable<A>, controller: AbortController): AsyncIterable<A> {
  return {
    [Symbol.asyncIterator]() {
      const iterator = items[Symbol.asyncIterator]();
      return {
        next: () => iterator.next(),
        async return() {
          controller.abort();
          await iterator.return?.().catch(() => {});
          return { done: true, value: undefined };
        },
      };
    },
  };
}

/** changes has the newest value: who is slow misses those between. */
export function changes<A>(
  of: Pick<Watch<A>, "get" | "subscribe"> & { error?(): ClientError | undefined },
): Stream.Stream<A, HoldfastError> {
  return Stream.callback<A, HoldfastError>(
    (queue) =>
      Effect.acquireRelease(
        Effect.sync(() => {
          let last: A | undefined;
          const tell = () => {
            const [now, error] = [of.get(), of.error?.()];
            if (now !== undefined && now !== last) Queue.offerUnsafe(queue, now);
            last = now;
            if (error) Queue.failCauseUnsafe(queue, Cause.fail(new HoldfastError(error)));
          };
          const stop = of.subscribe(tell);
          tell();
          return stop;
        }),
        (stop) => Effect.sync(stop),
      ),
    { bufferSize: 1, strategy: "sliding" },
  );
}
