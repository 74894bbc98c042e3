import type { Holdfast } from "./client.ts";
import { type HoldfastError, is, type Reason } from "./error.ts";
import type { Rpc } from "./gen/rpc.ts";
import { share } from "./share.ts";
import { backoff, id } from "./time.ts";

type RequestOf<F> = F extends (request: infer R, options?: never) => Promise<unknown> ? R : never;

/** The calls that an outbox takes: changes that a request id makes safe to send again, such as `conversation.append`. */
export type OutboxCall = {
  [S in keyof Rpc & string]: {
    [M in keyof Rpc[S] & string]: "requestId" extends keyof RequestOf<Rpc[S][M]> ? `${S}.${M}` : never;
  }[keyof Rpc[S] & string];
}[keyof Rpc & string];

/** What a call is asked. */
export type OutboxRequest<C extends OutboxCall> = C extends `${infer S extends keyof Rpc & string}.${infer M}`
  ? M extends keyof Rpc[S]
    ? Omit<RequestOf<Rpc[S][M]>, "requestId">
    : never
  : never;

/** A change that is not known to have happened. */
export interface Unsent {
  /** Its place: changes are sent in the order of their ids. */
  readonly id: number;
  readonly call: OutboxCall;
  readonly request: { readonly [field: string]: unknown };
  readonly requestId: string;
  /** When it was added, in milliseconds since 1970. */
  readonly time: number;
  /**
   * waiting: it is sent as soon as that is possible. failed: the server refused it, and `error` says why. old: it waited so long that
   * its request id may be forgotten, so it might happen twice. What failed or is old is sent only by `retry`.
   */
  readonly state: "waiting" | "failed" | "old";
  readonly error?: { readonly reason: Reason; readonly message: string } | undefined;
}

export interface OutboxOptions {
  /** Whose changes they are. Each user has an outbox: who signs in next does not send what another has left. */
  user: string;
  /** After how many milliseconds a change is too old to be sent; 23 hours. A server knows a request id for 24 hours at least. */
  maxAge?: number | undefined;
}

/** Changes that survive a reload, made online or not: they are sent in order, each once, by one tab at a time. */
export interface Outbox extends AsyncDisposable {
  /** Keeps a change, and resolves when it is on disk. It is sent from then on. */
  add<C extends OutboxCall>(call: C, request: OutboxRequest<C>): Promise<Unsent>;
  /** What is unsent, in order; undefined until it has been read. It is the same value until something changes. */
  get(): readonly Unsent[] | undefined;
  subscribe(changed: () => void): () => void;
  /** Sends a change that failed or is old, after those that wait. */
  retry(id: number): Promise<void>;
  /** Forgets a change. If it is being sent it may happen all the same. */
  discard(id: number): Promise<void>;
}

/** How long a tab has the right to send, in milliseconds: longer than a call takes. */
const lease = 40_000;
const timeout = 30_000;

