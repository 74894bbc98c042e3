// Who is signed in where, since when, and what happened to sessions.
import type { session } from "@holdfast/client";
import { useHoldfast, useWatch } from "@holdfast/react";
import { useAsk, useNow } from "./ask.ts";
import { object, to } from "./route.ts";
import { Card, Confirm, Empty, Failure, In, Loading, Mark } from "./ui.tsx";
import { clock, count, until, who, words } from "./words.ts";

export function Sessions({ user }: { user: string | undefined }) {
  const people = useAsk(
    "people",
    (hf, signal) => hf.rpc.inspect.listObjects({ kind: "user_sessions", pageSize: 200 }, { signal }),
    { every: 5000 },
  );
  const list = people.value?.objects ?? [];
  const chosen = user ?? list[0]?.owner;
  return (
    <>
      <div className="head">
        <div className="grow">
          <h1>{people.value ? `${count(list.length, "user")}${people.value.nextPageToken ? " or more" : ""}` : "Sessions"}</h1>
          <p>A session is a sign-in on one device. Its connections are the tabs that are open.</p>
        </div>
      </div>
      {people.error && <Failure error={people.error} again={people.again} />}
      {people.loading && !people.value && <Loading />}
      {people.value && list.length === 0 && (
        <div className="card">
          <Empty
            title="Nobody has signed in yet"
            code={`curl $HOLDFAST_API/holdfast.session.v1.SessionService/CreateSession -H "Authorization: Bearer $HOLDFAST_TOKEN" -H 'Content-Type: application/json' -d '{"user": "ada"}'`}
          >
            Your backend signs a user in, and the user’s pages go on with the session’s tokens.
          </Empty>
        </div>
      )}
      {list.length > 0 && (
        <div className="split">
          <nav className="card kinds" aria-label="Users">
            {list.map((o) => (
              <a key={o.objectId} data-row href={to("sessions", o.owner)} aria-current={o.owner === chosen ? "page" : undefined}>
                {o.owner}
              </a>
            ))}
          </nav>
          {chosen && <User key={chosen} user={chosen} id={list.find((o) => o.owner === chosen)?.objectId} />}
        </div>
      )}
    </>
  );
}

function User({ user, id }: { user: string; id: string | undefined }) {
  const hf = useHoldfast();
  const now = useNow();
  const live = useWatch({ session: { user } }, {}, (v) => ({
    sessions: [...v.things.values()]
      .flatMap((t) => t.session ?? [])
      .sort((a, b) => Date.parse(b.createTime ?? "") - Date.parse(a.createTime ?? "")),
    presence: v.things.get("presence")?.presence,
    version: v.version,
  }));
  const audit = useAsk(`audit ${user}`, (hf, signal) => hf.rpc.session.listSecurityEvents({ user, pageSize: 50 }, { signal }), {
    since: live.value?.version,
  });
  if (live.status === "failed") return <Failure error={live.error} again={live.retry} />;
  if (live.status === "loading") return <Loading lines={5} />;
  const { sessions, presence } = live.value;
  const over = (s: session.Session) => s.endReason !== "unspecified";
  const open = sessions.filter((s) => !over(s));
  return (
    <div>
      <Card
        title={
          <>
            <Mark as={presence?.online ? "live" : "off"} />
            <h2>{user}</h2>
            <span className="small d2">
              {presence?.online
                ? `here, ${count(presence.connections.length, "connection")}`
                : `away, last active ${clock(presence?.activeTime)}`}
            </span>
          </>
        }
        meta={
          <>
            {id && (
              <a className="link" href={object("user_sessions", id)}>
                Versions
              </a>
            )}
            {open.length > 0 && (
              <Confirm
                className="sm danger"
                main={false}
                label="End all…"
                act={`End ${count(open.length, "session")}`}
                title={`Sign ${user} out everywhere?`}
                run={() => hf.rpc.session.endSessions({ user, scope: "user" })}
              >
                <p>
                  Within two seconds no server takes their tokens. {user} can sign in again; an ended session does not come back.
                </p>
              </Confirm>
            )}
          </>
        }
      >
        {sessions.length === 0 && <Empty title={`${user} has no session`}>All of them have ended.</Empty>}
        <table className="t">
          <tbody>
            {sessions.map((s) => (
              <tr key={s.sessionId}>
                <td className="cut">
                  <Mark as={over(s) ? "off" : s.connections.length ? "live" : ""} />
                  <b>{s.device?.name || s.device?.platform || "a device without a name"}</b>
                  <small className="mono cut">{s.sessionId}</small>
                </td>
                <td className="cut">
                  {over(s) ? `ended: ${words(s.endReason)}` : count(s.connections.length, "connection")}
                  <small className="n cut">{over(s) ? clock(s.endTime) : `active ${clock(s.activeTime)}`}</small>
                </td>
                <td className="cut hide-s">
                  {s.activeConversationId ? (
                    <a className="link" href={to("c", s.activeConversationId)}>
                      {s.activeConversationId}
                    </a>
                  ) : (
                    "in no conversation"
                  )}
                  <small className="n">
                    {!over(s) && s.expireTime && until(s.expireTime, now) > 0 ? `until ${clock(s.expireTime)}` : ""}
                  </small>
                </td>
                <td className="r act">
                  {!over(s) && (
                    <Confirm
                      className="sm"
                      main={false}
                      label="End…"
                      act="End this session"
                      title="End this session?"
                      run={() => hf.rpc.session.endSessions({ scope: "named", sessionIds: [s.sessionId] })}
                    >
                      <p>Within two seconds no server takes its tokens. It does not come back; {user} can sign in again.</p>
                    </Confirm>
                  )}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </Card>
      <Card title="What happened" meta="newest first">
        {audit.error && <Failure error={audit.error} />}
        {audit.value?.events.length === 0 && <Empty title="Nothing yet" />}
        <table className="t">
          <tbody>
            {audit.value?.events.map((e) => (
              <tr key={e.seq}>
                <td className="cut">
                  <Mark as={/refused|reuse/.test(e.type) ? "ring" : e.type === "session_ended" ? "off" : ""} />
                  {words(e.type)}
                  {e.endReason !== "unspecified" && `: ${words(e.endReason)}`}
                  {e.count > 1 && `, ${e.count} times`}
                  <small className="mono cut">{e.sessionId}</small>
                </td>
                <td className="cut">
                  {who(e.actor)}
                  <small className="cut">{e.device?.name}</small>
                </td>
                <td className="r n d2">
                  {clock(e.eventTime)}
                  <small>
                    <In ago time={e.eventTime} />
                  </small>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </Card>
    </div>
  );
}
