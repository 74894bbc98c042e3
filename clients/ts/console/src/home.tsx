// What is live now, and what needs you.
import type { conversation, coordination } from "@holdfast/client";
import { useConversations, useWatch } from "@holdfast/react";
import { useAsk, useNow } from "./ask.ts";
import { best, object, to } from "./route.ts";
import { Card, Empty, Failure, In, Loading, Mark, type State, Window } from "./ui.tsx";
import { clock, count, num, span, until, who, words } from "./words.ts";

/** How a conversation goes, in a mark and a word. */
export function going(c: conversation.Conversation, now: number): [State, string] {
  const { voice, live } = c;
  if (held(c, now)) {
    if (voice?.status === "listening") return ["live", "Listening"];
    if (voice?.status === "responding") return ["live", "Speaking"];
    if (voice?.status === "processing") return ["live", "Thinking"];
    return ["live", "Connected"];
  }
  if (live && !live.closeTime) return ["half", "Fell silent"];
  return live ? ["off", "Closed"] : ["off", "Text only"];
}

/** Someone holds the microphone. */
export function held(c: conversation.Conversation, now: number): boolean {
  return !!c.live && !c.live.closeTime && until(c.live.lease?.expireTime, now) > 0;
}

/** How an API stands, in a mark and a sentence. */
export function standing(api: coordination.Api, now: number): [State, string] {
  const { breaker, pauseUntil } = api;
  if (until(pauseUntil, now) > 0) return ["ring", `Paused until ${clock(pauseUntil)}`];
  if (breaker?.status === "open")
    return until(breaker.retryTime, now) > 0
      ? ["ring", `Tries again in ${span(until(breaker.retryTime, now))}`]
      : ["half", "One call may try"];
  if (breaker?.status === "half_open") return ["half", "One call tries"];
  if (api.limits.some((l) => l.refused || l.remaining <= 0)) return ["half", "A limit is reached"];
  return ["", "Calls pass"];
}

/** The limit that is nearest to its end. */
export function tightest(api: coordination.Api): coordination.Standing | undefined {
  return [...api.limits].filter((l) => l.limit > 0).sort((a, b) => a.remaining / a.limit - b.remaining / b.limit)[0];
}

/** useApi1 shows an API live, and until then as the list had it. */
export function useLiveApi(listed: coordination.Api): coordination.Api {
  return useWatch({ api: listed.api }, {}, (view) => view.things.get("api")?.api ?? undefined).value ?? listed;
}

