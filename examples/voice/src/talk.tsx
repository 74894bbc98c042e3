import type { conversation } from "@holdfast/client";
import type { LiveConversation } from "@holdfast/react/voice";
import { useEffect, useRef, useState } from "react";
import { Icon } from "./icon.tsx";
import type { State } from "./page.tsx";

/** Talk is what was said, and the tools' cards where they were called. */
export function Talk({ talk, state }: { talk: LiveConversation; state: State }) {
  const end = useRef<HTMLOListElement>(null);
  const { messages, interim, toolCalls, queued } = talk;
  const last = messages.at(-1);
  const open = last?.role === "user" && last.status === "streaming" ? last : undefined;
  useEffect(() => {
    end.current?.scrollTo({ top: end.current.scrollHeight });
  }, [messages, interim, toolCalls.length, queued.length]);
  const cards = (after: number) => toolCalls.filter((c) => c.afterSeq === after).map((c) => <Card key={`t${c.seq}`} call={c} />);
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reached by keys
    <ol className="talk" aria-live="polite" aria-label="Conversation" ref={end} tabIndex={0}>
      {messages.length === 0 && !interim && <li className="none">Nothing was said yet.</li>}
      {cards(0)}
      {messages.flatMap((m) =>
        m.role === "tool"
          ? cards(m.seq)
          : [
              <Said key={m.seq} message={m} more={m === open ? interim : ""} cut={m === open && state === "resuming"} />,
              ...cards(m.seq),
            ],
      )}
      {interim && !open && (
        <li className="me">
          <p>
            <span className="im">{interim}</span>
            <span className="car" />
          </p>
        </li>
      )}
      {queued.map((text) => (
        <li className="me ty" key={text}>
          <p className="im">{text}</p>
        </li>
      ))}
    </ol>
  );
}

function Said({ message: m, more, cut }: { message: conversation.Message; more: string; cut: boolean }) {
  const [all, setAll] = useState(false);
  const mine = m.role === "user";
  const heard = m.spoken?.heardText;
  const lost = heard === undefined ? 0 : words(m.text) - words(heard);
  return (
    <li className={mine ? `me${m.modality === "voice" ? "" : " ty"}` : "it"}>
      <p>
        <span className="vh">{mine ? (m.modality === "voice" ? "You: " : "You, typed: ") : "The model: "}</span>
        {lost > 0 && !all ? heard : m.text}
        {more && <span className="im"> {more}</span>}
        {m.status === "streaming" && mine && !cut && <span className="car" />}
        {cut && <span className="sk" />}
        {lost > 0 && (
          <>
            <span className="ck" aria-hidden="true" />
            <button type="button" className="more" aria-expanded={all} onClick={() => setAll(!all)}>
              You cut in. {lost} {lost === 1 ? "word" : "words"} not heard
            </button>
          </>
        )}
      </p>
    </li>
  );
}

const words = (text: string): number => text.split(/\s+/).filter(Boolean).length;

const names: { [tool: string]: string } = { start_run: "Start a run", move_issue: "Move an issue" };

function Card({ call }: { call: conversation.ToolCall }) {
  const args = (call.args ?? {}) as { prompt?: string; issue?: string; state?: string };
  const what =
    call.name === "move_issue" ? `${args.issue} to ${args.state}` : [args.prompt, args.issue].filter(Boolean).join(", ");
  const run = (call.response as { run?: number } | undefined)?.run;
  return (
    <li className="tcard">
      <Icon name="tool" />
      <div className="grow">
        <b>{names[call.name] ?? call.name}</b>
        <span className="sub">{what}</span>
      </div>
      {call.status === "completed" ? (
        <span className={call.isError ? "st bad" : "st"}>
          {run && <span className="link">run {run}</span>}
          {!call.isError && <Icon name="check" />}
          {call.isError ? "Failed" : "Done"}
        </span>
      ) : (
        <span className="st run">
          <i className="spin" />
          {call.status === "cancelled" ? "Withdrawn" : "Runs"}
        </span>
      )}
    </li>
  );
}
