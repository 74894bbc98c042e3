// What an object holds: its state as a tree, its entries, its JSON.
import type { HoldfastError, inspect, Json, JsonObject } from "@holdfast/client";
import { useMemo, useState } from "react";
import { useAsk } from "../ask.ts";
import { Card, Empty, Failure, Loading, Seg, vars } from "../ui.tsx";
import { count, num } from "../words.ts";
import { brief, tree } from "./tree.ts";

export function Parts(props: {
  kind: string;
  id: string;
  at: number | undefined;
  then: inspect.StoredObject | undefined;
  now: inspect.StoredObject | undefined;
  error: HoldfastError | undefined;
}) {
  const { then, now, kind } = props;
  const [tab, setTab] = useState<"state" | "entries" | "json">("state");
  const [only, setOnly] = useState(false);
  const [turned, turn] = useState<ReadonlySet<string>>(new Set());
  const rows = useMemo(
    () => tree(then?.state, now ? now.state : then?.state, (path, depth) => depth < 1 !== turned.has(path)),
    [then, now, turned],
  );
  const shown = only ? rows.filter((r) => r.differs) : rows;
  const differing = rows.filter((r) => r.differs && !r.parts).length;
  return (
    <Card
      className="parts"
      title={
        <div className="tabs" role="tablist" aria-label="Parts">
          {(
            [
              ["state", "State"],
              ["entries", "Entries"],
              ["json", "JSON"],
            ] as const
          ).map(([k, label]) => (
            <button key={k} type="button" role="tab" aria-selected={tab === k} onClick={() => setTab(k)}>
              {label}
              {k === "entries" && then?.size && <span className="n">{num(then.size.entryCount)}</span>}
            </button>
          ))}
        </div>
      }
      footer={
        now && tab === "state" ? (
          <>
            {differing ? `${count(differing, "value differs", "values differ")}.` : "Its state is as it is now."} <kbd>d</kbd>{" "}
            <button type="button" className="link" data-key="d" aria-pressed={only} onClick={() => setOnly(!only)}>
              {only ? "shows all again" : "shows what differs alone"}
            </button>
            . Secrets stay sealed, then as now.
          </>
        ) : undefined
      }
    >
      {props.error && <Failure error={props.error} />}
      {!then && !props.error && <Loading lines={5} />}
      {then && tab === "json" && (
        // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls is reached by keys
        <pre className="code big" tabIndex={0}>
          {JSON.stringify(then.state, null, 2)}
        </pre>
      )}
      {then && tab === "entries" && <Entries {...props} collections={then.collections} />}
      {then && tab === "state" && (
        <div className="tw">
          <table className={`tree ${now ? "" : "one"}`}>
            <thead>
              <tr>
                <th>Field</th>
                <th>{props.at ? `At version ${props.at}` : "Now"}</th>
                {now && <th>Now, where it differs</th>}
              </tr>
            </thead>
            <tbody>
              {shown.map((r) => {
                const open = r.parts && r.depth < 1 !== turned.has(r.path);
                const flip = () => {
                  const next = new Set(turned);
                  if (!next.delete(r.path)) next.add(r.path);
                  turn(next);
                };
                return (
                  <tr key={r.path} className={now && r.differs ? "dif" : ""}>
                    <td style={vars({ "--d": r.depth })}>
                      {r.parts ? (
                        <button type="button" className="fo" aria-expanded={open} onClick={flip}>
                          {open ? "▾" : "▸"} {r.name}
                        </button>
                      ) : (
                        r.name
                      )}
                    </td>
                    <td>
                      <Value of={r.value} kind={kind} />
                    </td>
                    {now && <td>{r.differs && <Value of={r.other} kind={kind} />}</td>}
                  </tr>
                );
              })}
            </tbody>
          </table>
          {shown.length === 0 && <Empty title={only ? "Nothing differs" : "Nothing is set"} />}
        </div>
      )}
    </Card>
  );
}

function Value({ of, kind }: { of: Json | undefined; kind: string }) {
  const [text, className] = brief(of, kind !== "state");
  return (
    <span className={className} title={typeof of === "string" && of.length > 20 ? of : undefined}>
      {text}
    </span>
  );
}

function Entries({ kind, id, at, collections }: { kind: string; id: string; at: number | undefined; collections: string[] }) {
  const [collection, setCollection] = useState(collections[0] ?? "");
  const [size, setSize] = useState(50);
  const asked = useAsk(
    `entries ${kind}/${id} ${collection} ${at} ${size}`,
    (hf, signal) =>
      hf.rpc.inspect.getObject(
        { ref: { kind, objectId: id }, collection, pageSize: size, ...(at ? { at: { version: at } } : {}) },
        { signal },
      ),
    { off: !collection },
  );
  if (!collection) return <Empty title="Objects of this kind have no entries" />;
  return (
    <>
      <div className="pad">
        <Seg label="Collection" of={collections.map((c) => [c, c] as const)} value={collection} set={setCollection} />
      </div>
      {asked.error && <Failure error={asked.error} />}
      {asked.loading && !asked.value && <Loading />}
      {asked.value?.entries.length === 0 && <Empty title={`No entry in ${collection}`} />}
      <ul className="ents">
        {asked.value?.entries.map((e) => (
          <li key={e.key}>
            <details>
              <summary data-row>
                <code className="b">{e.key}</code> <span className="cut d2">{gist(e.value)}</span>
              </summary>
              <pre className="code">{JSON.stringify(e.value, null, 2)}</pre>
            </details>
          </li>
        ))}
      </ul>
      {asked.value?.nextPageToken &&
        (size < 200 ? (
          <button type="button" className="btn ghost" onClick={() => setSize(200)}>
            More
          </button>
        ) : (
          <p className="pad small d3">These are the first 200. `holdfast object get` has the rest.</p>
        ))}
    </>
  );
}

/** gist is what a person recognises an entry by. */
export function gist(value: JsonObject | undefined): string {
  if (!value) return "";
  for (const k of ["text", "title", "name", "identifier", "label", "step"]) {
    const v = value[k];
    if (typeof v === "string" && v) return v;
  }
  const text = JSON.stringify(value);
  return text.length > 160 ? `${text.slice(0, 160)}…` : text;
}
