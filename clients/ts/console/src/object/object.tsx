// An object of any kind: as it is, as it was at each of its versions, and the way back.
import type { inspect } from "@holdfast/client";
import { useHoldfast, useLive } from "@holdfast/react";
import { useCallback, useState } from "react";
import { useAsk } from "../ask.ts";
import { best, object, replace, to, useRoute } from "../route.ts";
import { Act, Card, Confirm, Copy, Failure, Icon, In, Loading, Mark } from "../ui.tsx";
import { bytes, clock, count, who, words } from "../words.ts";
import { Events, Maker, standing, useEvents } from "./journal.tsx";
import { Parts } from "./parts.tsx";
import { Rail } from "./rail.tsx";
import { Restore } from "./restore.tsx";

export function Inspector({ kind, id }: { kind: string; id: string }) {
  const hf = useHoldfast();
  const { query } = useRoute();
  const live = useLive(`standing ${kind}/${id}`, (hf) => standing(hf, kind, id));
  const journal = useEvents(kind, id, live.value?.version);
  const { events } = journal;
  const last = events.at(-1);
  const now = last?.version ?? 0;
  const deleted = last?.type === "deleted";
  const asked = Number(query.get("v")) || (deleted ? now - 1 : now);
  const at = Math.min(Math.max(asked, events[0]?.version ?? 1), now);
  const past = at < now;
  const ref = { kind, objectId: id };
  const head = useAsk(`head ${kind}/${id}`, (hf, signal) => hf.rpc.inspect.getObject({ ref }, { signal }), {
    since: now,
    off: now === 0 || deleted,
  });
  const then = useAsk(
    `at ${kind}/${id} ${at}`,
    (hf, signal) => hf.rpc.inspect.getObject({ ref, at: { version: at } }, { signal }),
    { off: !past },
  );
  const diff = useAsk(
    `diff ${kind}/${id} ${at}`,
    (hf, signal) => hf.rpc.inspect.diffObject({ ref, from: { version: at }, to: { version: now }, pageSize: 200 }, { signal }),
    { since: now, off: !past || deleted },
  );
  const [undone, setUndone] = useState<{ restored: number; before: number; made: number }>();
  const show = useCallback(
    (v: number) => replace({ v: v >= now ? undefined : String(Math.max(v, events[0]?.version ?? 1)) }),
    [now, events],
  );
  const restore = async (version: number, ifVersion = now) => {
    const made = await hf.inspect(kind, id).restore({ version }, { ifVersion: deleted ? 0 : ifVersion });
    setUndone({ restored: made.restoredVersion, before: ifVersion, made: made.version });
    journal.again();
    replace({ v: undefined });
  };
  if (!last)
    return (
      <>
        <h1 className="vh">
          {kind} {id}
        </h1>
        {journal.error ? <Failure error={journal.error} again={journal.again} /> : <Loading lines={5} />}
      </>
    );
  const state = past ? then.value?.object : head.value?.object;
  const event = events.find((e) => e.version === at);
  const first = events[0];
  const got = head.value?.object;
  return (
    <>
      <div className="head">
        <div className="grow">
          <div className="flex wrap">
            <a className="chip" href={to("objects", kind)}>
              {kind}
            </a>
            <h1 className="mono idh">{id}</h1>
            <Copy className="ghost sm" text={id} name="Copy the id" label={<Icon name="copy" />} />
          </div>
          <p className="small">
            {got && (
              <>
                {got.owner ? `Owned by ${got.owner}` : "The tenant’s"}. {count(now, "version")} since {clock(got.createTime)},{" "}
                {count(got.size?.entryCount ?? 0, "entry", "entries")}, {count(got.timers.length, "timer")},{" "}
                {bytes((got.size?.stateBytes ?? 0) + (got.size?.entryBytes ?? 0))}.{" "}
                {got.expireTime ? `Kept until ${clock(got.expireTime)}.` : "Kept until it is deleted."}{" "}
                {got.hibernated && "It sleeps."}
              </>
            )}
          </p>
        </div>
        <div className="flex wrap acts">
          {best(kind, id) !== object(kind, id) && (
            <a className="btn" href={best(kind, id)}>
              Open the {kind}
            </a>
          )}
          <Confirm
            label="Copy as…"
            act="Copy curl"
            title="As a command"
            run={() => navigator.clipboard.writeText(curl(kind, id, past ? at : undefined))}
          >
            <pre className="code">{curl(kind, id, past ? at : undefined)}</pre>
            <pre className="code">{`holdfast object get ${kind} ${id}${past ? ` --at ${at}` : ""}`}</pre>
            <pre className="code">{`await hf.inspect("${kind}", "${id}").${past ? `at({ version: ${at} })` : "get()"}`}</pre>
          </Confirm>
          <button
            type="button"
            className="vh"
            data-key="y"
            tabIndex={-1}
            onClick={() => navigator.clipboard.writeText(curl(kind, id, past ? at : undefined))}
          >
            Copy as curl
          </button>
          {!deleted && (
            <Confirm
              label="Delete…"
              className="danger"
              main={false}
              act={`Delete ${id}`}
              title={`Delete ${id}?`}
              run={async () => (await hf.inspect(kind, id).delete({ ifVersion: now }), journal.again())}
            >
              <p>From then on it is not found. It can come back from here for a day at least.</p>
            </Confirm>
          )}
        </div>
      </div>
      {undone && now >= undone.made && (
        <div className="note tide" role="status">
          <span className="grow">
            <b>
              Version {undone.made} is version {undone.restored} again.
            </b>{" "}
            <span className="d2">Nothing was lost: version {undone.before} is in the journal.</span>
          </span>
          {undone.made === now && <Act label={`Undo, back to version ${undone.before}`} run={() => restore(undone.before)} />}
        </div>
      )}
      {deleted && (
        <div className="note warn" role="status">
          <span className="grow">
            <b>
              {id} was deleted by {who(last.actor)} at {clock(last.time)}.
            </b>{" "}
            <span className="d2">It can come back for a day at least.</span>
          </span>
          <Act label={`Restore version ${now - 1}`} run={() => restore(now - 1)} />
        </div>
      )}
      <Rail events={events} at={at} show={show} more={journal.more} />
      {past && !deleted && (
        <div className="note tide" role="status">
          <b>You look at version {at}.</b>
          <span className="grow d2 cut hide-s">
            Nothing changes until you restore. {count(now - at, "version")} came after it.
          </span>
          <button type="button" className="btn sm" data-key="End" onClick={() => show(now)}>
            Back to now
          </button>
        </div>
      )}
      <div className="g2 flip">
        <div>
          <Parts
            kind={kind}
            id={id}
            at={past ? at : undefined}
            then={state}
            now={past ? got : undefined}
            error={past ? then.error : head.error}
          />
          <Events events={events} at={at} show={show} more={journal.more} busy={journal.busy} />
        </div>
        <div>
          {past && !deleted && diff.error && <Failure error={diff.error} again={diff.again} />}
          {past && !deleted && !diff.value && !diff.error && (
            <Card title={`Restore version ${at}`}>
              <Loading />
            </Card>
          )}
          {past && !deleted && diff.value && (
            <Restore kind={kind} id={id} at={at} now={now} diff={diff.value} restore={() => restore(at)} />
          )}
          {event && <Maker event={event} first={first} />}
          {got && got.timers.length > 0 && !past && <Timers object={got} again={head.again} />}
        </div>
      </div>
    </>
  );
}

