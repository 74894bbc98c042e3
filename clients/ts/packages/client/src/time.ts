/** now is a clock that no one sets, in milliseconds. */
export const now = (): number => performance.now();

/** sleep waits, and rejects with the signal's reason as soon as that aborts. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return race(new Promise<void>((done) => setTimeout(done, ms)), signal);
}

/** race settles as the promise does, or rejects with the signal's reason as soon as that aborts. */
export function race<T>(promise: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort);
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** within settles as the work does, or rejects with `late()` after so many milliseconds, when the work's own signal aborts. */
export async function within<T>(
  ms: number,
  signal: AbortSignal | undefined,
  late: () => unknown,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  const abort = () => controller.abort(signal?.reason);
  if (signal?.aborted) abort();
  signal?.addEventListener("abort", abort);
  const timer = setTimeout(() => controller.abort(late()), ms);
  try {
    // Raced, because not everything that takes a signal listens to it.
    return await race(work(controller.signal), controller.signal);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", abort);
  }
}

/** backoff is how long to wait after so many failures: 100 ms, doubled to 5 s at most, less up to a half, so that clients do not return at once. */
export function backoff(failures: number): number {
  return Math.min(5000, 100 * 2 ** failures) * (0.5 + Math.random() / 2);
}

/** id is a new random name of 128 bits. crypto.randomUUID exists only on pages with TLS. */
export function id(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}
