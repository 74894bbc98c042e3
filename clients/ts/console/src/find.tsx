// Find: a page, an object by the beginning of its id in any kind, a conversation or project by its name.
import { useConversations, useProjects } from "@holdfast/react";
import { useEffect, useId, useRef, useState } from "react";
import { useAsk } from "./ask.ts";
import { best, go, object, to } from "./route.ts";
import { words } from "./words.ts";

interface Hit {
  link: string;
  name: string;
  kind: string;
}

const kinds = ["conversation", "project", "task", "state", "api", "linear_issue"];

export function Find({ pages, close }: { pages: readonly (readonly [string, string, ...unknown[]])[]; close(): void }) {
  const [text, setText] = useState("");
  const [at, setAt] = useState(0);
  const dialog = useRef<HTMLDialogElement>(null);
  const list = useId();
  useEffect(() => dialog.current?.showModal(), []);
  const talks = useConversations({}, { limit: 200 });
  const projects = useProjects({}, { limit: 200 });
  const wanted = text.trim();
  const prefix = /^[A-Za-z0-9._:-]{1,128}$/.test(wanted) ? wanted : "";
  const ids = useAsk(
    `find ${prefix}`,
    (hf, signal) =>
      Promise.all(kinds.map((kind) => hf.rpc.inspect.listObjects({ kind, prefix, byId: true, pageSize: 5 }, { signal }))).then(
        (all) =>
          all.flatMap((a, i) =>
            a.objects.map((o): Hit => ({ link: best(kinds[i] ?? "", o.objectId), name: o.objectId, kind: kinds[i] ?? "" })),
          ),
      ),
    { off: !prefix },
  );
  const [kind, id] = wanted.split(/\/(.*)/);
  const low = wanted.toLowerCase();
  const named: Hit[] = low
    ? [
        ...(talks.value ?? [])
          .filter((c) => c.title.toLowerCase().includes(low))
          .map((c) => ({ link: to("c", c.conversationId), name: c.title, kind: "conversation" })),
        ...(projects.value ?? [])
          .filter((p) => p.title.toLowerCase().includes(low))
          .map((p) => ({ link: to("projects", p.projectId), name: p.title, kind: "project" })),
      ]
    : [];
  const hits: Hit[] = [
    ...(kind && id ? [{ link: object(kind, id), name: wanted, kind: "open this" }] : []),
    ...pages
      .filter(([name]) => name.toLowerCase().startsWith(low))
      .map(([name, path]) => ({ link: to(...[path].filter(Boolean)), name, kind: "page" })),
    ...named.slice(0, 8),
    ...(ids.value ?? []).filter((h) => !named.some((n) => n.link === h.link)),
  ].slice(0, 14);
  const chosen = Math.min(at, hits.length - 1);
  const open = (hit: Hit | undefined) => {
    if (!hit) return;
    dialog.current?.close();
    go(hit.link);
  };
  return (
    <dialog
      ref={dialog}
      className="sheet finder"
      aria-label="Find"
      onClose={close}
      onPointerDown={(e) => e.target === dialog.current && dialog.current.close()}
    >
      <input
        autoFocus
        role="combobox"
        aria-label="Find"
        aria-expanded={hits.length > 0}
        aria-controls={list}
        aria-activedescendant={hits[chosen] ? `${list}-${chosen}` : undefined}
        placeholder="A name, the beginning of an id, or kind/id"
        value={text}
        spellCheck={false}
        onChange={(e) => (setText(e.target.value), setAt(0))}
        onKeyDown={(e) => {
          if (e.key === "Enter") open(hits[chosen]);
          else if (e.key === "ArrowDown") setAt(Math.min(hits.length - 1, chosen + 1));
          else if (e.key === "ArrowUp") setAt(Math.max(0, chosen - 1));
          else return;
          e.preventDefault();
        }}
      />
      <div id={list} role="listbox" aria-label="Found">
        {hits.map((h, i) => (
          // biome-ignore lint/a11y/useKeyWithClickEvents: the keys are the input's
          <div
            key={h.link + h.kind}
            id={`${list}-${i}`}
            role="option"
            tabIndex={-1}
            aria-selected={i === chosen}
            onClick={() => open(h)}
          >
            <span className="cut grow">{h.name}</span>
            <span className="d3 small">{words(h.kind)}</span>
          </div>
        ))}
      </div>
      {wanted && hits.length === 0 && !ids.loading && (
        <p className="pad d2">
          Nothing has “{wanted}” in its name.{" "}
          <button type="button" className="link" onClick={() => setText("")}>
            Clear
          </button>
        </p>
      )}
    </dialog>
  );
}
