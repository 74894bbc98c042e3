import { HoldfastError, is } from "./error.ts";
import type { Conversation, Message, Record, ToolCall, VoiceStatus } from "./gen/conversation.ts";
import type { Problem } from "./gen/error.ts";
import type { Rpc } from "./gen/rpc.ts";
import type { ItemInput, Signal, Thing, WatchResponse } from "./gen/watch.ts";
import { share } from "./share.ts";
import { type Tabs, tabs, type Wanted } from "./tabs.ts";
import { backoff, now } from "./time.ts";

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

/** Where a voice turn stands. */
export interface Voice {
  readonly status: Exclude<VoiceStatus, "unspecified">;
  /** The newest words of the user. */
  readonly lastTranscription: string;
  /** The words are being said right now, and not stored yet. */
  readonly interim: boolean;
}

/** A conversation as it is watched: what is stored and what is said right now, put together. */
export interface ConversationView extends Pick<View, "absent" | "version" | "signal"> {
  /** Undefined while it is absent. */
  readonly conversation: Conversation | undefined;
  /** By their `seq`. */
  readonly messages: readonly Message[];
  readonly voice: Voice;
  /** Those that waited for something when the watch began, and those that came or changed since. */
  readonly toolCalls: readonly ToolCall[];
  /** Intents, steps of flows, summaries, fragments and tool calls that came since the watch began. */
  readonly records: readonly Record[];
}

/**
 * Watch follows something from the first subscriber or loop on until the last has gone. Reconnecting is its own matter: it ends only with an
 * error that no repetition helps against, such as SESSION_REVOKED, and when the client is closed.
 */
export interface Watch<T> extends AsyncIterable<T> {
  /**
   * The newest view; undefined before the first. It is the same value until something changes, as useSyncExternalStore wants it, and in
   * the next value everything that did not change is the same object.
   */
  get(): T | undefined;
  /** Why it ended. */
  error(): HoldfastError | undefined;
  /** Calls back after each change, and at the end. */
  subscribe(changed: () => void): () => void;
}

/** What a Watch is made of. */
interface Source<T> extends Pick<Watch<T>, "get" | "error" | "subscribe"> {
  closed?(): boolean;
}

