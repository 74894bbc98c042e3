import type { Holdfast, HoldfastError, Watch } from "@holdfast/client";
import { createContext, createElement, type ReactNode, useContext, useSyncExternalStore } from "react";
import type { Outbox } from "./append.ts";

/** What a hook shows: nothing yet, the newest value, or why there will be no newer one. */
export type Live<T> =
  | { readonly status: "loading"; readonly value?: undefined; readonly error?: undefined }
  | { readonly status: "live"; readonly value: T; readonly error?: undefined }
  | {
      readonly status: "failed";
      /** The last value, if there was one. */
      readonly value?: T | undefined;
      readonly error: HoldfastError;
      /** Begins again, for all components that show it. */
      readonly retry: () => void;
    };

/** What a hook can follow: every watch of the client, and whatever else has these three. */
export type Source<T> = Pick<Watch<T>, "get" | "error" | "subscribe">;

/** How a hook waits. */
export interface Waiting<S extends boolean = boolean> {
  /** Suspend until there is a value, and throw the error to the next error boundary. The hook then returns the value itself. */
  suspense?: S | undefined;
}

/** What a hook returns: the value itself with `suspense: true`, and otherwise how it stands. */
export type Shown<T, S extends boolean> = true extends S ? (S extends true ? T : T | Live<T>) : Live<T>;

const Client = createContext<Holdfast | undefined>(undefined);

/** HoldfastProvider gives a client to the hooks below it. Make the client once, outside of components: it has the connections. */
export function HoldfastProvider(props: { client: Holdfast; children?: ReactNode }): ReactNode {
  return createElement(Client.Provider, { value: props.client }, props.children);
}

/** useHoldfast returns the client of the nearest provider. */
export function useHoldfast(): Holdfast {
  const client = useContext(Client);
  if (!client) throw new Error("a hook of @holdfast/react needs a HoldfastProvider above its component");
  return client;
}

/**
 * useLive shows what a watch shows, from the first component that asks for the key until the last is gone.
 *
 *     const task = useLive("task/t1", (hf) => hf.task("t1").watch());
 *
 * The key says what is watched: components with the same key share the watch of the first. Another key is another value from the next
 * render on, so nothing of one thing is ever shown under another's name.
 */
export function useLive<T, S extends boolean = false>(
  key: string,
  watch: (hf: Holdfast) => Source<T>,
  waiting: Waiting<S> = {},
): Shown<T, S> {
  const client = useHoldfast();
  const { stores } = kept(client);
  const store: Store<T> = stores.get(key) ?? new Store(watch(client), stores, key);
  const live = useSyncExternalStore(store.subscribe, store.get, () => loading);
  if (!waiting.suspense) return live as Shown<T, S>;
  if (live.status === "failed") throw live.error;
  if (live.status === "live") return live.value as Shown<T, S>;
  if (typeof window === "undefined") throw new Error("what Holdfast has is shown in the browser only");
  throw store.begun();
}

/**
 * Kept has what a client's components share. It is not in the provider's state, because React forgets the state of what was suspended
 * before it was shown.
 */
interface Kept {
  // biome-ignore lint/suspicious/noExplicitAny: each key has a type of its own, which useLive's callers know
  readonly stores: Map<string, Store<any>>;
  readonly outboxes: Map<string, Outbox>;
}

const clients = new WeakMap<Holdfast, Kept>();

export function kept(client: Holdfast): Kept {
  let found = clients.get(client);
  if (!found) {
    found = { stores: new Map(), outboxes: new Map() };
    clients.set(client, found);
  }
  return found;
}

const loading = { status: "loading" } as const;

/** How long a suspended component has until it subscribes to what it was suspended for, and how long until it throws its error, in milliseconds. */
const patience = { value: 2000, error: 100 };

/** Store is one watch for all components with its key. */
class Store<T> {
  readonly #source: Source<T>;
  readonly #stores: Kept["stores"];
  readonly #key: string;
  readonly #listeners = new Set<() => void>();
  #stop: (() => void) | undefined;
  #leaving: ReturnType<typeof setTimeout> | undefined;
  #live: Live<T> = loading;
  #begun: Promise<void> | undefined;

  constructor(source: Source<T>, stores: Kept["stores"], key: string) {
    this.#source = source;
    this.#stores = stores;
    this.#key = key;
    stores.set(key, this);
    this.#leave(patience.value); // unless it is shown by then
  }

  /** get returns the same value until something changes. */
  readonly get = (): Live<T> => {
    const [value, error] = [this.#source.get(), this.#source.error()];
    if (value !== this.#live.value || error !== this.#live.error)
      this.#live = error
        ? { status: "failed", value, error, retry: this.#retry }
        : value === undefined
          ? loading
          : { status: "live", value };
    return this.#live;
  };

  readonly subscribe = (changed: () => void): (() => void) => {
    this.#listeners.add(changed);
    clearTimeout(this.#leaving);
    this.#stores.set(this.#key, this);
    this.#stop ??= this.#source.subscribe(this.#tell);
    return () => {
      this.#listeners.delete(changed);
      // Not at once: StrictMode takes each subscription off and puts it on again.
      if (this.#listeners.size === 0) this.#leave(0);
    };
  };

  /** begun resolves when there is something to show. Suspended components cannot subscribe, so it watches for them. */
  begun(): Promise<void> {
    this.#begun ??= new Promise((done) => {
      const stop = this.subscribe(() => {
        if (this.get().status === "loading") return;
        this.#begun = undefined;
        setTimeout(stop, this.#source.error() ? patience.error : patience.value);
        done();
      });
    });
    return this.#begun;
  }

  readonly #tell = (): void => {
    for (const changed of [...this.#listeners]) changed();
  };

  readonly #retry = (): void => {
    if (!this.#source.error()) return;
    this.#stop?.();
    this.#stop = this.#source.subscribe(this.#tell);
    this.#tell();
  };

  #leave(ms: number): void {
    clearTimeout(this.#leaving);
    this.#leaving = setTimeout(() => {
      this.#stop?.();
      this.#stop = undefined;
      if (this.#stores.get(this.#key) === this) this.#stores.delete(this.#key);
    }, ms);
  }
}
