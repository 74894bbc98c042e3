import type { Change, ConversationHandle, conversation, Holdfast, HoldfastError } from "@holdfast/client";
import { useMemo } from "react";
import { kept, useHoldfast } from "./live.ts";

/** A message on its way: shown at once, and gone from here in the same moment in which the conversation has it. */
export interface Outgoing {
  /** Names the message for good: the conversation's message has it, too. */
  readonly clientMessageId: string;
  readonly message: conversation.MessageInput;
  /** "sent": the server has it, and the page's watch does not show it yet. */
  readonly status: "sending" | "sent" | "failed";
  readonly error?: HoldfastError | undefined;
  /** Sends a failed message again, with all that were appended with it. It cannot come twice. */
  readonly retry: () => void;
  /** Takes a failed message away, with all that were appended with it. */
  readonly discard: () => void;
}

/** Appends to a conversation. Takes what the client's `append` takes. */
export type Append = ConversationHandle["append"];

/**
 * useAppend returns a function that appends to a conversation. useConversation shows the messages at once, as `outgoing`. They are sent
 * one append after the other, so they keep their order. Who shows `outgoing` may ignore the promise: a failure is in there, too.
 */
export function useAppend(conversationId: string): Append {
  const hf = useHoldfast();
  return useMemo(() => outbox(hf, conversationId).append, [hf, conversationId]);
}

export function outbox(hf: Holdfast, conversationId: string): Outbox {
  const { outboxes } = kept(hf);
  let found = outboxes.get(conversationId);
  if (!found) {
    found = new Outbox(hf.conversation(conversationId));
    outboxes.set(conversationId, found);
  }
  return found;
}

/** One append, with its messages. */
interface Batch {
  readonly outgoing: readonly Outgoing[];
  /** The conversation's version that has it. */
  readonly version?: number;
}

/** What a view says of messages on their way. */
interface Seen {
  readonly version: number;
  readonly messages: readonly Pick<conversation.Message, "clientMessageId">[];
}

/** Outbox has what a page appends to a conversation until the conversation shows it. */
export class Outbox {
  readonly #talk: Pick<ConversationHandle, "append">;
  readonly #listeners = new Set<() => void>();
  #batches: readonly Batch[] = [];
  #last: Promise<unknown> = Promise.resolve();

  constructor(talk: Pick<ConversationHandle, "append">) {
    this.#talk = talk;
  }

  readonly get = (): readonly Batch[] => this.#batches;

  readonly subscribe = (changed: () => void): (() => void) => {
    this.#listeners.add(changed);
    return () => {
      this.#listeners.delete(changed);
      if (this.#listeners.size === 0) this.#set(this.#batches.filter((b) => b.version === undefined));
    };
  };

  readonly append: Append = (messages, more, options) => {
    const sent = (Array.isArray(messages) ? messages : [messages]).map((m) => ({
      ...m,
      clientMessageId: m.clientMessageId || id(),
    }));
    const how: Change = { ...options, requestId: options?.requestId || id() };
    let batch: Batch | undefined;
    const become = (to: Pick<Outgoing, "status" | "error">, version?: number) => {
      const now: Batch = {
        outgoing: sent.map((message) => ({ clientMessageId: message.clientMessageId, message, ...to, retry, discard })),
        ...(version === undefined ? {} : { version }),
      };
      const known = batch !== undefined && this.#batches.includes(batch);
      this.#set(known ? this.#batches.map((b) => (b === batch ? now : b)) : batch ? this.#batches : [...this.#batches, now]);
      batch = now;
    };
    const send = () => {
      const answer = this.#last.then(() => this.#talk.append(sent, more, how));
      this.#last = answer.then(
        // Where nothing shows the conversation, nothing will say that it has been seen.
        ({ version }) => (this.#listeners.size === 0 ? discard() : become({ status: "sent" }, version)),
        (error) => become({ status: "failed", error }),
      );
      return answer;
    };
    const retry = () => {
      if (!batch || !this.#batches.includes(batch) || batch.outgoing[0]?.status !== "failed") return;
      become({ status: "sending" });
      send().catch(() => {});
    };
    const discard = () => {
      if (batch) this.#set(this.#batches.filter((b) => b !== batch));
    };
    become({ status: "sending" });
    const answer = send();
    answer.catch(() => {}); // may be ignored
    return answer;
  };

  /** seen drops what a view has. */
  seen(by: Seen): void {
    const left = this.#batches.filter((b) => unseen(b, by).length > 0);
    if (left.length < this.#batches.length) this.#set(left);
  }

  #set(batches: readonly Batch[]): void {
    this.#batches = batches;
    for (const changed of [...this.#listeners]) changed();
  }
}

/** unseen is what a view does not have yet. */
export function unseen(batch: Batch, by: Seen): readonly Outgoing[] {
  if (batch.version !== undefined && batch.version <= by.version) return [];
  return batch.outgoing.filter((o) => !by.messages.some((m) => m.clientMessageId === o.clientMessageId));
}

/** id is a random name. crypto.randomUUID exists only on pages with TLS. */
function id(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}
