// Objects by kind, owner, label and the beginning of their ids.
import type { inspect } from "@holdfast/client";
import { useHoldfast } from "@holdfast/react";
import { type ReactNode, useEffect, useMemo, useRef, useState } from "react";
import { useAct, useAsk } from "./ask.ts";
import { best, replace, to, useRoute } from "./route.ts";
import { Card, Empty, Failure, Loading, vars } from "./ui.tsx";
import { clock, num, who, words } from "./words.ts";

export function Browse({ kind }: { kind: string | undefined }) {
  const kinds = useAsk("kinds", (hf, signal) => hf.rpc.inspect.listObjects({}, { signal }));
  const chosen = kind ?? "conversation";
  return (
    <>
      <div className="head">
        <div className="grow">
          <h1>{sentenceOf(chosen)}</h1>
          <p>All that is stored, by kind. Newest activity first, to the minute.</p>
        </div>
      </div>
      {kinds.error && <Failure error={kinds.error} again={kinds.again} />}
      <div className="split">
        <nav className="card kinds" aria-label="Kinds">
          {kinds.value?.kinds.map((k) => (
            <a key={k} href={to("objects", k)} aria-current={k === chosen ? "page" : undefined}>
              {words(k)}
            </a>
          ))}
          {kinds.loading && <Loading />}
        </nav>
        <Objects key={chosen} kind={chosen} />
      </div>
    </>
  );
}

const sentenceOf = (kind: string) => {
  const text = words(kind);
  return text.charAt(0).toUpperCase() + text.slice(1);
};

function Objects({ kind }: { kind: string }) {
  const { query } = useRoute();
  const prefix = query.get("prefix") ?? "";
  const owner = query.get("owner") ?? "";
  const label = query.get("label") ?? "";
  const list = useList(kind, prefix, owner, label);
  const labelled = kind === "conversation" || kind === "project";
  return (
    <Card
      title={
        <form className="filters" onSubmit={(e) => e.preventDefault()}>
          <Filter label="Id begins with" name="prefix" value={prefix} pattern="[A-Za-z0-9._:\-]*" />
          <Filter label="Owner" name="owner" value={owner} />
          {labelled && <Filter label="Label, as team=core" name="label" value={label} />}
        </form>
      }
      meta={list.objects.length > 0 && `${num(list.objects.length)}${list.more ? "+" : ""}`}
    >
      {list.error && <Failure error={list.error} />}
      {list.loading && list.objects.length === 0 && <Loading lines={5} />}
      {!list.loading && !list.error && list.objects.length === 0 && (
        <Empty title={prefix || owner || label ? `No ${words(kind)} matches` : `No ${words(kind)} yet`}>
          {prefix || owner || label ? (
            <button
              type="button"
              className="link"
              onClick={() => replace({ prefix: undefined, owner: undefined, label: undefined })}
            >
              Clear
            </button>
          ) : (
            "It appears here when it is made."
          )}
        </Empty>
      )}
      <Rows
        count={list.objects.length}
        end={list.next}
        row={(i) => {
          const o = list.objects[i];
          return (
            o && (
              <a className="orow" data-row href={best(kind, o.objectId)}>
                <span className="mono cut grow">{o.objectId}</span>
                <span className="cut d2 ow">{who(o.owner, "the tenant’s")}</span>
                <span className="n d3 ve hide-s">version {num(o.version)}</span>
                <span className="n d2 up">{clock(o.updateTime)}</span>
              </a>
            )
          );
        }}
      />
    </Card>
  );
}

function Filter(props: { label: string; name: string; value: string; pattern?: string }) {
  return (
    <label className="filter">
      <span className="vh">{props.label}</span>
      <input
        type="search"
        placeholder={props.label}
        defaultValue={props.value}
        key={props.value === "" ? "empty" : "set"}
        {...(props.pattern ? { pattern: props.pattern } : {})}
        onChange={(e) => e.target.validity.valid && replace({ [props.name]: e.target.value })}
      />
    </label>
  );
}

