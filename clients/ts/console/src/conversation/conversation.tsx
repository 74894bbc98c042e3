// A conversation: what was said, by whom, and where its parts are.
import type { conversation, inspect } from "@holdfast/client";
import { useConversation, useConversations } from "@holdfast/react";
import { useMemo } from "react";
import { useAsk, useNow } from "../ask.ts";
import { going, held, Talks } from "../home.tsx";
import { useEvents } from "../object/journal.tsx";
import { object, replace, useRoute } from "../route.ts";
import { Card, Empty, Failure, Icon, Loading, Mark, useTitle } from "../ui.tsx";
import { clock, count, num, span, who } from "../words.ts";
import { Ledger } from "./ledger.tsx";
import { Told } from "./told.tsx";
import { Voice } from "./voice.tsx";

export function Conversations() {
  const { query } = useRoute();
  const live = useConversations({}, { limit: 200 });
  const now = useNow();
  const text = query.get("name") ?? "";
  const all = live.value ?? [];
  const shown = all.filter((c) => `${c.title} ${c.conversationId} ${c.owner}`.toLowerCase().includes(text.toLowerCase()));
  const open = all.filter((c) => held(c, now)).length;
  return (
    <>
      <div className="head">
        <div className="grow">
          <h1>{open ? `${count(open, "conversation")} ${open === 1 ? "is" : "are"} live` : "Conversations"}</h1>
          <p>The last changed first, live. {all.length === 200 && "These are the newest 200; Objects has all of them."}</p>
        </div>
      </div>
      {live.status === "failed" && <Failure error={live.error} again={live.retry} />}
      <Card
        title={
          <label className="filter">
            <span className="vh">Name, id or owner</span>
            <input
              type="search"
              placeholder="Name, id or owner"
              defaultValue={text}
              onChange={(e) => replace({ name: e.target.value })}
            />
          </label>
        }
        meta={num(shown.length)}
      >
        {live.status === "loading" ? (
          <Loading lines={5} />
        ) : all.length === 0 ? (
          <Empty title="No conversation yet" code="holdfast replay examples/gemini-live-session.jsonl">
            Start one, or watch a recorded voice session become one. It appears here while it happens.
          </Empty>
        ) : shown.length === 0 ? (
          <Empty title={`Nothing has “${text}” in its name`} />
        ) : (
          <Talks of={shown} />
        )}
      </Card>
    </>
  );
}

export function Conversation({ id }: { id: string }) {
  const view = useConversation(id, { messages: 200, signals: true });
  const now = useNow();
  const version = view.value?.version;
  const { events } = useEvents("conversation", id, version);
  const stored = useAsk(
    `stored ${id}`,
    (hf, signal) => hf.rpc.inspect.getObject({ ref: { kind: "conversation", objectId: id } }, { signal }),
    {
      since: version,
      off: version === undefined || version === 0,
    },
  );
  const past = useAsk(
    `calls ${id}`,
    (hf, signal) => hf.rpc.conversation.listRecords({ conversationId: id, types: ["tool_call"], pageSize: 200 }, { signal }),
    { since: version },
  );
  const calls = useMemo(() => {
    const all = new Map<number, conversation.ToolCall>();
    for (const r of past.value?.records ?? []) if (r.toolCall) all.set(r.toolCall.seq, r.toolCall);
    for (const t of view.value?.toolCalls ?? []) all.set(t.seq, t);
    return [...all.values()].sort((a, b) => a.seq - b.seq);
  }, [past.value, view.value?.toolCalls]);
  const c = view.value?.conversation;
  useTitle(c?.title);
  if (view.status === "failed" && !view.value) return <Failure error={view.error} again={view.retry} />;
  if (view.status === "loading") return <Loading lines={5} />;
  if (!c)
    return (
      <div className="card">
        <Empty page title={`There is no conversation ${id}`}>
          It appears here when it is made. If it was deleted,{" "}
          <a className="link" href={object("conversation", id)}>
            its versions
          </a>{" "}
          can bring it back.
        </Empty>
      </div>
    );
  const messages = view.value?.messages ?? [];
  const [mark, word] = going(c, now);
  const state = stored.value?.object?.state;
  return (
    <>
      <div className="head">
        <div className="grow">
          <div className="flex wrap">
            <h1>{c.title || c.conversationId}</h1>
            <span className={`chip ${mark === "live" ? "tide" : mark === "half" ? "warn" : ""}`}>
              <Mark as={mark} />
              {word}
              {mark === "live" && c.live?.openTime && `, ${span(now - Date.parse(c.live.openTime))}`}
            </span>
          </div>
          <p className="small">
            <code>{id}</code>, {c.owner ? `${c.owner}’s` : "the tenant’s"}
            {c.projectId && `, project ${c.projectId}`}, {count(c.messageCount, "message")}, {count(c.tokenCount, "token")}.{" "}
            <Renamed id={id} events={events} />
          </p>
        </div>
        <a className="btn" href={object("conversation", id)}>
          <Icon name="clock" />
          Versions<span className="d3 n">{num(c.version)}</span>
        </a>
      </div>
      <Voice c={c} messages={messages} calls={calls} events={events} state={state} />
      <Told id={id} version={c.version} messages={messages} calls={calls} total={c.messageCount} voice={view.value?.voice} />
      {calls.length > 0 && <Ledger calls={calls} c={c} />}
    </>
  );
}

/** Renamed says which change gave the title, and leads to the version before it. */
function Renamed({ id, events }: { id: string; events: readonly inspect.Event[] }) {
  const last = events.findLast((e) => e.fields.includes("title") && e.version > 1);
  const v = last?.version ?? 0;
  const asked = useAsk(
    `renamed ${id} ${v}`,
    (hf, signal) =>
      hf.rpc.inspect.diffObject(
        { ref: { kind: "conversation", objectId: id }, from: { version: v - 1 }, to: { version: v } },
        { signal },
      ),
    { off: v < 2 },
  );
  const before = asked.value?.fields.find((f) => f.field === "title")?.before;
  if (!last || !before) return null;
  return (
    <>
      Renamed by {who(last.actor)} at {clock(last.time)}, was “{String(before)}”.{" "}
      <a className="link" href={`${object("conversation", id)}?v=${v - 1}`}>
        Go back
      </a>
    </>
  );
}
