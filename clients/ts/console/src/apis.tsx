// How the providers' APIs stand: limits while they fill, the breaker, who waits and why.
import type { coordination } from "@holdfast/client";
import { useHoldfast, useWatch } from "@holdfast/react";
import { useAsk, useNow } from "./ask.ts";
import { standing, tightest, useLiveApi } from "./home.tsx";
import { object, to } from "./route.ts";
import { Card, Confirm, Empty, Failure, In, Loading, Mark, type State, vars, Window } from "./ui.tsx";
import { clock, count, ms, num, sentence, span, until, who, words } from "./words.ts";

export function Apis({ name }: { name: string | undefined }) {
  const list = useAsk("apis", (hf, signal) => hf.rpc.coordination.listApis({ pageSize: 50 }, { signal }), { every: 15_000 });
  const apis = list.value?.apis ?? [];
  const chosen = name ?? apis[0]?.api;
  if (list.error && apis.length === 0) return <Failure error={list.error} again={list.again} />;
  return (
    <>
      {list.loading && !list.value && <Loading lines={5} />}
      {list.value && apis.length === 0 && !name && (
        <div className="card">
          <Empty
            title="No API was called yet"
            code={`curl $HOLDFAST_API/holdfast.coordination.v1.CoordinationService/Acquire -H "Authorization: Bearer $HOLDFAST_TOKEN" -H 'Content-Type: application/json' -d '{"api": "gemini", "operation": "generate"}'`}
          >
            The coordinator keeps one limit and one breaker for all processes. A provider appears here from its first call on.
          </Empty>
        </div>
      )}
      <nav className="aps" aria-label="API">
        {apis.map((a) => (
          <Tile key={a.api} listed={a} on={a.api === chosen} />
        ))}
      </nav>
      {chosen && <Api key={chosen} name={chosen} />}
    </>
  );
}

function Tile({ listed, on }: { listed: coordination.Api; on: boolean }) {
  const api = useLiveApi(listed);
  const now = useNow();
  const [mark, word] = standing(api, now);
  const limit = tightest(api);
  return (
    <a className="ap" data-row href={to("apis", api.api)} aria-current={on ? "true" : undefined}>
      <span className="flex">
        <Mark as={mark} />
        <b>{api.api}</b>
      </span>
      <span className="small cut">{word}</span>
      <span className="small d3 n">{api.inFlight} in flight</span>
      {limit && (
        <Window
          used={limit.limit - limit.remaining}
          limit={limit.limit}
          label={`${api.api} ${limit.policy}`}
          refused={limit.refused}
        />
      )}
    </a>
  );
}

/** Why a call waits, in words. */
const waits: { [status in coordination.CallStatus]?: [State, string, string] } = {
  unknown: ["sq", "Nobody knows whether it happened", "It was sent and no answer came. It is never just sent again."],
  reconciling: ["half", "Someone finds out whether it happened", "It is not sent again meanwhile."],
  retryable: ["wait", "Its own back-off", "It failed, and may be tried again."],
  in_flight: ["live", "In flight", "It was sent, and its answer is awaited."],
};

