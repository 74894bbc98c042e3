import type { JsonObject } from "@holdfast/client";
import type { Connect } from "./socket.ts";

/** What is needed of `@google/genai`'s GoogleGenAI. */
export interface GenAI {
  readonly live: {
    connect(parameters: {
      model: string;
      config: object;
      callbacks: {
        onmessage(message: object): void;
        onclose(event: { code: number; reason: string }): void;
      };
    }): Promise<{ readonly conn: { send(data: string): void }; close(): void }>;
  };
}

/**
 * genai connects by `@google/genai`:
 *
 *     genai((token) => new GoogleGenAI({ apiKey: token, httpOptions: { apiVersion: "v1alpha" } }))
 *
 * The setup is written as the Live API has it, and the SDK's names are made of it.
 */
export function genai(make: (token: string) => GenAI): Connect {
  return (token, setup, listener) => {
    const { model, generationConfig, ...rest } = setup as { model?: string; generationConfig?: JsonObject };
    const waiting: JsonObject[] = [];
    let session: Awaited<ReturnType<GenAI["live"]["connect"]>> | undefined;
    let over = false;
    const close = (code: number, reason: string) => {
      if (!over) listener.closed(code, reason);
      over = true;
    };
    make(token)
      .live.connect({
        model: model ?? "",
        config: { ...generationConfig, ...rest },
        callbacks: {
          // The SDK has sent the setup when the first frame comes.
          onmessage: (message) => {
            if (over) return;
            listener.message(message);
          },
          onclose: ({ code, reason }) => close(code, reason),
        },
      })
      .then(
        (made) => {
          session = made;
          if (over) made.close();
          for (const frame of waiting.splice(0)) made.conn.send(JSON.stringify(frame));
        },
        (e: unknown) => close(1006, String(e)),
      );
    queueMicrotask(() => listener.opened());
    return {
      send(frame) {
        if (session) session.conn.send(JSON.stringify(frame));
        else waiting.push(frame);
      },
      close() {
        over = true;
        session?.close();
      },
    };
  };
}
