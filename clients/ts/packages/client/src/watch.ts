import { HoldfastError, is } from "./error.ts";
import type { Message, Record } from "./gen/conversation.ts";
import type { Rpc } from "./gen/rpc.ts";
import type { ItemInput, Signal, Thing, WatchResponse } from "./gen/watch.ts";
import { backoff } from "./time.ts";

/** What is watched, as it is now. Each change makes a new one. */
export interface View {
  /** Its parts by their keys, such as `messages/4`. */
  readonly things: ReadonlyMap<string, Thing>;
  /** It is not there: not yet, not any more, or not for this user. It stays watched. */
  readonly absent: boolean;
  /** The object's version; 0 of a list. */
  readonly version: number;
  /** What is said right now, and not stored yet. */
  readonly signal?: Signal | undefined;
}

/** A conversation as it is watched. */
export interface ConversationView extends Pick<View, "absent" | "version" | "signal"> {
  readonly conversation?: Thing["conversation"];
  readonly messages: readonly Message[];
  readonly records: readonly Record[];
}

/**
 * Watch follows something from the first subscriber or loop on until the last has gone. Reconnecting is its own matter: it ends only with an
 * error that no repetition helps against, such as SESSION_REVOKED.
 */
export interface Watch<T> extends AsyncIterable<T> {
  /** The newest view; undefined before the first. It is the same value until something changes, as useSyncExternalStore wants it. */
  get(): T | undefined;
  /** Why it ended. */
  error(): HoldfastError | undefined;
  /** Calls back after each change, and at the end. */
  subscribe(changed: () => void): () => void;
}

/** How many items one stream takes. */
const most = 32;

/** Patience is how long a stream waits before it takes its connection for dead. */
export interface Patience {
  /** How long a stream may be silent, in milliseconds. */
  silence: number;
  /** How long it may take to begin. */
  begin: number;
}

class Item {
  readonly listeners = new Set<() => void>();
  view: View | undefined;
  error: HoldfastError | undefined;
  cursor = "";
  #pending: Map<string, Thing> | undefined;
  readonly spec: ItemInput;
  constructor(spec: ItemInput) {
    this.spec = spec;
  }

  /** take merges a message. A view is shown when it is whole. */
  take({ cursor, changed, signal, ended }: WatchResponse): void {
    if (cursor) this.cursor = cursor;
    if (changed) {
      if (changed.reset || !this.#pending) this.#pending = new Map(changed.reset ? [] : this.view?.things);
      for (const thing of changed.put) this.#pending.set(thing.key, thing);
      for (const key of changed.removed) this.#pending.delete(key);
      if (changed.more) return;
      this.view = { things: changed.absent ? new Map() : this.#pending, absent: changed.absent, version: changed.version };
      this.#pending = undefined;
    } else if (signal && this.view) this.view = { ...this.view, signal };
    else if (ended)
      this.error = new HoldfastError("the watch ended", "watch.watch", ended.problem ?? { reason: "NOT_FOUND", retry: "never" });
    else return;
    this.tell();
  }

  tell(): void {
    for (const changed of [...this.listeners]) changed();
  }
}

/** Line is one stream, of up to 32 items. */
class Line {
  readonly items = new Set<Item>();
  #running = false;
  #open: { items: Item[]; abort: () => void } | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #wake: (() => void) | undefined;
  readonly #rpc: Rpc;
  readonly #patience: Patience;

  constructor(rpc: Rpc, patience: Patience) {
    this.#rpc = rpc;
    this.#patience = patience;
  }

  /** changed opens the stream for other items, a little later, so that what a page adds and drops at once is one stream. */
  changed(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      for (const item of this.items) if (item.listeners.size === 0) this.items.delete(item);
      const open = this.#open?.items;
      if (open && open.length === this.items.size && open.every((i) => this.items.has(i))) return;
      this.restart();
      if (!this.#running && this.items.size > 0) void this.#run();
    }, 5);
  }

  /** restart connects again at once, from the cursors. */
  restart(): void {
    this.#open?.abort();
    this.#wake?.();
  }

  async #run(): Promise<void> {
    this.#running = true;
    let failures = 0;
    while (this.items.size > 0) {
      const items = [...this.items];
      const controller = new AbortController();
      const abort = () => controller.abort(new Error("connect again"));
      let watchdog = setTimeout(abort, this.#patience.begin);
      let restarted = false;
      this.#open = {
        items,
        abort() {
          restarted = true;
          abort();
        },
      };
      try {
        const request = { items: items.map((item, i) => ({ ...item.spec, itemId: String(i), cursor: item.cursor })) };
        for await (const message of this.#rpc.watch.watch(request, { signal: controller.signal })) {
          clearTimeout(watchdog);
          watchdog = setTimeout(abort, this.#patience.silence);
          failures = 0;
          const item = items[Number(message.itemId || -1)];
          item?.take(message);
          if (item?.error) this.items.delete(item);
        }
      } catch (e) {
        // What no repetition helps against ends all items; their next subscriber tries again.
        if (is(e) && (e.retry === "never" || e.retry === "reauth" || e.retry === "reread"))
          for (const item of items) {
            item.error = e;
            this.items.delete(item);
            item.tell();
          }
        else if (is(e) && e.retryAfter) failures = Math.max(failures, Math.log2(e.retryAfter / 100));
      }
      clearTimeout(watchdog);
      this.#open = undefined;
      if (!restarted && this.items.size > 0) await this.#pause(backoff(failures++));
    }
    this.#running = false;
  }

  /** pause waits, or until something says that the network may be there again. */
  #pause(ms: number): Promise<void> {
    return new Promise((done) => {
      const timer = setTimeout(done, ms);
      this.#wake = () => {
        clearTimeout(timer);
        done();
      };
    });
  }
}

