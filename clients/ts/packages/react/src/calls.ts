import type { ConversationView, conversation, Holdfast, Watch } from "@holdfast/client";

/**
 * withToolCalls is a conversation's watch that has the tool calls, too, that were over before it began: the newest 200. They are read once, after
 * the first view, so that none is missed between.
 */
export function withToolCalls(
  talk: Watch<ConversationView>,
  records: ReturnType<Holdfast["conversation"]>["records"],
): Pick<Watch<ConversationView>, "get" | "error" | "subscribe"> {
  const listeners = new Set<() => void>();
  let past: readonly conversation.ToolCall[] | undefined;
  let reading = false;
  let last: { of: ConversationView; past: unknown; view: ConversationView } | undefined;
  let stop = () => {};
  const read = async () => {
    const calls: conversation.ToolCall[] = [];
    for await (const { toolCall } of records({ types: ["tool_call"], newestFirst: true, pageSize: 200 })) {
      if (toolCall) calls.push(toolCall);
      if (calls.length === 200) break;
    }
    return calls;
  };
  const tell = () => {
    if (!reading && talk.get()) {
      reading = true;
      read().then(
        (calls) => {
          past = calls;
          tell();
        },
        () => {
          reading = false; // with the next change again
        },
      );
    }
    for (const changed of [...listeners]) changed();
  };
  return {
    error: () => talk.error(),
    get() {
      const of = talk.get();
      if (!of || !past) return of;
      if (last?.of !== of || last.past !== past) {
        const calls = new Map([...past, ...of.toolCalls].map((c) => [c.seq, c]));
        last = { of, past, view: { ...of, toolCalls: [...calls.values()].sort((a, b) => a.seq - b.seq) } };
      }
      return last.view;
    },
    subscribe(changed) {
      const listener = () => changed();
      if (listeners.add(listener).size === 1) {
        stop = talk.subscribe(tell);
        tell(); // what others follow already is there
      }
      return () => {
        listeners.delete(listener);
        if (listeners.size === 0) stop();
      };
    },
  };
}
