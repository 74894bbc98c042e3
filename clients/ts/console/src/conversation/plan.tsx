// What happens if the socket dies now, in words.
import type { conversation, JsonObject, live } from "@holdfast/client";
import { useHoldfast } from "@holdfast/react";
import { useMemo, useState } from "react";
import { useAsk, useNow } from "../ask.ts";
import { Card, explain, Mark, Seg } from "../ui.tsx";
import { clock, count, ms, span, until } from "../words.ts";
import { handlesOf } from "./lane.ts";

/** What the plan says, in a verdict and its reasons. */
function verdict(plan: live.Plan): ["" | "half" | "off", string] {
  const told = turnsOf(plan);
  if (plan.reason === "resumed") return ["", told ? "Resume, and tell it what it missed." : "Resume at once. No word is lost."];
  const why = {
    first: "Begin: it is the first connection.",
    handle_expired: "Start fresh: the handle is too old.",
    handle_refused: "Start fresh: the handle was refused.",
    setup_changed: "Start fresh.",
    no_handle: "Start fresh: there is no handle to resume with.",
  };
  return ["half", why[plan.reason as keyof typeof why] ?? "Start fresh."];
}

function turnsOf(plan: live.Plan): number {
  const content = (plan.send?.["clientContent"] ?? {}) as JsonObject;
  return Array.isArray(content["turns"]) ? content["turns"].length : 0;
}

export function Plan({ c, state }: { c: conversation.Conversation; state: JsonObject | undefined }) {
  const [how, setHow] = useState<"now" | "fresh">("now");
  const now = useNow();
  const hf = useHoldfast();
  // A handle is given to the user who received it, so the question is asked as that user.
  const user = c.live?.user;
  const as = useMemo(() => (user ? hf.as(user) : hf), [hf, user]);
  const stored = state?.["live"] as JsonObject | undefined;
  const fencingToken = c.live?.lease?.fencingToken;
  const asked = useAsk(
    `plan ${c.conversationId} ${how} ${user}`,
    (_, signal) =>
      as.rpc.live.connectLive(
        {
          conversationId: c.conversationId,
          validateOnly: true,
          takeOver: true,
          setupHash: how === "fresh" ? "another" : String(stored?.["setup_hash"] ?? ""),
          ...(c.live ? { provider: c.live.provider } : {}),
          ...(fencingToken ? { previous: { fencingToken } } : {}),
        },
        { signal },
      ),
    { since: c.version, off: !stored },
  );
  const plan = asked.value?.plan;
  const handle = handlesOf(state).findLast((h) => h.resumable);
  if (!c.live) return null;
  const [mark, says] = plan ? verdict(plan) : (["off", ""] as const);
  const told = plan ? turnsOf(plan) : 0;
  return (
    <Card title="If the socket dies now">
      <div className="pad">
        <Seg
          label="When"
          of={[
            ["now", "Now"],
            ["fresh", "If it must start fresh"],
          ]}
          value={how}
          set={setHow}
        />
        {asked.error && <p className="bad small">{explain(asked.error)}</p>}
        {plan && (
          <div className="pl">
            <p className="verdict">
              <Mark as={mark} />
              {says}
            </p>
            <ul>
              {plan.reason === "resumed" && handle && (
                <li>
                  <i className="y">✓</i>
                  <span>
                    Handle {handle.id} came at {clock(new Date(handle.at).toISOString())}, {span(now - handle.at)} ago.
                  </span>
                </li>
              )}
              {told > 0 ? (
                <li>
                  <i>→</i>
                  <span>
                    {plan.reason === "resumed" ? "It does not know all." : "A new session knows nothing."} {count(told, "turn")}{" "}
                    {told === 1 ? "is" : "are"} told after the setup.
                  </span>
                </li>
              ) : (
                <li>
                  <i className="y">✓</i>
                  <span>It knows every message. Nothing is told again.</span>
                </li>
              )}
              {plan.toolCalls.map((t) => (
                <li key={t.seq}>
                  <i className="w">!</i>
                  <span>
                    <code>{t.callId || t.name}</code> has no response yet.{" "}
                    {t.claim ? `It goes on at ${t.claim.holder}.` : "Nobody has claimed it."} Its result becomes a message if the
                    session is another.
                  </span>
                </li>
              ))}
              {plan.connectAfter && ms(plan.connectAfter) > 0 && (
                <li>
                  <i className="w">!</i>
                  <span>Wait {span(ms(plan.connectAfter))} before connecting.</span>
                </li>
              )}
              {c.live.goAwayTime && until(c.live.goAwayTime, now) > 0 && (
                <li>
                  <i className="w">!</i>
                  <span>Google closes this socket at {clock(c.live.goAwayTime)}.</span>
                </li>
              )}
              <li>
                <i className="y">✓</i>
                <span>
                  Epoch {fencingToken} is stored up to frame {c.live.storedThrough}. Newer ones are sent again.
                </span>
              </li>
            </ul>
          </div>
        )}
      </div>
    </Card>
  );
}
