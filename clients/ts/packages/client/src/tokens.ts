import type { Credentials } from "./call.ts";
import { HoldfastError, is, milliseconds, type Reason } from "./error.ts";
import type { Tokens } from "./gen/session.ts";
import { backoff, now, race, sleep, within } from "./time.ts";

/** What a backend answers to a page that signs in: CreateSession's answer, as it came, or its tokens. */
export type SignedIn = Pick<Tokens, "accessToken" | "refreshToken"> & { accessExpiresIn?: string | undefined };

export interface SignIn {
  /**
   * signIn asks the application's backend for a session, which the backend makes by CreateSession. null: nobody is signed in there.
   * It is called when there are no tokens yet, and by `hf.signIn()`; never by itself after a sign-out or the session's end.
   */
  signIn: (signal: AbortSignal) => Promise<SignedIn | { tokens?: SignedIn | undefined } | null | undefined>;
  /** Where the tokens are kept for all tabs; unset: `localStorage`, where there is one. null: in memory, and each tab has a session. */
  storage?: Pick<Storage, "getItem" | "setItem"> | null | undefined;
}

/** Whether a user is signed in: not known yet, in, or out. */
export type Standing = "unknown" | "in" | "out";

/** What the tabs share: a pair of tokens, or that and why there is none. */
interface Kept {
  access?: string;
  refresh?: string;
  /** From when on the access token is not used, by this machine's clock. Only durations come from the server: clocks differ. */
  until?: number;
  out?: Reason;
  /** Rises with every change, so that of two the newer one is known. */
  count: number;
}

/** What gets new tokens for a refresh token. */
type Exchange = (refresh: string, signal: AbortSignal) => Promise<Tokens | undefined>;
type Changed = (standing: Standing, reason?: Reason) => void;

/** How long getting the lock, a refresh, or the application's signIn may take. */
const patience = { lock: 15_000, refresh: 10_000, signIn: 20_000 };

/**
 * SessionTokens keeps a session's tokens for all tabs of a browser.
 *
 *     unknown ── signIn() ──> in ── refresh, one at a time ──> in
 *        └─ null ─> out <── SESSION_REVOKED, SESSION_EXPIRED, signOut() ──┘
 *        out ── hf.signIn(), in any tab ──> in
 *
 * One tab at a time refreshes or signs in, under a Web Lock; the others then find the new tokens in the storage. A tab that holds the
 * lock and hangs holds up the others for 15 s: then they refresh without it, which is safe, because a refresh token that comes twice
 * within 30 s gets the same answer. Each step has a time limit, and a failure is an error of the calls that wait for it and no more:
 * the next call tries again. In the state `out` nothing is sent.
 */
export class SessionTokens implements Credentials {
  #kept: Kept = { count: 0 };
  #working: Promise<void> | undefined;
  #failures = 0;
  #again = 0;
  #failed: HoldfastError | undefined;
  readonly #storage: Pick<Storage, "getItem" | "setItem"> | null | undefined;
  readonly #channel: BroadcastChannel | undefined;
  readonly #listening: (() => void) | undefined;
  readonly #name: string;
  readonly #options: SignIn;
  readonly #exchange: Exchange;
  readonly #changed: Changed;