function curl(kind: string, id: string, version?: number): string {
  const body = JSON.stringify({ ref: { kind, objectId: id }, ...(version ? { at: { version: String(version) } } : {}) });
  return `curl ${new URL("..", location.href.split("#")[0]).href}holdfast.inspect.v1.InspectService/GetObject -H "Authorization: Bearer $HOLDFAST_TOKEN" -H 'Content-Type: application/json' -d '${body.replaceAll("'", "'\\''")}'`;
}

function Timers({ object: o, again }: { object: inspect.StoredObject; again(): void }) {
  const hf = useHoldfast();
  return (
    <Card title="Timers" meta={o.timers.length}>
      <table className="t">
        <tbody>
          {o.timers.map((t) => (
            <tr key={t.name}>
              <td className="cut">
                <Mark as={t.parked ? "sq" : "off"} />
                {words(t.name)}
                <small className="n">{clock(t.nextTime ?? t.dueTime)}</small>
              </td>
              <td className="r n d2">
                {t.parked ? (
                  <Act label="Try again" run={async () => (await hf.inspect(o.kind, o.objectId).retryTimer(t.name), again())} />
                ) : (
                  <In time={t.nextTime ?? t.dueTime} />
                )}
                <small>{t.attempts ? `${t.attempts} failed: ${t.lastError}` : "never failed"}</small>
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </Card>
  );
}