export function Home() {
  const now = useNow();
  const live = useConversations({}, { limit: 200 });
  const tasks = useWatch({ list: { tasks: { open: true }, limit: 200 } }, {}, (v) => v.things.size);
  const all = live.value ?? [];
  const apis = useAsk("apis", (hf, signal) => hf.rpc.coordination.listApis({ pageSize: 50 }, { signal }), { every: 15_000 });
  const timers = useAsk("timers", (hf, signal) => hf.rpc.inspect.listTimers({ pageSize: 200 }, { signal }), {
    every: 15_000,
    since: all,
  });
  const parked = useAsk("parked", (hf, signal) => hf.rpc.inspect.listTimers({ pageSize: 200, parked: true }, { signal }), {
    every: 15_000,
  });
  const people = useAsk(
    "people",
    (hf, signal) => hf.rpc.inspect.listObjects({ kind: "user_sessions", pageSize: 200 }, { signal }),
    { every: 15_000 },
  );
  const open = all.filter((c) => held(c, now));
  const speaking = open.filter((c) => c.voice && ["listening", "processing", "responding"].includes(c.voice.status));
  const stuck = parked.value?.timers ?? [];
  const bad = (apis.value?.apis ?? []).filter((a) => standing(a, now)[0] !== "");
  const needs = stuck.length + bad.length;
  const some = (n: number, page?: string) => (page ? `${num(n)}+` : num(n));
  const newest = [...all].sort(
    (a, b) => Number(held(b, now)) - Number(held(a, now)) || Date.parse(b.updateTime ?? "") - Date.parse(a.updateTime ?? ""),
  );
  if (live.status === "failed") return <Failure error={live.error} again={live.retry} />;
  return (
    <>
      <div className="head">
        <div className="grow">
          <h1>
            {live.status === "loading"
              ? "Home"
              : `${open.length ? `${count(open.length, "conversation")} ${open.length === 1 ? "is" : "are"} live` : "Nothing is live"}${needs ? `, ${count(needs, "thing needs", "things need")} you` : ""}`}
          </h1>
          <p>
            {bad.map((a) => (
              <span key={a.api}>
                <a className="link" href={to("apis", a.api)}>
                  {a.api}
                </a>
                : {standing(a, now)[1].toLowerCase()}.{" "}
              </span>
            ))}
            {stuck.length > 0 && (
              <>
                <a className="link" href={to("timers")}>
                  {count(stuck.length, "timer")}
                </a>{" "}
                {stuck.length === 1 ? "is" : "are"} parked after too many tries.{" "}
              </>
            )}
            {needs ? "All else runs." : "All runs."}
          </p>
        </div>
      </div>
      <div className="strip">
        <a href={to("conversations")}>
          <span>Conversations</span>
          <b>{all.length === 200 ? "200+" : num(all.length)}</b>
        </a>
        <a href={to("conversations")}>
          <span>Voice turns</span>
          <b>{speaking.length}</b>
          <small>{speaking.length ? speaking.map((c) => going(c, now)[1].toLowerCase())[0] : "nobody speaks"}</small>
        </a>
        <a href={to("conversations")}>
          <span>Floors held</span>
          <b>{open.length}</b>
          <small>{count(new Set(open.map((c) => c.live?.device?.name)).size, "device")}</small>
        </a>
        <a href={to("sessions")}>
          <span>Signed in</span>
          <b>{people.value ? some(people.value.objects.length, people.value.nextPageToken) : "0"}</b>
          <small>{people.value?.objects.length === 1 ? "user" : "users"}</small>
        </a>
        <a href={to("projects")}>
          <span>Agents’ tasks</span>
          <b>{num(tasks.value ?? 0)}</b>
          <small>open</small>
        </a>
        <a href={to("timers")}>
          <span>Timers</span>
          <b>{timers.value ? some(timers.value.timers.length, timers.value.nextPageToken) : "0"}</b>
          <small className={stuck.length ? "bad" : ""}>{stuck.length ? `${stuck.length} parked` : "none parked"}</small>
        </a>
      </div>
      <div className="g2">
        <div>
          <Card
            title={open.length ? "Live now" : "Latest"}
            meta={
              <a className="link" href={to("conversations")}>
                All conversations
              </a>
            }
          >
            {live.status === "loading" ? (
              <Loading />
            ) : all.length === 0 ? (
              <Empty title="No conversation yet" code="holdfast replay examples/gemini-live-session.jsonl">
                Start one, or watch a recorded voice session become one. It appears here while it happens.
              </Empty>
            ) : (
              <Talks of={newest.slice(0, 8)} />
            )}
          </Card>
          <TimerCard
            timers={[
              ...stuck,
              ...(timers.value?.timers ?? [])
                .filter((t) => !t.parked)
                .sort((a, b) => Date.parse(a.nextTime ?? "") - Date.parse(b.nextTime ?? "")),
            ].slice(0, 5)}
          />
        </div>
        <div>
          <Card
            title="APIs"
            meta={
              <a className="link" href={to("apis")}>
                Open
              </a>
            }
          >
            {apis.error && <Failure error={apis.error} />}
            {apis.value?.apis.slice(0, 6).map((a) => (
              <ApiRow key={a.api} listed={a} />
            ))}
            {apis.value?.apis.length === 0 && (
              <Empty title="No API was called yet">The coordinator shows each provider here from its first call on.</Empty>
            )}
          </Card>
          <Linear api={apis.value?.apis.find((a) => a.api === "linear")} />
        </div>
      </div>
    </>
  );
}