  constructor(name: string, options: SignIn, exchange: Exchange, changed: Changed) {
    this.#name = name;
    this.#options = options;
    this.#exchange = exchange;
    this.#changed = changed;
    this.#storage = options.storage === undefined ? shared() : options.storage;
    if (this.#storage && typeof BroadcastChannel === "function") {
      this.#channel = new BroadcastChannel(name);
      // Sent along, because another process may see the storage a little later than the message.
      this.#channel.onmessage = (e: MessageEvent<Kept>) => this.#take(e.data);
      // In Node a channel would keep the process running.
      (this.#channel as { unref?: () => void }).unref?.();
    }
    if (this.#storage && typeof addEventListener === "function") {
      this.#listening = () => this.#load();
      // A page that comes back from the browser's cache has missed the messages.
      addEventListener("storage", this.#listening);
      addEventListener("pageshow", this.#listening);
    }
    this.#load();
  }

  close(): void {
    this.#channel?.close();
    if (this.#listening) {
      removeEventListener("storage", this.#listening);
      removeEventListener("pageshow", this.#listening);
    }
  }

  async bearer(signal: AbortSignal): Promise<string | undefined> {
    if (!this.#usable()) await race(this.#work(), signal);
    this.#refuse();
    return this.#kept.access;
  }

  async refused(bearer: string | undefined, error: HoldfastError, signal: AbortSignal): Promise<boolean> {
    this.#load();
    if (this.#kept.out) return false;
    if (this.#kept.access !== bearer) return true; // another tab has new ones
    if (error.reason !== "TOKEN_EXPIRED") {
      this.#keep({ out: error.reason });
      return false;
    }
    this.#kept.until = 0;
    await race(this.#work(), signal);
    return this.#kept.access !== bearer && !this.#kept.out;
  }

  /** signIn asks the application for a session, whatever there was before. */
  async signIn(): Promise<void> {
    await this.#working?.catch(() => {});
    this.#again = 0;
    this.#working = this.#locked(() => this.#begin()).finally(() => {
      this.#working = undefined;
    });
    await this.#working;
    this.#refuse();
  }

  /** forget signs out in all tabs of this browser. It tells the server nothing. */
  forget(): void {
    this.#keep({ out: "SIGNED_OUT" });
  }

  #usable(): boolean {
    return this.#kept.out !== undefined || (this.#kept.access !== undefined && Date.now() < (this.#kept.until ?? 0));
  }

  #refuse(): void {
    const reason = this.#kept.out;
    if (reason) throw new HoldfastError("nobody is signed in; call signIn()", "session.bearer", { reason, retry: "never" });
  }

  /** work gets tokens, once for all who ask. */
  #work(): Promise<void> {
    this.#working ??= this.#locked(async () => {
      this.#load(); // what another tab did while this one waited for the lock
      if (this.#usable()) return;
      if (this.#kept.refresh) await this.#refresh();
      else await this.#begin();
    }).finally(() => {
      this.#working = undefined;
    });
    return this.#working;
  }

  async #refresh(): Promise<void> {
    const end = now() + patience.refresh;
    for (let failures = 0; ; failures++) {
      const { refresh = "", count } = this.#kept;
      try {
        const tokens = await within(
          end - now(),
          undefined,
          () => new Error("no answer to RefreshSession"),
          (signal) => this.#exchange(refresh, signal),
        );
        if (!tokens) throw new Error("RefreshSession answered no tokens");
        this.#pair(tokens, count);
        return;
      } catch (cause) {
        this.#load();
        if (this.#kept.count !== count) return; // another tab was faster, or signed out
        if (is(cause) && (cause.retry === "reauth" || cause.reason === "CREDENTIAL_INVALID")) {
          this.#keep({ out: cause.reason });
          return;
        }
        const wait = Math.max(backoff(failures), (is(cause) && cause.retryAfter) || 0);
        if (now() + wait >= end || (is(cause) && cause.retry === "never"))
          throw is(cause)
            ? cause
            : new HoldfastError(
                "the access token could not be refreshed",
                "session.refreshSession",
                { reason: "UNREACHABLE", retry: "same" },
                { cause },
              );
        await sleep(wait);
      }
    }
  }

  async #begin(): Promise<void> {
    // A backend that is down is not asked with every call.
    if (this.#failed && now() < this.#again) throw this.#failed;
    const { count } = this.#kept;
    try {
      const answer = await within(
        patience.signIn,
        undefined,
        () => new Error(`no answer within ${patience.signIn} ms`),
        this.#options.signIn,
      );
      const tokens = answer && "tokens" in answer ? answer.tokens : (answer as SignedIn | null | undefined);
      if (answer && !tokens?.accessToken) throw new Error("it answered no accessToken");
      if (tokens) this.#pair(tokens, count);
      else this.#keep({ out: "SIGNED_OUT" });
      this.#failures = 0;
      this.#failed = undefined;
    } catch (cause) {
      this.#again = now() + backoff(++this.#failures);
      this.#failed = new HoldfastError(
        `signIn failed: ${cause instanceof Error ? cause.message : String(cause)}`,
        "session.signIn",
        { reason: "SIGN_IN_FAILED", retry: "same" },
        { cause },
      );
      throw this.#failed;
    }
  }

  async #locked(work: () => Promise<void>): Promise<void> {
    const locks = this.#storage ? globalThis.navigator?.locks : undefined;
    if (!locks) return await work();
    const patient = new AbortController();
    const timer = setTimeout(() => patient.abort(), patience.lock);
    let got = false;
    try {
      await locks.request(this.#name, { signal: patient.signal }, () => {
        clearTimeout(timer);
        got = true;
        return work();
      });
    } catch (e) {
      if (got) throw e;
      await work();
    } finally {
      clearTimeout(timer);
    }
  }

  /** pair keeps new tokens, unless the user has signed out, or another tab in, since they were asked for. */
  #pair(tokens: SignedIn, since: number): void {
    this.#load();
    if (this.#kept.count !== since) return;
    const ms = milliseconds(tokens.accessExpiresIn) ?? 60_000;
    // A tenth early, so that no call starts with a token that expires on its way.
    this.#keep({ access: tokens.accessToken, refresh: tokens.refreshToken, until: Date.now() + ms - Math.min(ms / 10, 30_000) });
  }

  #keep(next: Omit<Kept, "count">): void {
    this.#take({ ...next, count: this.#kept.count + 1 });
    try {
      this.#storage?.setItem(this.#name, JSON.stringify(this.#kept));
    } catch {
      // A full or forbidden storage: this tab goes on by itself.
    }
    this.#channel?.postMessage(this.#kept);
  }

  #load(): void {
    try {
      const text = this.#storage?.getItem(this.#name);
      if (text) this.#take(JSON.parse(text) as Kept);
    } catch {
      // Not ours, or forbidden.
    }
  }

  /** take makes what is newer the tab's own. */
  #take(next: Kept): void {
    if (!(next?.count > this.#kept.count)) return;
    this.#kept = next;
    this.#changed(next.out ? "out" : "in", next.out);
  }
}

function shared(): Storage | undefined {
  try {
    // Node has one that warns or throws; there are no tabs.
    return typeof document === "object" ? globalThis.localStorage : undefined;
  } catch {
    return undefined;
  }
}