/** outbox opens a user's outbox. It needs IndexedDB. */
export function outbox(hf: Holdfast, { user, maxAge = 23 * 3_600_000 }: OutboxOptions): Outbox {
  const tab = id();
  const name = `holdfast-outbox:${user}`;
  const channel = new BroadcastChannel(name);
  const listeners = new Set<() => void>();
  let unsent: readonly Unsent[] | undefined;
  let closed = false;
  let wake = () => {};
  const db = open(name);
  db.catch(() => {}); // each call below rejects with it

  /** within runs work in a transaction, and resolves when that is on disk. */
  const within = async <T>(work: (changes: IDBObjectStore, leases: IDBObjectStore) => Promise<T>): Promise<T> => {
    const tx = (await db).transaction(["changes", "leases"], "readwrite", { durability: "strict" });
    const done = new Promise<void>((resolve, reject) => {
      tx.oncomplete = () => resolve();
      tx.onabort = () => reject(tx.error ?? new Error("the transaction was aborted"));
    });
    const [result] = await Promise.all([work(tx.objectStore("changes"), tx.objectStore("leases")), done]);
    return result;
  };
  const refresh = async () => {
    const now = share(unsent, (await within((changes) => promise(changes.getAll()))) as readonly Unsent[]);
    if (now === unsent || closed) return;
    unsent = now;
    for (const changed of [...listeners]) changed();
  };
  /** change runs work, and shows what came of it in all tabs. */
  const change = async <T>(work: (changes: IDBObjectStore) => Promise<T>): Promise<T> => {
    const result = await within(work);
    if (!closed) channel.postMessage(0);
    await refresh();
    wake();
    return result;
  };

  /** next takes or keeps the lease, and resolves to the first change that is to be sent, or to null where another tab sends. */
  const next = async (): Promise<Unsent | null | undefined> => {
    // A tab that is gone, even by a crash, no longer has its lock; one that is frozen loses the lease when its time is over.
    const there = (await globalThis.navigator.locks?.query())?.held?.map((l) => l.name);
    return await within(async (changes, leases) => {
      const now = Date.now();
      const had = (await promise(leases.get("send"))) as { tab: string; until: number } | undefined;
      // A lease that is longer than any is from before someone set the clock.
      const good = had && had.tab !== tab && had.until > now && had.until <= now + lease;
      if (good && there?.includes(`${name}:${had.tab}`) !== false) return null;
      for (const found of (await promise(changes.getAll())) as Unsent[]) {
        if (found.state !== "waiting") continue;
        if (now - found.time <= maxAge) {
          leases.put({ tab, until: now + lease }, "send");
          return found;
        }
        changes.put({ ...found, state: "old" } satisfies Unsent);
      }
      leases.delete("send");
      return undefined;
    });
  };

  const send = async ({ call, request, requestId }: Unsent) => {
    const [service = "", method = ""] = call.split(".");
    const calls = hf.rpc as unknown as { [s: string]: { [m: string]: (r: object, o: object) => Promise<unknown> } };
    await calls[service]?.[method]?.({ ...request, requestId }, { timeout });
  };

  const run = async () => {
    for (let failures = 0; !closed; ) {
      const woken = new Promise<void>((done) => {
        wake = done;
      });
      let wait = lease;
      try {
        const found = await next();
        await refresh();
        if (found === null) wait = 3000;
        else if (found) {
          const e = await send(found).then(
            () => undefined,
            (e: unknown) => e,
          );
          if (e === undefined || (is(e) && refused(e))) {
            failures = 0;
            await change(async (changes) => {
              // It may have been discarded meanwhile.
              if (!(await promise(changes.get(found.id)))) return;
              if (e === undefined) changes.delete(found.id);
              else changes.put({ ...found, state: "failed", error: { reason: e.reason, message: e.message } } satisfies Unsent);
            });
            continue;
          }
          wait = backoff(failures++) * 2;
        }
      } catch {
        // The disk is full, or the database was deleted: perhaps not for ever.
      }
      const timer = setTimeout(wake, wait);
      await woken;
      clearTimeout(timer);
    }
  };

  channel.onmessage = () => {
    void refresh().catch(() => {});
    wake();
  };
  const online = () => wake();
  addEventListener("online", online);
  const stop = hf.status.subscribe(() => wake());
  // Held as long as the tab is there.
  const held = new AbortController();
  void globalThis.navigator.locks
    ?.request(`${name}:${tab}`, () => new Promise((done) => held.signal.addEventListener("abort", done)))
    .catch(() => {});
  void run();

  return {
    add: async (call, request) => {
      const made = { call, request: { ...request }, requestId: id(), time: Date.now(), state: "waiting" as const };
      return await change(async (changes) => ({ ...made, id: Number(await promise(changes.add(made))) }));
    },
    get: () => unsent,
    subscribe(changed) {
      const listener = () => changed();
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    retry: (which) =>
      change(async (changes) => {
        const found = (await promise(changes.get(which))) as Unsent | undefined;
        if (!found || found.state === "waiting") return;
        const { id: _, error: __, ...again } = found;
        changes.delete(which);
        changes.add({ ...again, time: Date.now(), state: "waiting" });
      }),
    discard: (which) => change(async (changes) => void changes.delete(which)),
    async [Symbol.asyncDispose]() {
      closed = true;
      held.abort();
      wake();
      stop();
      removeEventListener("online", online);
      channel.close();
      (await db).close();
    },
  };
}

/** refused reports whether the server has looked at a change and will not make it. What a sign-in or another network may help against is not. */
function refused(e: HoldfastError): boolean {
  return (
    (e.retry === "never" || e.retry === "reread") &&
    !/^(CREDENTIAL_|SIGNED_OUT|SIGN_IN_FAILED|ANSWER_UNREADABLE|ROLE_|USER_REQUIRED)/.test(e.reason)
  );
}

function open(name: string): Promise<IDBDatabase> {
  const request = indexedDB.open(name, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("changes", { keyPath: "id", autoIncrement: true });
    request.result.createObjectStore("leases");
  };
  return promise(request);
}

function promise<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
