import { type CallOptions, type Credentials, rpc, type Transport } from "./call.ts";
import { is, type Reason } from "./error.ts";
import type { Rpc } from "./gen/rpc.ts";
import type { Tokens } from "./gen/session.ts";
import type {
  ApiHandle,
  ConversationHandle,
  Handles,
  InspectHandle,
  LinearHandle,
  ProjectHandle,
  SessionHandle,
  TaskHandle,
} from "./handles.ts";
import { handles } from "./handles.ts";
import { SessionTokens, type SignIn, type Standing } from "./tokens.ts";
import { Watcher } from "./watch.ts";

/** How to reach a Holdfast, and as whom. */
export interface Options {
  /** Where the server is, such as `https://holdfast.example.com`. */
  url: string;
  /**
   * What calls are made with: an API key, or a function that resolves to a JWT of your identity provider. The function is called before
   * each call, and again where the server finds the token too old, so it should keep what it got.
   */
  token?: string | ((why: { expired: boolean; signal: AbortSignal }) => string | Promise<string>) | undefined;
  /** In place of a token: how a page gets its session. The client keeps its tokens, refreshes them, and shares them with other tabs. */
  session?: SignIn | SignIn["signIn"] | undefined;
  /** The user to act for; with a service's API key only. */
  user?: string | undefined;
  /** How many milliseconds a call may take with all its retries; 30,000. */
  timeout?: number | undefined;
  /** How many milliseconds one try may take before the same request is sent again; 10,000. */
  attemptTimeout?: number | undefined;
  /** How many milliseconds a watch may be silent before it connects again; 45,000, which is three heartbeats. */
  watchTimeout?: number | undefined;
  /**
   * Tabs of a browser whose clients have the same name here share their watches: one of them holds the stream. Those that share a session do so
   * by default; with a `token`, give the user's id: tabs with the same name see the same things. null: no sharing.
   */
  tabs?: string | null | undefined;
  /** In place of the global one. */
  fetch?: typeof globalThis.fetch | undefined;
  /** More headers for every call. */
  headers?: { [name: string]: string } | undefined;
  /**
   * Passes on what a call answers, such as `conversation.AppendResponse`, or throws, and the call fails with ANSWER_UNREADABLE: for
   * schemas that check more than the client does.
   */
  read?: ((message: string, answer: unknown) => unknown) | undefined;
}

/** What a page may show of the client. */
export interface Status {
  /** Whether a session's user is signed in; "unknown" until the first call, and of clients that have a token. */
  readonly signedIn: Standing;
  /** Why nobody is. */
  readonly reason?: Reason | undefined;
  /** Whether the last try of a call had an answer. */
  readonly reachable: boolean;
}

/** A Holdfast, as its calls are made. Making it does no I/O. `await using` ends its watches. */
export interface Holdfast extends Handles, AsyncDisposable {
  /** Every call of the server, as the server has it. */
  readonly rpc: Rpc;
  /** Whether an error is Holdfast's and has one of the reasons, if any are named. */
  readonly is: typeof is;
  /** A client for the same server that acts for a user. With a service's API key only. */
  as(user: string): Holdfast;
  /** The same client, whose calls have these options where they have none of their own. */
  with(options: CallOptions): Holdfast;
  /** Asks the application for a session, also after a sign-out. Only with `session`. */
  signIn(): Promise<void>;
  /** Ends the session, or all of the user's, and forgets the tokens in all tabs, also when the server cannot be told. */
  signOut(options?: { everywhere?: boolean } & CallOptions): Promise<void>;
  /** Fit for React's useSyncExternalStore. */
  readonly status: { get(): Status; subscribe(changed: () => void): () => void };
}

export type { ApiHandle, ConversationHandle, InspectHandle, LinearHandle, ProjectHandle, SessionHandle, TaskHandle };

/** holdfast makes a client. */
export function holdfast(options: Options): Holdfast {
  const url = options.url.replace(/\/+$/, "");
  let status: Status = { signedIn: "unknown", reachable: true };
  const listeners = new Set<() => void>();
  const set = (next: Partial<Status>) => {
    const now = { ...status, ...next };
    if (now.signedIn === status.signedIn && now.reason === status.reason && now.reachable === status.reachable) return;
    status = now;
    for (const changed of [...listeners]) changed();
  };
  const transport: Transport = {
    url,
    fetch: options.fetch ?? ((input, init) => globalThis.fetch(input, init)),
    headers: { ...options.headers, ...(options.user === undefined ? {} : { "Holdfast-User": options.user }) },
    timeout: options.timeout ?? 30_000,
    attemptTimeout: options.attemptTimeout ?? 10_000,
    credentials: byToken(options.token),
    reached: (reachable) => set({ reachable }),
    read: options.read,
  };
  const calls = rpc(transport);
  const shares = typeof options.session === "function" || (options.session && options.session.storage === undefined);
  const name = options.tabs === undefined && shares ? "" : options.tabs;
  const watcher = new Watcher(
    calls,
    { silence: options.watchTimeout ?? 45_000, begin: transport.attemptTimeout },
    typeof name === "string" ? `holdfast:watch:${[url, options.user ?? "", name].map(encodeURIComponent)}` : undefined,
  );
  let tokens: SessionTokens | undefined;
  if (options.session) {
    const refresh = async (token: string, signal: AbortSignal): Promise<Tokens | undefined> => {
      const as = { ...transport, timeout: transport.attemptTimeout, credentials: byToken(token) };
      return (await rpc(as).session.refreshSession({}, { signal })).tokens;
    };
    const signIn = typeof options.session === "function" ? { signIn: options.session } : options.session;
    tokens = new SessionTokens(`holdfast:${url}`, signIn, refresh, (signedIn, reason) => {
      set({ signedIn, reason });
      // A stream that is open would go on with the token that it began with.
      if (signedIn === "out") watcher.restart();
    });
    transport.credentials = tokens;
  }
  const client: Holdfast = {
    ...handles(calls, watcher),
    rpc: calls,
    is,
    as: (user) => holdfast({ ...options, user }),
    with(given) {
      const some = rpc(transport, given);
      return { ...client, ...handles(some, watcher), rpc: some, with: (more) => client.with({ ...given, ...more }) };
    },
    async signIn() {
      if (!tokens) throw new Error("signIn() is for clients that were made with `session`");
      await tokens.signIn();
      watcher.restart(); // it may be someone else
    },
    async signOut({ everywhere, ...call } = {}) {
      try {
        // Where no one is signed in, nothing is left to end.
        if (!tokens || status.signedIn === "in") await calls.session.endSessions(everywhere ? { scope: "user" } : {}, call);
      } catch (e) {
        if (!is(e) || e.retry !== "reauth") throw e;
      } finally {
        tokens?.forget();
      }
    },
    status: {
      get: () => status,
      subscribe(changed) {
        listeners.add(changed);
        return () => listeners.delete(changed);
      },
    },
    async [Symbol.asyncDispose]() {
      watcher.close();
      tokens?.close();
    },
  };
  return client;
}

function byToken(token: Options["token"]): Credentials {
  if (typeof token !== "function") return { bearer: async () => token, refused: async () => false };
  let expired = false;
  return {
    async bearer(signal) {
      const why = { expired, signal };
      expired = false;
      return await token(why);
    },
    async refused(_, error) {
      expired = error.reason === "TOKEN_EXPIRED";
      return expired;
    },
  };
}
