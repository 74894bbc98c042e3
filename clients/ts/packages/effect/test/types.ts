// What the types promise. It is checked, and never run.
import type { conversation as client, View } from "@holdfast/client";
import { type Config, Effect, type Layer, Schema, type Stream } from "effect";
import { conversation, defineObject, Holdfast, type HoldfastError, type Service } from "../src/index.ts";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function same<A, B>(_: Same<A, B>): void {}

export function types(hf: Service) {
  const talk = hf.conversation("c1");
  const got = talk.get({ messages: 1 });
  same<typeof got, Effect.Effect<client.Conversation & { messages: client.Message[] }, HoldfastError>>(true);
  const all = talk.messages();
  same<typeof all, Stream.Stream<client.Message, HoldfastError>>(true);
  const watch = hf.watch({ api: "linear" });
  same<typeof watch, Stream.Stream<View, HoldfastError>>(true);
  const raw = hf.rpc.conversation.append({ conversationId: "c1" });
  same<typeof raw, Effect.Effect<client.AppendResponse, HoldfastError>>(true);
  const decoded = Schema.decodeUnknownSync(conversation.Message)({});
  same<typeof decoded, client.Message>(true);
  const layer = Holdfast.layerConfig();
  same<typeof layer, Layer.Layer<Holdfast, Config.ConfigError>>(true);
  const Cart = defineObject("cart", { state: Schema.toStandardSchemaV1(Schema.Struct({ count: Schema.Number })) });
  const cart = hf.state(Cart, "c-1").get();
  same<Effect.Success<typeof cart>["state"], { readonly count: number }>(true);
  // @ts-expect-error no such reason
  got.pipe(Effect.catchReason("HoldfastError", "NOT_FUOND", () => Effect.void));
  // @ts-expect-error no such role
  talk.append({ role: "usr", text: "Hello" });
}
