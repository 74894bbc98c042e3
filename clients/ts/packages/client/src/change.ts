import type { CallOptions } from "./call.ts";
import { is } from "./error.ts";
import { now, sleep } from "./time.ts";

/** What a change takes besides the change. */
export interface Change extends CallOptions {
  /** The version that the caller has seen. Where there is another the call fails with VERSION_MISMATCH; 0: the object must not exist. */
  ifVersion?: number | undefined;
  /** Made by the client unless it is given here: to repeat a call whose outcome is not known, or where the caller has an id that fits. */
  requestId?: string | undefined;
  /** Fields to replace or clear, where the change alone would merge or leave them: `title,labels`. */
  updateMask?: string | undefined;
}

/** pages reads a list to its end, page by page as it is read. */
export async function* pages<R extends { pageToken?: string | undefined }, A extends { nextPageToken: string }, T>(
  list: (request: R, options?: CallOptions) => Promise<A>,
  request: NoInfer<R>,
  items: (answer: A) => T[],
  options?: CallOptions,
): AsyncGenerator<T, void, undefined> {
  for (let pageToken: string | undefined; ; ) {
    const answer = await list({ ...request, pageToken }, options);
    yield* items(answer);
    pageToken = answer.nextPageToken;
    if (!pageToken) return;
  }
}

/** retried makes an attempt to read, decide and write until no one was faster, or the time is over. */
export async function retried<T>(o: CallOptions | undefined, attempt: (call: CallOptions) => Promise<T>): Promise<T> {
  const { signal, timeout } = o ?? {};
  const end = now() + (timeout ?? 30_000);
  for (let tries = 0; ; tries++) {
    // With chance in it, so that those who collide do not do it again.
    const wait = Math.random() * Math.min(500, 10 * 2 ** tries);
    try {
      return await attempt({ signal, timeout });
    } catch (e) {
      if (!is(e, "VERSION_MISMATCH") || now() + wait > end) throw e;
    }
    await sleep(wait, signal);
  }
}