interface Listed {
  objects: inspect.StoredObject[];
  token: string;
}

/** useList reads a list page by page, and its first page again every few seconds. */
function useList(kind: string, prefix: string, owner: string, label: string) {
  const hf = useHoldfast();
  const key = JSON.stringify([kind, prefix, owner, label]);
  const [rest, setRest] = useState<Listed & { key: string }>({ key, objects: [], token: "" });
  const { run, busy, error } = useAct();
  const page = (pageToken?: string, signal?: AbortSignal): Promise<Listed> => {
    const [name = "", value = ""] = label.split(/=(.*)/);
    if (value) return labelled(hf, kind, name, value, pageToken, signal);
    return hf.rpc.inspect
      .listObjects(
        {
          kind,
          prefix,
          ...(owner ? { owner } : {}),
          ...(prefix ? { byId: true } : {}),
          pageSize: 200,
          ...(pageToken ? { pageToken } : {}),
        },
        { signal },
      )
      .then((a) => ({ objects: a.objects, token: a.nextPageToken }));
  };
  const first = useAsk(`list ${key}`, (_, signal) => page(undefined, signal), { every: 5000 });
  const mine = rest.key === key ? rest : undefined;
  const token = mine ? mine.token : first.value?.token;
  const objects = useMemo(() => {
    const all = new Map<string, inspect.StoredObject>();
    for (const o of [...(first.value?.objects ?? []), ...(mine?.objects ?? [])]) if (!all.has(o.objectId)) all.set(o.objectId, o);
    return [...all.values()];
  }, [first.value, mine]);
  const next = () => {
    if (busy || !token) return;
    run(async () => {
      const got = await page(token);
      setRest({ key, objects: [...(mine?.objects ?? first.value?.objects ?? []), ...got.objects], token: got.token });
    });
  };
  return { objects, loading: first.loading || busy, error: first.error ?? error, more: !!token, next };
}

async function labelled(
  hf: ReturnType<typeof useHoldfast>,
  kind: string,
  name: string,
  value: string,
  pageToken?: string,
  signal?: AbortSignal,
): Promise<Listed> {
  const request = { filter: { labels: { [name]: value } }, pageSize: 200, ...(pageToken ? { pageToken } : {}) };
  const o = { signal };
  const stored = (id: string, r: { owner: string; version: number; updateTime?: string | undefined }) =>
    ({ objectId: id, owner: r.owner, version: r.version, updateTime: r.updateTime }) as inspect.StoredObject;
  if (kind === "conversation") {
    const a = await hf.rpc.conversation.listConversations(request, o);
    return { objects: a.conversations.map((c) => stored(c.conversationId, c)), token: a.nextPageToken };
  }
  const a = await hf.rpc.project.listProjects(request, o);
  return { objects: a.projects.map((p) => stored(p.projectId, p)), token: a.nextPageToken };
}

const height = 34;

/** Rows shows the rows that are in view of a list of any length, and asks for more near its end. */
export function Rows({ count, row, end }: { count: number; row(i: number): ReactNode; end(): void }) {
  const box = useRef<HTMLDivElement>(null);
  const [at, setAt] = useState(0);
  const screen = 24;
  const from = Math.max(0, at - 10);
  const to = Math.min(count, at + screen + 10);
  const latest = useRef(end);
  latest.current = end;
  useEffect(() => {
    if (count > 0 && to >= count - 20) latest.current();
  }, [to, count]);
  return (
    <div ref={box} className="rows" onScroll={(e) => setAt(Math.floor(e.currentTarget.scrollTop / height))}>
      <div className="rowsin" style={vars({ "--h": `${count * height}px` })}>
        {Array.from({ length: Math.max(0, to - from) }, (_, i) => (
          <div key={from + i} className="vrow" style={vars({ "--y": `${(from + i) * height}px` })}>
            {row(from + i)}
          </div>
        ))}
      </div>
    </div>
  );
}