/** watchOf adds the loop to a source. */
export function watchOf<T>({ get, error, subscribe, closed }: Source<T>): Watch<T> {
  return {
    get,
    error,
    subscribe,
    async *[Symbol.asyncIterator]() {
      let changed: () => void = () => {};
      let next = new Promise<void>((done) => {
        changed = done;
      });
      let ended: HoldfastError | undefined;
      const stop = subscribe(() => {
        ended ??= error(); // before another subscriber starts it again
        changed();
      });
      try {
        let last: T | undefined;
        for (;;) {
          const now = get();
          if (now !== last && now !== undefined) {
            last = now;
            yield now;
          }
          ended ??= error();
          if (ended) throw ended;
          if (closed?.()) return;
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

/** How many items one stream takes. */
const most = 32;

/** Patience is how long a stream waits before it takes its connection for dead. */
export interface Patience {
  /** How long a stream may be silent, in milliseconds. */
  silence: number;
  /** How long it may take to begin. */
  begin: number;
}

/** Item is one thing that is watched, for all that show it. */
class Item {
  readonly listeners = new Set<() => void>();
  /** Other tabs that follow it here. */
  readonly tabs = new Set<string>();
  /** What it looks like to each of the functions that show it. */
  readonly shown = new Map<unknown, { of: View; value?: unknown; error?: HoldfastError | undefined }>();
  view: View | undefined;
  error: HoldfastError | undefined;
  cursor = "";
  /** The cursor, and a + for each message since that had none: two tabs with the same mark have taken the same messages. */
  mark = "";
  line: Line | undefined;
  #pending: Map<string, Thing> | undefined;
  readonly key: string;
  constructor(key: string) {
    this.key = key;
  }

  get wanted(): boolean {
    return this.listeners.size + this.tabs.size > 0;
  }

  /** whole is a message with all that is known; undefined before the first view, and in the middle of a change. */
  get whole(): WatchResponse | undefined {
    if (!this.view || this.#pending) return undefined;
    const { things, absent, version } = this.view;
    return {
      itemId: "",
      cursor: this.cursor,
      changed: { reset: true, more: false, absent, version, put: [...things.values()], removed: [] },
    };
  }

  /** take merges a message. A view is shown when it is whole, and where it is another than before. */
  take({ cursor, changed, signal, ended }: WatchResponse): void {
    this.mark = cursor || !changed ? cursor || this.mark : `${this.mark}+`;
    this.cursor = cursor || this.cursor;
    const was = this.view;
    if (changed) {
      const { absent, version } = changed;
      if (changed.reset || !this.#pending) this.#pending = new Map(changed.reset ? [] : was?.things);
      for (const thing of changed.put) this.#pending.set(thing.key, share(was?.things.get(thing.key), thing));
      for (const key of changed.removed) this.#pending.delete(key);
      if (changed.more) return;
      const things = absent ? new Map() : this.#pending;
      this.#pending = undefined;
      // What comes again after a reset looks as before.
      if (was && !was.signal && was.absent === absent && was.version === version && alike(was.things, things)) return;
      this.view = { things, absent, version };
    } else if (signal && was) this.view = { ...was, signal };
    else if (ended) this.error = new HoldfastError("the watch ended", "watch.watch", ended.problem ?? over);
    else return;
    if (ended) this.line?.items.delete(this);
    this.tell();
  }

  end(error: HoldfastError): void {
    this.error = error;
    this.line?.items.delete(this);
    this.tell();
  }

  tell(): void {
    for (const changed of [...this.listeners]) changed();
  }
}

const over: Problem = { reason: "NOT_FOUND", retry: "never", traceId: "" };

/** Tell passes on what an item took, and where it was before. */
type Tell = (item: Item, after: string, message: WatchResponse) => void;

function alike(a: ReadonlyMap<string, Thing>, b: ReadonlyMap<string, Thing>): boolean {
  return a.size === b.size && [...b].every(([key, thing]) => a.get(key) === thing);
}

/** Line is one stream, of up to 32 items. */
class Line {
  readonly items = new Set<Item>();
  #running = false;
  #open: { items: Item[]; abort: () => void } | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #wake: (() => void) | undefined;
  /** When the open stream counts as dead, or the wait for the next is over. */
  #due = 0;
  readonly #rpc: Rpc;
  readonly #patience: Patience;
  readonly #tell: Tell;

  constructor(rpc: Rpc, patience: Patience, tell: Tell) {
    this.#rpc = rpc;
    this.#patience = patience;
    this.#tell = tell;
  }

  /** changed opens the stream for other items, a little later, so that what a page adds and drops at once is one stream. */
  changed(): void {
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      for (const item of this.items) if (!item.wanted) this.items.delete(item);
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

  /** check does what is due. It is called twice a second; a browser may call timers of its own less often. */
  check(): void {
    if (now() > this.#due) this.restart();
  }

  async #run(): Promise<void> {
    this.#running = true;
    let failures = 0;
    while (this.items.size > 0) {
      const items = [...this.items];
      const controller = new AbortController();
      let restarted = false;
      this.#due = now() + this.#patience.begin;
      this.#open = {
        items,
        abort() {
          restarted = true;
          controller.abort(new Error("connect again"));
        },
      };
      try {
        const request = {
          items: items.map((item, i) => ({ ...(JSON.parse(item.key) as ItemInput), itemId: String(i), cursor: item.cursor })),
        };
        for await (const message of this.#rpc.watch.watch(request, { signal: controller.signal })) {
          if (restarted) break;
          this.#due = now() + this.#patience.silence;
          failures = 0;
          const item = items[Number(message.itemId || -1)];
          if (!item) continue;
          const after = item.mark;
          item.take(message);
          this.#tell(item, after, message);
        }
      } catch (e) {
        // What no repetition helps against ends all items; their next subscriber tries again.
        if (is(e) && (e.retry === "never" || e.retry === "reauth" || e.retry === "reread"))
          for (const item of items) {
            item.end(e);
            this.#tell(item, "", { itemId: "", cursor: "", ended: { problem: { ...over, reason: e.reason, retry: e.retry } } });
          }
        else if (is(e) && e.retryAfter) failures = Math.max(failures, Math.log2(e.retryAfter / 100));
      }
      this.#open = undefined;
      if (!restarted && this.items.size > 0) await this.#pause(backoff(failures++));
    }
    this.#running = false;
  }

  /** pause waits, or until something says that the network may be there again. */
  #pause(ms: number): Promise<void> {
    this.#due = now() + ms;
    return new Promise((done) => {
      const timer = setTimeout(done, ms);
      this.#wake = () => {
        clearTimeout(timer);
        done();
      };
    });
  }
}

/** Watcher has all watches of a client: on streams of its own or, where tabs share, on those of the tab that leads. */
export class Watcher {
  #lines: Line[] = [];
  readonly #items = new Map<string, Item>();
  #ticks: ReturnType<typeof setInterval> | undefined;
  closed = false;
  #tabs: Tabs | undefined;
  #leads = true;
  readonly #rpc: Rpc;
  readonly #patience: Patience;
  readonly #name: string | undefined;

  /** name is what tabs that share have in common. */
  constructor(rpc: Rpc, patience: Patience, name?: string) {
    this.#rpc = rpc;
    this.#patience = patience;
    this.#name = name;
  }

  /** watch follows an item. The same item is watched once, however many ask for it, and shown once to all that ask by the same function. */
  watch<T>(spec: ItemInput, show: (view: View) => T): Watch<T> {
    const key = JSON.stringify(spec);
    const current = () => this.#items.get(key);
    const shown = () => {
      const item = current();
      if (!item?.view) return undefined;
      let last = item.shown.get(show);
      if (last?.of !== item.view) {
        const next: typeof last = { of: item.view, value: last?.value };
        try {
          next.value = share(last?.value, show(item.view));
        } catch (e) {
          if (!is(e)) throw e;
          next.error = e;
        }
        item.shown.set(show, next);
        last = next;
      }
      return last;
    };
    return watchOf<T>({
      get: () => shown()?.value as T | undefined,
      error: () => current()?.error ?? shown()?.error,
      closed: () => this.closed,
      subscribe: (changed) => {
        if (this.closed) return () => {};
        const listener = () => changed(); // of its own, so that one function may subscribe twice
        const mine = this.#item(key);
        mine.listeners.add(listener);
        this.#share();
        this.#join(mine);
        this.#listen();
        return () => {
          mine.listeners.delete(listener);
          if (mine.wanted) return;
          mine.line?.changed();
          // React takes a subscription off and puts it on again: the view stays for so long.
          setTimeout(() => this.#drop(mine), 10);
        };
      },
    });
  }

  /** restart connects again at once. */
  restart(): void {
    for (const line of this.#lines) line.restart();
    this.#tabs?.ask();
  }

  /** close ends all watches; their loops end. */
  close(): void {
    this.closed = true;
    this.#tabs?.close();
    this.#tabs = undefined;
    for (const item of this.#items.values()) {
      this.#leave(item);
      item.tell();
    }
    this.#items.clear();
    this.#listen();
  }

  /** item is the one of a key, or a new one where that has ended. */
  #item(key: string): Item {
    let item = this.#items.get(key);
    if (!item || item.error) {
      item = new Item(key);
      this.#items.set(key, item);
    }
    return item;
  }

  #drop(item: Item): void {
    if (item.wanted || this.#items.get(item.key) !== item) return;
    this.#items.delete(item.key);
    this.#leave(item);
    this.#tabs?.ask();
    this.#listen();
  }

  #leave(item: Item): void {
    item.line?.items.delete(item);
    item.line?.changed();
    item.line = undefined;
  }

  /** join puts an item on a stream with room, or asks the tab that leads. */
  #join(item: Item): void {
    if (this.closed) return;
    if (!this.#leads) {
      this.#tabs?.ask();
      return;
    }
    if (!item.line) {
      item.line = this.#lines.find((l) => l.items.size < most);
      if (!item.line) {
        item.line = new Line(this.#rpc, this.#patience, (i, after, message) => {
          if (i.tabs.size > 0) this.#tabs?.tell(i.key, after, message);
        });
        this.#lines.push(item.line);
      }
    }
    // A tab asks each second; that must not hurry a stream that waits for its next try.
    if (item.line.items.has(item)) return;
    item.line.items.add(item);
    item.line.changed();
  }

  /** share begins to share with other tabs. */
  #share(): void {
    if (this.#name === undefined || this.#tabs || this.closed) return;
    this.#tabs = tabs(this.#name, {
      lead: (yes) => {
        this.#leads = yes;
        for (const item of this.#items.values()) {
          item.tabs.clear();
          if (yes) this.#join(item);
          else this.#leave(item);
          this.#drop(item);
        }
      },
      wants: () =>
        [...this.#items.values()].flatMap((i): Wanted[] => (i.listeners.size > 0 && !i.error ? [[i.key, i.mark]] : [])),
      serve: (tab, want) => {
        const marks = new Map(want);
        for (const item of this.#items.values()) if (!marks.has(item.key) && item.tabs.delete(tab)) this.#drop(item);
        for (const [key, mark] of want) {
          const item = this.#item(key);
          item.tabs.add(tab);
          this.#join(item);
          if (item.mark !== mark && item.whole) this.#tabs?.tell(key, "", item.whole, tab);
        }
        for (const line of this.#lines) line.check();
        this.#listen();
      },
      take: (key, after, message) => {
        const item = this.#items.get(key);
        if (!item || item.error) return true;
        const fits = !message.changed || message.changed.reset || item.mark === after;
        if (fits) item.take(message);
        return fits;
      },
    });
    // Until the tabs have elected one.
    this.#leads = !this.#tabs;
  }

  readonly #restart = () => this.restart();
  readonly #seen = () => {
    if (document.visibilityState === "visible") this.restart();
  };

  /** listen has what wakes streams up while there are any: the network is back, the page is shown or thaws, the machine slept. */
  #listen(): void {
    const wanted = this.#items.size > 0;
    if (wanted === (this.#ticks !== undefined)) return;
    const set = wanted ? "addEventListener" : "removeEventListener";
    for (const event of ["online", "pageshow"]) globalThis[set]?.(event, this.#restart);
    if (typeof document === "object") {
      document[set]("visibilitychange", this.#seen);
      document[set]("resume", this.#restart);
    }
    clearInterval(this.#ticks);
    let last = Date.now();
    let beat = false;
    this.#ticks = wanted
      ? setInterval(() => {
          if (Date.now() - last > 5000) this.restart();
          last = Date.now();
          for (const line of this.#lines) line.check();
          beat = !beat;
          if (beat) this.#tabs?.beat();
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
function watched<K extends keyof Thing>(key: K): (view: View) => Watched<NonNullable<Thing[K]>> {
  return ({ things, absent, version }) => ({ value: things.get(key)?.[key] ?? undefined, absent, version });
}

/** asItIs shows a view as it is. */
export const asItIs = (view: View): View => view;
export const projectView = watched("project");
export const taskView = watched("task");

/** conversationView puts a conversation's parts together. */
export function conversationView({ things, absent, version, signal }: View): ConversationView {
  const all = [...things.values()];
  const conversation = things.get("conversation")?.conversation;
  const records = all.flatMap((t) => t.record ?? []);
  const voice = signal?.voice ?? conversation?.voice;
  return {
    conversation,
    messages: all.flatMap((t) => t.message ?? []).sort((a, b) => a.seq - b.seq),
    voice: {
      status: !voice || voice.status === "unspecified" ? "idle" : voice.status,
      lastTranscription: voice?.lastTranscription ?? "",
      interim: signal?.voice !== undefined,
    },
    toolCalls: records.flatMap((r) => r.toolCall ?? []),
    records,
    absent,
    version,
    signal,
  };
}