function Api({ name }: { name: string }) {
  const hf = useHoldfast();
  const now = useNow();
  const live = useWatch({ api: name }, {}, (v) => ({ api: v.things.get("api")?.api, version: v.version }));
  const version = live.value?.version;
  const asked = useAsk(
    `api ${name}`,
    (hf, signal) => hf.rpc.coordination.getApi({ api: name, usageDays: 14, pageSize: 14 }, { signal }),
    { since: version },
  );
  const calls = useAsk(
    `calls ${name}`,
    (hf, signal) =>
      hf.rpc.coordination.listCalls(
        { api: name, statuses: ["unknown", "reconciling", "retryable", "in_flight"], pageSize: 100 },
        { signal },
      ),
    { since: version },
  );
  const api = live.value?.api ?? asked.value?.api;
  if (asked.error) return <Failure error={asked.error} again={asked.again} />;
  if (!api) return <Loading lines={5} />;
  const [mark, word] = standing(api, now);
  const b = api.breaker;
  const paused = until(api.pauseUntil, now) > 0;
  const list = calls.value?.calls ?? [];
  const rank = ["unknown", "reconciling", "retryable", "in_flight"];
  list.sort((x, y) => rank.indexOf(x.status) - rank.indexOf(y.status));
  const unknown = list.filter((c) => c.status === "unknown").length;
  const why = paused
    ? `Every call waits until ${clock(api.pauseUntil)}.`
    : b && b.status !== "closed"
      ? `${count(b.consecutiveFailures, "call")} in a row failed; it opened at ${clock(b.openTime)}. If the next one passes, all go on. If it fails, all wait again.`
      : b && b.calls > 0
        ? `${count(b.failures, "failure")} in the last ${count(b.calls, "call")}.`
        : "Its breaker is closed.";
  return (
    <>
      <div className="head">
        <div className="grow">
          <div className="flex wrap">
            <h1>{name}</h1>
            <span className={`chip ${mark === "" ? "ok" : mark === "half" ? "warn" : "bad"}`}>
              <Mark as={mark} />
              {word}
            </span>
          </div>
          <p>{why}</p>
        </div>
        <div className="flex wrap acts">
          <a className="btn" href={object("api", name)}>
            Versions
          </a>
          {paused ? (
            <Confirm
              label="End the pause…"
              act="End the pause"
              title={`End the pause of ${name}?`}
              run={() => hf.rpc.coordination.updateApi({ api: name, clear: ["pause"] })}
            >
              <p>What waits goes out as its limits allow. If the provider still refuses, it is paused again.</p>
            </Confirm>
          ) : (
            <Confirm
              label="Pause…"
              act="Pause 10 min"
              title={`Pause ${name} for 10 minutes?`}
              run={() =>
                hf.rpc.coordination.report({ api: name, response: { httpStatus: 429, headers: { "retry-after": "600" } } })
              }
            >
              <p>
                Every caller is told to wait, as if {name} itself had asked for it with Retry-After. Calls in flight go on. You
                can end it here.
              </p>
            </Confirm>
          )}
          {b && b.status !== "closed" && (
            <Confirm
              label="Clear breaker…"
              act="Clear breaker"
              title="Clear the breaker?"
              run={() => hf.rpc.coordination.updateApi({ api: name, clear: ["breaker"] })}
            >
              <p>
                What waits goes out at once. If {name} is still down, as many failures as before open it again. The journal notes
                that you did it.
              </p>
            </Confirm>
          )}
        </div>
      </div>
      <Card
        title="Windows"
        meta={
          <span className="hide-s">
            {api.readyMade ? "as documented by the provider, corrected by its answers" : "as configured"}
          </span>
        }
      >
        {api.limits.length === 0 && <Empty title="No limit">Calls of this API are counted, and none is held back.</Empty>}
        <ul>
          {api.limits.map((l) => (
            <li key={`${l.policy} ${l.scope}`} className="wr">
              <div>
                <b>{words(l.policy)}</b>
                <small className="sub">
                  {num(l.limit)} {l.unit === "cost" ? "points" : ""} {l.window ? `in ${span(ms(l.window))}` : "at once"}
                  {l.scope === "user" && ", a user"}
                </small>
              </div>
              <div className="wb">
                <Window big used={l.limit - l.remaining} limit={l.limit} label={words(l.policy)} refused={l.refused} />
                <div className="flex small n">
                  <span className="grow d2">
                    {num(l.limit - l.remaining)} of {num(l.limit)}
                  </span>
                  <span className="d3">{ms(l.resetAfter) > 0 ? `all free in ${span(ms(l.resetAfter))}` : "all free"}</span>
                </div>
              </div>
              <div className="n lf">
                <b>{num(l.remaining)}</b> left
                <small className="sub">{ms(l.retryAfter) > 0 ? `next in ${span(ms(l.retryAfter))}` : "the next passes"}</small>
              </div>
            </li>
          ))}
        </ul>
      </Card>
      <Card
        title="Who waits"
        meta={`${list.length ? count(list.length, "call") : "nobody"}${unknown ? `, ${count(unknown, "needs", "need")} you` : ""}`}
      >
        {calls.error && <Failure error={calls.error} />}
        {list.length === 0 ? (
          <Empty title="Nobody waits">
            A call that is in flight, backs off, or whose outcome is not known appears here with the reason.
          </Empty>
        ) : (
          <table className="t">
            <thead>
              <tr>
                <th className="why1">Why</th>
                <th>Call</th>
                <th className="hide-s">Holder</th>
                <th className="r">Until</th>
              </tr>
            </thead>
            <tbody>
              {list.map((c) => {
                const [m, title, more] = waits[c.status] ?? ["off", words(c.status), ""];
                return (
                  <tr key={`${c.owner} ${c.key}`}>
                    <td className="cut">
                      <Mark as={m} />
                      <b>{title}</b>
                      <small className="cut">{c.error || more}</small>
                    </td>
                    <td className="cut">
                      {c.operation || "a call"}
                      <small className="mono cut">{c.key}</small>
                    </td>
                    <td className="cut hide-s">
                      {c.lease?.holder || "nobody"}
                      <small>{who(c.owner, "the tenant")}</small>
                    </td>
                    <td className="n r">
                      {c.status === "unknown"
                        ? "until you look"
                        : c.notBefore && until(c.notBefore, now) > 0
                          ? clock(c.notBefore)
                          : c.lease?.expireTime
                            ? clock(c.lease.expireTime)
                            : "its next try"}
                      <small>{c.status === "unknown" ? <In ago time={c.beginTime} /> : `attempt ${c.attempt}`}</small>
                    </td>
                  </tr>
                );
              })}
            </tbody>
          </table>
        )}
      </Card>
      <Usage days={asked.value?.usage ?? []} today={api.today} />
    </>
  );
}

