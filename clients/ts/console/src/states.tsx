// Objects of your own: their state, edited at the version that was read.
import type { JsonObject, state } from "@holdfast/client";
import { useHoldfast, useWatch } from "@holdfast/react";
import { useState } from "react";
import { useAct, useAsk } from "./ask.ts";
import { go, object, to, useRoute } from "./route.ts";
import { Card, Empty, explain, Failure, In, Loading } from "./ui.tsx";
import { clock, count, num, who } from "./words.ts";

/** The link to an object; its owner is part of its name. */
const linkTo = (o: state.Object) =>
  `${to("s", o.ref?.type ?? "", o.ref?.name ?? "")}${o.owner ? `?owner=${encodeURIComponent(o.owner)}` : ""}`;

export function States({ type, name }: { type: string | undefined; name: string | undefined }) {
  const { query } = useRoute();
  if (type && name)
    return (
      <OneState key={`${type}/${name}/${query.get("owner")}`} type={type} name={name} owner={query.get("owner") ?? undefined} />
    );
  return <List type={type} />;
}

function List({ type: asked }: { type: string | undefined }) {
  const types = useAsk("types", (hf, signal) => hf.rpc.state.listTypes({ pageSize: 200 }, { signal }));
  const declared = types.value?.types ?? [];
  const type = asked ?? declared[0]?.type;
  const list = useAsk(
    `states ${type}`,
    (hf, signal) => hf.rpc.state.listStates({ pageSize: 200, filter: { type: type ?? "" } }, { signal }),
    { every: 5000, off: !type },
  );
  const objects = list.value?.objects ?? [];
  const names = [...new Set([...declared.map((t) => t.type), ...(asked ? [asked] : [])])].sort();
  return (
    <>
      <div className="head">
        <div className="grow">
          <h1>{type ?? "Objects of your own"}</h1>
          <p>
            A JSON state and entries, by type and name.{" "}
            {declared.length
              ? `${count(declared.length, "type is", "types are")} declared with a schema.`
              : "No type is declared with a schema."}
          </p>
        </div>
      </div>
      {list.error && <Failure error={list.error} again={list.again} />}
      <div className="split">
        <nav className="card kinds" aria-label="Types">
          <form
            onSubmit={(e) => {
              e.preventDefault();
              const name = String(new FormData(e.currentTarget).get("type")).trim();
              if (name) go(to("states", name));
            }}
          >
            <label>
              <span className="vh">Another type</span>
              <input name="type" type="search" placeholder="A type" autoComplete="off" />
            </label>
          </form>
          {names.map((n) => (
            <a key={n} href={to("states", n)} aria-current={n === type ? "page" : undefined}>
              {n}
            </a>
          ))}
        </nav>
        <Card title="Objects" meta={objects.length > 0 && `${num(objects.length)}${list.value?.nextPageToken ? "+" : ""}`}>
          {(types.loading || (type && list.loading)) && !list.value && <Loading />}
          {(list.value || (types.value && !type)) && objects.length === 0 && (
            <Empty
              title={type ? `No ${type} yet` : "No type is declared"}
              code={`curl $HOLDFAST_API/holdfast.state.v1.StateService/Apply -H "Authorization: Bearer $HOLDFAST_TOKEN" -H 'Content-Type: application/json' -d '{"ref": {"type": "counter", "name": "visits", "owner": ""}, "operations": [{"increment": {"path": "n"}}]}'`}
            >
              {type
                ? "The first change makes one."
                : "Types need no declaration: enter one to see its objects. The first change makes one."}
            </Empty>
          )}
          <table className="t">
            <tbody>
              {objects.map((o) => (
                <tr key={o.id}>
                  <td className="cut">
                    <a className="b" data-row href={linkTo(o)}>
                      {o.ref?.name}
                    </a>
                    <small className="cut">{o.ref?.type}</small>
                  </td>
                  <td className="cut">
                    {who(o.owner, "the tenant’s")}
                    <small className="n">version {num(o.version)}</small>
                  </td>
                  <td className="r n d2">{clock(o.updateTime)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </Card>
      </div>
    </>
  );
}

function OneState({ type, name, owner }: { type: string; name: string; owner: string | undefined }) {
  const hf = useHoldfast();
  const ref = { type, name, owner: owner ?? "" };
  const live = useWatch({ state: { ref } }, {}, (v) => ({
    object: v.things.get("object")?.object,
    absent: v.absent,
    version: v.version,
  }));
  const types = useAsk("types", (hf, signal) => hf.rpc.state.listTypes({ pageSize: 200 }, { signal }));
  const [edit, setEdit] = useState<{ text: string; version: number }>();
  const [wrong, setWrong] = useState("");
  const { run, busy, error } = useAct();
  if (live.status === "failed") return <Failure error={live.error} again={live.retry} />;
  if (live.status === "loading") return <Loading lines={5} />;
  const { object: o, version } = live.value;
  if (!o)
    return (
      <div className="card">
        <Empty page title={`There is no ${type} ${name}`}>
          It appears here when it is made.
        </Empty>
      </div>
    );
  const schema = types.value?.types.find((t) => t.type === type)?.stateSchema;
  const now = JSON.stringify(o.state ?? {}, null, 2);
  const save = () => {
    if (!edit) return;
    let next: JsonObject;
    try {
      next = JSON.parse(edit.text);
      if (typeof next !== "object" || next === null || Array.isArray(next))
        throw new Error("A state is a JSON object, in braces.");
    } catch (e) {
      setWrong(e instanceof Error ? e.message : String(e));
      return;
    }
    setWrong("");
    run(async () => {
      await hf.rpc.state.apply({ ref, ifVersion: edit.version, operations: [{ setState: next }], mustExist: true });
      setEdit(undefined);
    });
  };
  const behind = edit && version !== edit.version;
  return (
    <>
      <div className="head">
        <div className="grow">
          <div className="flex wrap">
            <a className="chip" href={to("states", type)}>
              {type}
            </a>
            <h1 className="mono idh">{name}</h1>
          </div>
          <p className="small">
            {who(o.owner, "The tenant’s")}, version {num(version)}, changed {clock(o.updateTime)}.{" "}
            {schema ? "Its type has a schema, which the server checks." : "Its type has no schema: any JSON object will do."}
          </p>
        </div>
        <a className="btn" href={object("state", o.id)}>
          Versions and entries
        </a>
      </div>
      <div className="g2">
        <Card title="State" meta={edit ? `from version ${edit.version}` : `version ${version}`}>
          <div className="pad edit">
            {edit ? (
              <>
                <label className="field">
                  <span className="vh">State as JSON</span>
                  <textarea value={edit.text} spellCheck={false} onChange={(e) => setEdit({ ...edit, text: e.target.value })} />
                </label>
                {wrong && (
                  <p className="bad" role="alert">
                    This is not JSON: {wrong}
                  </p>
                )}
                {error && (
                  <p className="bad" role="alert">
                    {explain(error)} {error.violations?.fields.map((f) => `${f.field}: ${f.description}`).join("; ")}
                  </p>
                )}
                {behind && (
                  <p className="small">
                    Someone made version {version} while you edited. Saving would be refused.{" "}
                    <button type="button" className="link" onClick={() => setEdit({ text: now, version })}>
                      Begin again from it
                    </button>
                  </p>
                )}
                <div className="flex">
                  <button type="button" className="btn main" disabled={busy} aria-busy={busy} onClick={save}>
                    Save as version {edit.version + 1}
                  </button>
                  <button type="button" className="btn ghost" onClick={() => (setEdit(undefined), setWrong(""))}>
                    Leave it
                  </button>
                </div>
              </>
            ) : (
              <>
                <pre className="code">{now}</pre>
                <div>
                  <button type="button" className="btn" onClick={() => setEdit({ text: now, version })}>
                    Edit
                  </button>
                </div>
              </>
            )}
          </div>
        </Card>
        <div>
          {schema && (
            <Card title="Schema">
              <pre className="code big">{JSON.stringify(schema, null, 2)}</pre>
            </Card>
          )}
          <Card title="Waits and leases" meta={Object.keys(o.timers).length + Object.keys(o.leases).length || "none"}>
            <dl className="kv small pad waits">
              {Object.entries(o.timers).map(([k, t]) => (
                <div key={k} className="kvrow">
                  <dt>{k}</dt>
                  <dd className="n">{t.parked ? "parked" : <In time={t.nextTime ?? t.dueTime} />}</dd>
                </div>
              ))}
              {Object.entries(o.leases).map(([k, l]) => (
                <div key={k} className="kvrow">
                  <dt>{k}</dt>
                  <dd className="n">
                    {l.holder} until {clock(l.expireTime)}
                  </dd>
                </div>
              ))}
            </dl>
          </Card>
        </div>
      </div>
    </>
  );
}
