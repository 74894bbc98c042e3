// A conversation as it is, next to what a model is told of it.
import type { conversation } from "@holdfast/client";
import { useState } from "react";
import { useAsk } from "../ask.ts";
import { object } from "../route.ts";
import { Card, Empty, Failure, Icon, Seg } from "../ui.tsx";
import { count } from "../words.ts";
import { offset, textOf } from "./lane.ts";
import { argsOf, resultOf } from "./ledger.tsx";

const role = {
  user: ["User", "cu"],
  assistant: ["Model", "cmo"],
  system: ["System", "d2"],
  tool: ["Tool", "cto"],
  unspecified: ["", ""],
} as const;

/** Told is the conversation as it is, next to what a model would be told of it within a budget. */
export function Told(props: {
  id: string;
  version: number;
  messages: readonly conversation.Message[];
  calls: readonly conversation.ToolCall[];
  total: number;
  voice: { status: string; lastTranscription: string; interim: boolean } | undefined;
}) {
  const { id, messages, calls, voice } = props;
  const [budget, setBudget] = useState<"32000" | "8000" | "256">("8000");
  const asked = useAsk(
    `told ${id} ${budget}`,
    (hf, signal) =>
      hf.rpc.conversation.getContextWindow({ conversationId: id, budgetTokens: Number(budget), format: "neutral" }, { signal }),
    { since: props.version },
  );
  const { window: w, items = [] } = asked.value ?? {};
  const saidOf = new Map(items.flatMap((i) => (i.message ? [[i.message.seq, i.message] as const] : [])));
  const callsOf = new Map(items.flatMap((i) => (i.toolCall ? [[i.toolCall.seq, i.toolCall] as const] : [])));
  const summary = items.find((i) => i.summary)?.summary;
  const first = messages[0];
  const begin = Date.parse(first?.createTime ?? "");
  const rows = [
    ...messages.map((m) => ({ at: m.seq, m, t: undefined })),
    ...calls
      .filter((t) => !first || t.afterSeq >= first.seq)
      .map((t) => ({ at: t.afterSeq + 0.5 + t.seq / 1e6, m: undefined, t })),
  ].sort((a, b) => a.at - b.at);
  const why = (m: conversation.Message): string =>
    m.hidden
      ? "Hidden from models."
      : summary && m.seq <= summary.toSeq
        ? `In summary ${summary.seq}.`
        : m.status === "streaming"
          ? "Not yet: it is still being said."
          : "Left out: the budget is spent on newer ones.";
  return (
    <Card
      title="As it is, and as a model is told"
      meta={
        <>
          <span className="hide-s">
            {w &&
              `${count(w.totalTokens, "token")}${w.droppedCount ? `, ${w.droppedCount} left out` : ", all told"}${w.overBudget ? ", over the budget" : ""}`}
          </span>
          <Seg
            label="Budget in tokens"
            of={[
              ["32000", "32,000"],
              ["8000", "8,000"],
              ["256", "256"],
            ]}
            value={budget}
            set={setBudget}
          />
        </>
      }
    >
      {asked.error && <Failure error={asked.error} again={asked.again} />}
      <div className="chat">
        <div className="cm hd2">
          <div />
          <div />
          <div>As it is</div>
          <div className="told">As a model is told</div>
        </div>
        {props.total > messages.length && (
          <div className="brk">
            {count(props.total - messages.length, "older message")} are not shown here.{" "}
            <a className="link" href={object("conversation", id)}>
              Its entries have them
            </a>
          </div>
        )}
        {summary && (
          <div className="brk">
            Summary {summary.seq} stands for messages up to {summary.toSeq}: {summary.text}
          </div>
        )}
        {rows.length === 0 && <Empty title="Nothing was said yet">Messages appear here as they are said.</Empty>}
        {rows.map(({ m, t }) => {
          if (m) {
            const said = saidOf.get(m.seq);
            const text = textOf(m);
            const told = said && textOf(said);
            const heard = m.spoken?.heardText;
            const same = told === text;
            return (
              <div key={`m${m.seq}`} className={`cm ${same ? "" : "df"}`}>
                <div className="mt n">{m.seq}</div>
                <div className="wh">
                  <b className={role[m.role][1]}>{role[m.role][0]}</b>
                  <time>{offset(Date.parse(m.createTime ?? "") - begin, false)}</time>
                </div>
                <div className="as">
                  <p>
                    {heard !== undefined ? (
                      <>
                        {heard}
                        {m.status === "interrupted" && <i className="ck" />}
                        <del>{text.slice(heard.length)}</del>
                      </>
                    ) : (
                      text
                    )}
                    {m.modality !== "voice" && m.role === "user" && <span className="kd">typed</span>}
                    {m.status !== "complete" && m.status !== "unspecified" && <span className="kd">{m.status}</span>}
                    {m.pinned && <span className="kd">pinned</span>}
                  </p>
                </div>
                <div className="told">
                  {!asked.value ? null : same ? (
                    <span className="same">Same words, {count(m.tokenCount ?? 0, "token")}</span>
                  ) : told === undefined ? (
                    <span className="lo">{why(m)}</span>
                  ) : (
                    <>
                      {told || "Nothing"}
                      <span className="why">{heard !== undefined ? "cut to what was heard" : "told in other words"}</span>
                    </>
                  )}
                </div>
              </div>
            );
          }
          if (!t) return null;
          const told = callsOf.get(t.seq);
          const result = resultOf(t);
          return (
            <div key={`t${t.seq}`} className={`cm tc ${told ? "" : "df"}`}>
              <div />
              <div className="wh">
                <b className="flex">
                  <Icon name="tool" />
                  Tool
                </b>
                <time>{offset(Date.parse(t.createTime ?? "") - begin, false)}</time>
              </div>
              <div className="as">
                <p className="mono">
                  <b>{t.name}</b> <span className="d3">{t.callId}</span>
                  <br />
                  {argsOf(t)}
                  {result && (
                    <>
                      <br />
                      <span className={t.isError ? "bad" : "d3"}>
                        → {result.length > 400 ? `${result.slice(0, 400)}…` : result}
                      </span>
                    </>
                  )}
                </p>
              </div>
              <div className="told">
                {!asked.value ? null : told ? (
                  <span className="same">{result ? "The call and its response" : "The call, without a response"}</span>
                ) : (
                  <span className="lo">{result ? "Left out." : "Not yet told. It waits for its response."}</span>
                )}
              </div>
            </div>
          );
        })}
        {voice?.interim && voice.lastTranscription && (
          <div className="cm">
            <div />
            <div className="wh">
              <b className="cu">User</b>
            </div>
            <div className="as d3">{voice.lastTranscription}…</div>
            <div className="told">
              <span className="same">Being said</span>
            </div>
          </div>
        )}
      </div>
    </Card>
  );
}