/** Talks are conversations as rows. */
export function Talks({ of }: { of: readonly conversation.Conversation[] }) {
  const now = useNow();
  return (
    <table className="t talks">
      <thead>
        <tr>
          <th>Conversation</th>
          <th>Turn</th>
          <th>Microphone</th>
          <th className="r hide-s">Changed</th>
        </tr>
      </thead>
      <tbody>
        {of.map((c) => {
          const [mark, word] = going(c, now);
          return (
            <tr key={c.conversationId}>
              <td className="cut">
                <a className="b" data-row href={to("c", c.conversationId)}>
                  {c.title || c.conversationId}
                </a>
                <small className="cut">
                  {c.voice?.lastTranscription ? `“${c.voice.lastTranscription}”` : c.title ? c.conversationId : "without a title"}
                </small>
              </td>
              <td className="cut">
                <Mark as={mark} />
                {word}
                <small>{count(c.messageCount, "message")}</small>
              </td>
              <td className="cut">
                {held(c, now) ? [who(c.live?.user), c.live?.device?.name].filter(Boolean).join(", ") : "nobody"}
                <small className="n">
                  {held(c, now)
                    ? `floor, ${span(until(c.live?.lease?.expireTime, now))} left`
                    : c.live
                      ? `${c.live.user && `${c.live.user} `}until ${clock(c.live.closeTime ?? c.live.lease?.expireTime)}`
                      : who(c.owner, "the tenant’s")}
                </small>
              </td>
              <td className="r n hide-s">
                {clock(c.updateTime)}
                <small>{c.live ? `epoch ${c.live.lease?.fencingToken ?? 0}` : `version ${c.version}`}</small>
              </td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}

function TimerCard({ timers }: { timers: import("@holdfast/client").inspect.Timer[] }) {
  return (
    <Card
      title="Timers"
      meta={
        <a className="link" href={to("timers")}>
          All
        </a>
      }
    >
      {timers.length === 0 && (
        <Empty title="Nothing waits">Objects set timers to be woken: a silent voice turn, a session that ends.</Empty>
      )}
      <table className="t">
        <tbody>
          {timers.map((t) => (
            <tr key={`${t.kind}/${t.objectId}/${t.name}`}>
              <td className="cut">
                <Mark as={t.parked ? "sq" : "off"} />
                <a data-row href={best(t.kind, t.objectId)}>
                  <b>{words(t.name)}</b> of {t.kind}/{t.objectId}
                </a>
                <small className="cut">
                  {t.parked
                    ? `Parked after ${t.attempts} tries: ${t.lastError}`
                    : t.attempts
                      ? `Failed ${t.attempts} times: ${t.lastError}`
                      : "Never failed"}
                </small>
              </td>
              <td className="n d2 r">
                {t.parked ? "parked" : <In time={t.nextTime ?? t.dueTime} />}
                <small>{clock(t.nextTime ?? t.dueTime)}</small>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </Card>
  );
}

function ApiRow({ listed }: { listed: coordination.Api }) {
  const api = useLiveApi(listed);
  const now = useNow();
  const [mark, word] = standing(api, now);
  const limit = tightest(api);
  return (
    <a className="apir" data-row href={to("apis", api.api)}>
      <span className="flex">
        <Mark as={mark} />
        <b>{api.api}</b>
        <span className="small">{mark ? word : ""}</span>
        <span className="grow" />
        <span className="small n d2">{api.inFlight} in flight</span>
      </span>
      {limit && (
        <>
          <Window
            used={limit.limit - limit.remaining}
            limit={limit.limit}
            label={`${api.api} ${limit.policy}`}
            refused={limit.refused}
          />
          <span className="flex small d3 n">
            <span className="cut grow">{words(limit.policy)}</span>
            {num(limit.limit - limit.remaining)} of {num(limit.limit)}
          </span>
        </>
      )}
    </a>
  );
}

function Linear({ api }: { api: coordination.Api | undefined }) {
  const sync = Object.entries(api?.sync ?? {});
  if (sync.length === 0) return null;
  return (
    <Card
      title="Linear"
      meta={
        <a className="link" href={object("api", "linear")}>
          As stored
        </a>
      }
    >
      <dl className="kv small pad">
        {sync.map(([resource, s]) => (
          <div key={resource} className="kvrow">
            <dt>{words(resource)}</dt>
            <dd className="n">
              {s.error ? (
                <span className="bad">{s.error}</span>
              ) : s.passEndTime ? (
                `read whole at ${clock(s.passEndTime)}`
              ) : (
                "being read"
              )}
              {s.lastWebhookTime && `, last webhook ${clock(s.lastWebhookTime)}`}
              {s.webhookLag && `, ${span(Number.parseFloat(s.webhookLag) * 1000)} behind`}
            </dd>
          </div>
        ))}
      </dl>
    </Card>
  );
}
