import type { WatchResponse } from "./gen/watch.ts";
import { id } from "./time.ts";

/** What a tab follows: an item's key, and how far the tab has it. */
export type Wanted = [key: string, mark: string];

/** What a tab says to the others. */
type Said =
  /** A tab that follows: this is all it wants. Said again each second, it also asks whether the leader is there. */
  | { tab: string; want: Wanted[] }
  /** The leader is there. Of two the one with the later term leads: a tab that was frozen may not know yet that it does not. */
  | { term: number }
  /** What came for an item, for all tabs or for one; a tab whose mark is not `after` has missed something. */
  | { term: number; key: string; after: string; message: WatchResponse; to: string | undefined };

/** What Tabs need of a Watcher. */
export interface Sharing {
  /** lead begins or ends this tab's own streams. */
  lead(yes: boolean): void;
  /** wants is what this tab follows. */
  wants(): Wanted[];
  /** serve follows for another tab what it wants; nothing: it is gone. */
  serve(tab: string, want: Wanted[]): void;
  /** take takes what the leader had. It returns false if something was missed. */
  take(key: string, after: string, message: WatchResponse): boolean;
}

/**
 * Tabs elect the tab that holds the streams for all tabs of a browser that have the same name: the one that holds a Web Lock.
 *
 *     follows ── the lock is free: the leader closed or crashed ──> leads
 *        │ └──── the leader says nothing, three times: it is frozen or hangs; the lock is stolen ──> leads
 *        └<───── the lock was stolen ── leads
 *
 * A new leader goes on from its own cursors. The tab asks by messages and not by the clock, since browsers slow the timers of hidden tabs
 * down, but not their messages.
 */
export class Tabs {
  readonly #tab = id();
  readonly #name: string;
  readonly #host: Sharing;
  readonly #channel: BroadcastChannel;
  #waiting: AbortController | undefined;
  #leads = false;
  #term = 0;
  #unanswered = 0;
  #soon: ReturnType<typeof setTimeout> | undefined;
  readonly #seen = new Map<string, number>();

  constructor(name: string, host: Sharing) {
    this.#name = name;
    this.#host = host;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = (e: MessageEvent<Said>) => this.#hear(e.data);
    addEventListener("pagehide", this.#bye);
    void this.#stand();
  }

  close(): void {
    removeEventListener("pagehide", this.#bye);
    clearTimeout(this.#soon);
    this.#bye();
    this.#waiting?.abort();
    this.#channel.close();
  }

  /** ask tells the leader what this tab wants, a little later, so that what a page adds at once is one message. */
  ask(): void {
    this.#soon ??= setTimeout(() => {
      this.#soon = undefined;
      this.#want();
    }, 5);
  }

  /** beat is called each second. */
  beat(): void {
    if (this.#leads) {
      // Hidden tabs speak once a minute.
      for (const [tab, at] of this.#seen) if (Date.now() - at > 180_000) this.#gone(tab);
      return;
    }
    // Not all at once.
    if (++this.#unanswered > 3 + Math.random()) void this.#stand(true);
    this.#want();
  }

  /** tell passes on what came for an item. */
  tell(key: string, after: string, message: WatchResponse, to?: string): void {
    this.#say({ term: this.#term, key, after, message, to });
  }

  #say(said: Said): void {
    this.#channel.postMessage(said);
  }

  #want(): void {
    if (!this.#leads) this.#say({ tab: this.#tab, want: this.#host.wants() });
  }

  #gone(tab: string): void {
    this.#seen.delete(tab);
    this.#host.serve(tab, []);
  }

  readonly #bye = () => {
    if (!this.#leads) this.#say({ tab: this.#tab, want: [] });
  };

  /** stand waits for the lock, or steals it, and leads while it has it. */
  async #stand(steal = false): Promise<void> {
    this.#unanswered = 0;
    this.#waiting?.abort();
    const waiting = new AbortController();
    this.#waiting = waiting;
    try {
      await navigator.locks.request(this.#name, steal ? { steal } : { signal: waiting.signal }, () => {
        this.#lead(true);
        return new Promise<void>((done) => waiting.signal.addEventListener("abort", () => done()));
      });
    } catch (e) {
      // Without locks, as in a sandboxed frame, each tab has its own streams.
      if ((e as Error).name !== "AbortError") return this.#lead(true);
    }
    if (this.#waiting !== waiting || waiting.signal.aborted) return;
    this.#lead(false);
    void this.#stand();
  }

  #lead(yes: boolean): void {
    this.#leads = yes;
    this.#seen.clear();
    if (yes) this.#term = Math.max(Date.now(), this.#term + 1);
    this.#host.lead(yes);
    if (yes) this.#say({ term: this.#term });
    else this.#want();
  }

  #hear(said: Said): void {
    if ("want" in said) {
      if (!this.#leads) return;
      this.#say({ term: this.#term });
      this.#seen.set(said.tab, Date.now());
      if (said.want.length > 0) this.#host.serve(said.tab, said.want);
      else this.#gone(said.tab);
    } else if (!this.#leads && said.term >= this.#term) {
      const missed =
        "key" in said && (said.to ?? this.#tab) === this.#tab && !this.#host.take(said.key, said.after, said.message);
      if (missed || said.term > this.#term) this.ask();
      this.#term = said.term;
      this.#unanswered = 0;
    }
  }
}

/** tabs shares a Watcher's streams, where the browser can. */
export function tabs(name: string, host: Sharing): Tabs | undefined {
  return typeof document === "object" && typeof BroadcastChannel === "function" && globalThis.navigator?.locks
    ? new Tabs(name, host)
    : undefined;
}
