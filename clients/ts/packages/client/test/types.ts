// What the types promise. It is checked, and never run.
import * as v from "valibot";
import { z } from "zod";
import {
  type Assistant,
  type conversation,
  type coordination,
  defineObject,
  type HoldfastError,
  holdfast,
  is,
  type linear,
  type project,
  type Reason,
  type StateView,
  type session,
  type Watch,
} from "../src/index.ts";
import { outbox } from "../src/outbox.ts";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function same<A, B>(_: Same<A, B>): void {}

const hf = holdfast({ url: "http://127.0.0.1" });

export async function handles() {
  const talk = hf.conversation("c1");
  const got = await talk.get();
  same<typeof got.version, number>(true);
  // @ts-expect-error no such role
  await talk.append({ role: "usr" });
  // @ts-expect-error a version is a number
  await talk.update({ title: "x" }, { ifVersion: "8" });
  // @ts-expect-error no such field
  await talk.update((c) => ({ titel: c.title }));
  for await (const issue of hf.linear.issues({ open: true })) same<typeof issue, linear.Issue>(true);
}

export function errors(e: unknown) {
  if (is(e, "VERSION_MISMATCH")) {
    same<typeof e.reason, "VERSION_MISMATCH">(true);
    same<typeof e.mismatch, HoldfastError["mismatch"]>(true);
  }
  if (is(e)) {
    same<typeof e.reason, Reason>(true);
    switch (e.reason) {
      case "SCHEMA_MISMATCH":
      case "SIGNED_OUT":
      // @ts-expect-error no such reason
      case "SIGNED_UP":
    }
  }
  // @ts-expect-error no such reason
  is(e, "NOT_FUOND");
}

export function assistant() {
  const watch = hf.assistant("c1", { apis: ["linear"] });
  same<typeof watch, Watch<Assistant>>(true);
  const page = watch.get();
  // @ts-expect-error nothing is there before the first view
  page.messages;
  if (!page) return;
  same<typeof page.voice.status, "idle" | "listening" | "processing" | "responding">(true);
  same<typeof page.messages, readonly conversation.Message[]>(true);
  same<typeof page.session, session.Session | undefined>(true);
  same<typeof page.tasks, readonly project.Task[]>(true);
  same<typeof page.issues, readonly linear.Issue[]>(true);
  const api = page.apis["linear"];
  same<typeof api, coordination.Api | undefined>(true);
  // @ts-expect-error a snapshot is not changed
  page.messages = [];
}

// Zod and Valibot, with defaults.
const Cart = defineObject("cart", {
  state: z.object({ total: z.number().default(0), note: z.string().optional() }),
  collections: { items: z.object({ sku: z.string(), price: z.number().default(0) }), log: v.string() },
});
const Counter = defineObject("counter", { state: v.object({ n: v.optional(v.number(), 0) }) });
defineObject("strict", { state: z.object({ must: z.string() }), initial: { must: "be" } });
// @ts-expect-error it does not fit the schema
defineObject("strict", { state: z.object({ must: z.string() }), initial: { must: 1 } });

export async function objects() {
  const cart = hf.state(Cart, "c-1");
  const { state, entries } = await cart.get({ entries: { items: ["a"], log: 5 } });
  same<typeof state, { total: number; note?: string | undefined }>(true);
  same<(typeof entries.items)[number]["value"], { sku: string; price: number }>(true);
  same<(typeof entries.log)[number]["value"], string>(true);
  await cart.update((draft, { items, log }) => {
    same<typeof draft.total, number>(true);
    items.put("a", { sku: "a" }); // what has a default may be left out
    log.append("x");
    // @ts-expect-error a price is a number
    items.put("a", { sku: "a", price: "1" });
    // @ts-expect-error the log has texts
    log.append(1);
    // @ts-expect-error no such field
    draft.sum;
  });
  // @ts-expect-error no such collection
  await cart.get({ entries: { itmes: 5 } });
  // @ts-expect-error no such collection
  cart.watch({ itmes: 5 });
  // @ts-expect-error a change is no promise
  await cart.update(async (draft) => draft);
  const counter = hf.state(Counter, "n").watch().get();
  same<typeof counter, StateView<(typeof Counter)["state"], Record<never, never>> | undefined>(true);
  same<NonNullable<typeof counter>["state"]["n"], number>(true);
  for await (const { value } of cart.entries("log")) same<typeof value, string>(true);
}

export async function outboxes() {
  const box = outbox(hf, { user: "ada" });
  await box.add("conversation.append", { conversationId: "c1", messages: [{ role: "user", text: "x" }] });
  await box.add("state.apply", { ref: { type: "counter", name: "n" }, operations: [{ increment: { path: "n" } }] });
  // @ts-expect-error it changes nothing
  await box.add("conversation.getConversation", { conversationId: "c1" });
  // @ts-expect-error no such field
  await box.add("conversation.append", { conversation: "c1", massages: [] });
  // @ts-expect-error the outbox makes the id
  await box.add("project.putTask", { requestId: "r" });
}
