// The tool calls of a conversation: who claimed them, and where their results went.
import type { conversation } from "@holdfast/client";
import { useNow } from "../ask.ts";
import { Card, Mark } from "../ui.tsx";
import { span, until, words } from "../words.ts";

export function argsOf(t: conversation.ToolCall): string {
  return t.argsJson || (t.args ? JSON.stringify(t.args) : t.argsOmitted || "without arguments");
}

export function resultOf(t: conversation.ToolCall): string {
  return t.responseJson || (t.response !== undefined ? JSON.stringify(t.response) : t.responseOmitted || "");
}

const marks = {
  pending: "wait",
  running: "live",
  completed: "",
  cancelled: "off",
  orphaned: "half",
  unspecified: "off",
} as const;

export function Ledger({ calls, c }: { calls: readonly conversation.ToolCall[]; c: conversation.Conversation }) {
  const now = useNow();
  const done = calls.filter((t) => t.status === "completed").length;
  return (
    <Card title="Tool calls" meta={`${done} done, ${calls.length - done} not`}>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls is reached by keys */}
      <section className="tw" tabIndex={0} aria-label="The ledger, scrolls sideways">
        <table className="t wide">
          <thead>
            <tr>
              <th>Call</th>
              <th>Asked</th>
              <th>Claimed by</th>
              <th>State</th>
              <th>Where the result went</th>
            </tr>
          </thead>
          <tbody>
            {calls.map((t) => {
              const lasted = Date.parse(t.updateTime ?? "") - Date.parse(t.createTime ?? "");
              const open = t.status === "pending" || t.status === "running";
              return (
                <tr key={t.seq}>
                  <td className="cut">
                    <b>{t.name}</b>
                    <small className="mono cut">{t.callId}</small>
                  </td>
                  <td>
                    epoch {t.fromConnection}
                    <small>{t.afterSeq ? `after message ${t.afterSeq}` : "at the beginning"}</small>
                  </td>
                  <td className="cut">
                    {t.claim?.holder || (t.claim ? "its connection" : "nobody")}
                    <small className="n">
                      {t.claim
                        ? `fence ${t.claim.fencingToken}${open ? `, lease ${span(Math.max(0, until(t.claim.expireTime, now)))}` : ""}`
                        : open
                          ? "a worker may claim it"
                          : ""}
                    </small>
                  </td>
                  <td>
                    <Mark as={marks[t.status]} />
                    {t.status === "orphaned" ? "Its socket is gone" : words(t.status).replace(/^./, (a) => a.toUpperCase())}
                    <small className="n">
                      {open ? `for ${span(now - Date.parse(t.createTime ?? ""))}` : `in ${span(lasted)}`}
                    </small>
                  </td>
                  <td>
                    {t.resultSeq
                      ? `Message ${t.resultSeq}`
                      : t.deliveredConnection
                        ? `A frame on epoch ${t.deliveredConnection}`
                        : t.status === "completed"
                          ? "Not told yet"
                          : "Nowhere yet"}
                    <small>
                      {t.resultSeq
                        ? "as text, since its socket was gone"
                        : t.isError
                          ? "as an error"
                          : !t.deliveredConnection && c.live
                            ? "if the socket goes: a message"
                            : ""}
                    </small>
                  </td>
                </tr>
              );
            })}
          </tbody>
        </table>
      </section>
    </Card>
  );
}