function Usage({ days, today }: { days: coordination.UsageDay[]; today: coordination.UsageDay | undefined }) {
  const all = [...days.filter((d) => d.date !== today?.date), ...(today ? [today] : [])]
    .sort((a, b) => a.date.localeCompare(b.date))
    .slice(-14);
  const failed = (d: coordination.UsageDay) => d.failed + d.retryable;
  const most = Math.max(1, ...all.map((d) => Math.max(d.permits, d.completed + failed(d) + d.unknown)));
  const h = (n: number) => vars({ "--h": (n / most) * 80 });
  const last = all.at(-1);
  return (
    <Card
      title="Usage by day"
      meta={
        <>
          <span className="key">
            <i className="us" />
            passed
          </span>
          <span className="key">
            <i className="fk" />
            failed
          </span>
          <span className="key">
            <i className="uk" />
            unknown
          </span>
        </>
      }
      footer={
        last
          ? `${sentence(last.date)}: ${num(last.completed)} passed, ${num(failed(last))} failed, ${num(last.unknown)} unknown, ${num(last.permits)} taken from limits${last.cost ? `, ${num(last.cost)} points` : ""}.`
          : undefined
      }
    >
      {all.length === 0 && <Empty title="Not used yet" />}
      <ol className={all.length ? "days" : "vh"} aria-label="Calls by day">
        {all.map((d) => (
          <li key={d.date} title={`${d.date}: ${num(d.permits)}`}>
            {d.unknown > 0 && <i className="u" style={h(d.unknown)} />}
            {failed(d) > 0 && <i className="f" style={h(failed(d))} />}
            <i style={h(Math.max(d.completed, d.permits - failed(d) - d.unknown))} />
            <span>{d === today ? "today" : d.date.slice(8)}</span>
          </li>
        ))}
      </ol>
    </Card>
  );
}
