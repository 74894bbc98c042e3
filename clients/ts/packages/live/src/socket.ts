import type { JsonObject } from "@holdfast/client";

/** What a socket to the provider tells. */
export interface Listener {
  /** It is open, and the setup is sent. */
  opened(): void;
  /** A frame, as text or as an SDK has parsed it. */
  message(frame: string | object): void;
  closed(code: number, reason: string): void;
}

/** A socket to the provider. */
export interface Socket {
  send(frame: JsonObject): void;
  close(): void;
  /** How many bytes wait to go out, where that is known: what waits for long shows that the network is gone. */
  waiting?(): number;
}

/** Connect opens a socket to the provider with a token, and sends it the setup. */
export type Connect = (token: string, setup: JsonObject, listener: Listener) => Socket;

const google = "wss://generativelanguage.googleapis.com";

/** How to reach the provider. */
export interface WebSocketOptions {
  /** In place of Google's: where a proxy or a test's server is, such as `ws://127.0.0.1:8787`. */
  url?: string | undefined;
}

/** webSocket connects by a WebSocket of its own, with an ephemeral token of Google's. It is what sessions do unless they are told otherwise. */
export function webSocket({ url = google }: WebSocketOptions = {}): Connect {
  return (token, setup, listener) => {
    const path = "/ws/google.ai.generativelanguage.v1alpha.GenerativeService.BidiGenerateContentConstrained";
    const socket = new WebSocket(`${url.replace(/^http/, "ws")}${path}?access_token=${encodeURIComponent(token)}`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      socket.send(JSON.stringify({ setup }));
      listener.opened();
    };
    socket.onmessage = ({ data }) =>
      listener.message(typeof data === "string" ? data : new TextDecoder().decode(data as ArrayBuffer));
    socket.onclose = ({ code, reason }) => listener.closed(code, reason);
    return {
      send(frame) {
        if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(frame));
      },
      // A dead path answers no goodbye: the owner does not wait for it.
      close: () => socket.close(1000),
      waiting: () => socket.bufferedAmount,
    };
  };
}
