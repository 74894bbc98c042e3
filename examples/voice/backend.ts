// The backend-for-frontend: it signs users in, mints tokens and acts for tools.
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Holdfast } from "@holdfast/client";

/** What a backend is made of. */
export interface BackendOptions {
  /** A client with a service's key. */
  hf: Holdfast;
  /** Where tokens are minted, in place of Google. */
  google?: string | undefined;
  key?: string | undefined;
  /** How long tools take, in milliseconds. */
  slow?: number | undefined;
}

/** backend answers what the page asks, and passes on everything else. */
export function backend({
  hf,
  google = "https://generativelanguage.googleapis.com",
  key = "fake-key",
  slow = 1500,
}: BackendOptions) {
  /** What has acted already, by idempotency key: a tool that is executed again answers as before. */
  const acted = new Map<string, object>();
  let runs = 90_210;

  async function act(once: string, how: () => object): Promise<object> {
    await new Promise((done) => setTimeout(done, slow));
    const before = acted.get(once);
    if (before) return before;
    const now = how();
    acted.set(once, now);
    return now;
  }

  /** Who the user is, a real backend knows from its own sign-in. */
  const paths: { [path: string]: (body: { [name: string]: string }) => Promise<object> } = {
    "/api/session": async () => await hf.rpc.session.createSession({ user: "maya" }),
    "/api/gemini-token": async () => {
      const minted = await fetch(`${google}/v1alpha/auth_tokens`, {
        method: "POST",
        headers: { "x-goog-api-key": key, "Content-Type": "application/json" },
        body: JSON.stringify({ uses: 1 }),
      });
      if (!minted.ok) throw new Error(`Google answered ${minted.status}`);
      return { token: ((await minted.json()) as { name: string }).name };
    },
    "/api/conversation": async ({ id }) => {
      await hf
        .as("maya")
        .conversation(String(id))
        .create({ title: "Auth refactor" })
        .catch((e) => {
          if (!hf.is(e, "ALREADY_EXISTS")) throw e;
        });
      return {};
    },
    "/api/run": async ({ key: once = "", issue = "" }) => act(once, () => ({ run: ++runs, issue, status: "ACTIVE" })),
    "/api/move": async ({ key: once = "", issue = "", state = "" }) => act(once, () => ({ issue, state })),
  };

  return async (request: IncomingMessage, response: ServerResponse, next: () => void): Promise<void> => {
    const handle = paths[request.url ?? ""];
    if (request.method !== "POST" || !handle) return next();
    try {
      let body = "";
      for await (const chunk of request) body += chunk;
      response.setHeader("Content-Type", "application/json");
      response.end(JSON.stringify(await handle(body ? (JSON.parse(body) as { [name: string]: string }) : {})));
    } catch (e) {
      response.writeHead(500).end(JSON.stringify({ error: String(e) }));
    }
  };
}
