// What pages know that no watch shows: calls that are made once, and again when something has changed.
import type { Holdfast, HoldfastError } from "@holdfast/client";
import { is } from "@holdfast/client";
import { useHoldfast } from "@holdfast/react";
import { useCallback, useEffect, useRef, useState, useSyncExternalStore } from "react";

export interface Asked<T> {
  value: T | undefined;
  error: HoldfastError | undefined;
  loading: boolean;
  again(): void;
}

/**
 * useAsk makes a call, and makes it again when `since` changes, at most every half second, or every so many milliseconds while the page is in view.
 * The last answer stays until the next is there; with another key there is none.
 */
export function useAsk<T>(
  key: string,
  call: (hf: Holdfast, signal: AbortSignal) => Promise<T>,
  { since, every, off }: { since?: unknown; every?: number; off?: boolean } = {},
): Asked<T> {
  const hf = useHoldfast();
  const [state, set] = useState<{ key: string; value?: T | undefined; error?: HoldfastError | undefined; done: boolean }>({
    key,
    done: false,
  });
  const [turn, next] = useState(0);
  const latest = useRef(call);
  latest.current = call;
  const last = useRef({ key: "", at: 0 });
  useEffect(() => {
    if (off) return;
    const controller = new AbortController();
    const fresh = last.current.key !== key;
    const wait = fresh ? 0 : Math.max(0, last.current.at + 500 - Date.now());
    const timer = setTimeout(() => {
      last.current = { key, at: Date.now() };
      latest.current(hf, controller.signal).then(
        (value) => !controller.signal.aborted && set({ key, value, done: true }),
        (error) =>
          !controller.signal.aborted &&
          is(error) &&
          set((was) => ({ key, value: was.key === key ? was.value : undefined, error, done: true })),
      );
    }, wait);
    return () => {
      clearTimeout(timer);
      controller.abort();
    };
  }, [hf, key, since, turn, off]);
  useEffect(() => {
    if (!every || off) return;
    const timer = setInterval(() => document.hidden || next((n) => n + 1), every);
    return () => clearInterval(timer);
  }, [every, off]);
  const again = useCallback(() => next((n) => n + 1), []);
  const mine = state.key === key;
  return {
    value: mine ? state.value : undefined,
    error: mine ? state.error : undefined,
    loading: !mine || !state.done,
    again,
  };
}

/** useAct runs an act of the user: one at a time, with its error until the next. */
export function useAct(): {
  run(act: () => Promise<unknown>): Promise<boolean>;
  busy: boolean;
  error: HoldfastError | undefined;
} {
  const [state, set] = useState<{ busy: boolean; error: HoldfastError | undefined }>({ busy: false, error: undefined });
  const run = useCallback(async (act: () => Promise<unknown>) => {
    set({ busy: true, error: undefined });
    try {
      await act();
      set({ busy: false, error: undefined });
      return true;
    } catch (error) {
      if (!is(error)) throw error;
      set({ busy: false, error });
      return false;
    }
  }, []);
  return { run, ...state };
}

/** useNow is the time, again each second. */
export function useNow(): number {
  return useSyncExternalStore(tick, () => Math.floor(Date.now() / 1000)) * 1000;
}

function tick(changed: () => void): () => void {
  const timer = setInterval(changed, 1000);
  return () => clearInterval(timer);
}