/** Watcher has all watches of a client. */
export class Watcher {
  #lines: Line[] = [];
  readonly #items = new Map<string, { item: Item; line: Line }>();
  #ticks: ReturnType<typeof setInterval> | undefined;
  readonly #rpc: Rpc;
  readonly #patience: Patience;

  constructor(rpc: Rpc, patience: Patience) {
    this.#rpc = rpc;
    this.#patience = patience;
  }

  /** watch follows an item. The same item is watched once, however many ask for it. */
  watch<T>(spec: ItemInput, show: (view: View) => T): Watch<T> {
    const key = JSON.stringify(spec);
    let of: View | undefined;
    let shown: T | undefined;
    const current = () => this.#items.get(key)?.item;
    const get = () => {
      const view = current()?.view;
      if (view !== of) [of, shown] = [view, view && show(view)];
      return shown;
    };
    const subscribe = (changed: () => void) => {
      const listener = () => changed(); // of its own, so that one function may subscribe twice
      let found = this.#items.get(key);
      if (!found || found.item.error) {
        found = { item: new Item(spec), line: this.#line() };
        this.#items.set(key, found);
      }
      const { item, line } = found;
      line.items.add(item);
      item.listeners.add(listener);
      line.changed();
      this.#listen();
      return () => {
        item.listeners.delete(listener);
        if (item.listeners.size > 0) return;
        line.changed();
        // React takes a subscription off and puts it on again: the view stays for so long.
        setTimeout(() => {
          if (item.listeners.size > 0 || current() !== item) return;
          this.#items.delete(key);
          this.#listen();
        }, 10);
      };
    };
    return {
      get,
      error: () => current()?.error,
      subscribe,
      async *[Symbol.asyncIterator]() {
        let changed: () => void = () => {};
        let next = new Promise<void>((done) => {
          changed = done;
        });
        const stop = subscribe(() => changed());
        const mine = current();
        try {
          let last: T | undefined;
          for (;;) {
            const now = get();
            if (now !== last && now !== undefined) {
              last = now;
              yield now;
            }
            if (mine?.error) throw mine.error;
            if (get() !== last) continue;
            await next;
            next = new Promise<void>((done) => {
              changed = done;
            });
          }
        } finally {
          stop();
        }
      },
    };
  }

  /** line is one with room. */
  #line(): Line {
    const free = this.#lines.find((l) => l.items.size < most) ?? new Line(this.#rpc, this.#patience);
    if (!this.#lines.includes(free)) this.#lines.push(free);
    return free;
  }

  readonly #restart = () => {
    for (const line of this.#lines) line.restart();
  };
  readonly #seen = () => {
    if (document.visibilityState === "visible") this.#restart();
  };

  /** listen has what wakes streams up while there are any: the network is back, the page is shown, the machine slept. */
  #listen(): void {
    const wanted = this.#items.size > 0;
    if (wanted === (this.#ticks !== undefined)) return;
    const set = wanted ? "addEventListener" : "removeEventListener";
    globalThis[set]?.("online", this.#restart);
    if (typeof document === "object") document[set]("visibilitychange", this.#seen);
    clearInterval(this.#ticks);
    let last = Date.now();
    this.#ticks = wanted
      ? setInterval(() => {
          const slept = Date.now() - last > 5000;
          last = Date.now();
          if (slept) this.#restart();
        }, 500)
      : undefined;
  }
}

/** One object as it is watched. */
export interface Watched<T> extends Pick<View, "absent" | "version"> {
  /** Undefined while it is absent. */
  readonly value: T | undefined;
}

/** watched shows one thing of a view. */
export function watched<K extends keyof Thing>(key: K): (view: View) => Watched<NonNullable<Thing[K]>> {
  return ({ things, absent, version }) => ({ value: things.get(key)?.[key] ?? undefined, absent, version });
}

/** conversationView puts a conversation's parts together. */
export function conversationView({ things, absent, version, signal }: View): ConversationView {
  const all = [...things.values()];
  return {
    conversation: things.get("conversation")?.conversation,
    messages: all.flatMap((t) => t.message ?? []).sort((a, b) => a.seq - b.seq),
    records: all.flatMap((t) => t.record ?? []),
    absent,
    version,
    signal,
  };
}
