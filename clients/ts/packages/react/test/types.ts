// What the types promise. It is checked, and never run.
import type { conversation, HoldfastError, project } from "@holdfast/client";
import { type Conversation, type Live, useAppend, useConversation, useConversations, useLive, useProject } from "../src/index.ts";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
function same<A, B>(_: Same<A, B>): void {}

export function Types({ maybe }: { maybe: boolean }) {
  const talk = useConversation("c1");
  same<typeof talk, Live<Conversation>>(true);
  // @ts-expect-error nothing is there while it loads
  talk.value.messages;
  if (talk.status === "live") same<typeof talk.value, Conversation>(true);
  if (talk.status === "failed") {
    same<typeof talk.error, HoldfastError>(true);
    if (talk.error.reason === "NOT_FOUND") talk.retry();
    // @ts-expect-error no such reason
    if (talk.error.reason === "NOT_FUOND") talk.retry();
  }
  const certain = useProject("p1", { suspense: true });
  same<typeof certain, project.Project | undefined>(true);
  const list = useConversations({}, { suspense: true, limit: 5 });
  same<typeof list, readonly conversation.Conversation[]>(true);
  const either = useProject("p1", { suspense: maybe });
  same<typeof either, project.Project | undefined | Live<project.Project | undefined>>(true);
  const own = useLive("me", (hf) => hf.task("t1").watch());
  if (own.status === "live") same<typeof own.value.value, project.Task | undefined>(true);
  // @ts-expect-error there is no such filter
  useConversations({ colour: "red" });
  // @ts-expect-error no such role
  useAppend("c1")({ role: "usr", text: "Hello" });
}
