// The preview of going back, with the smaller act next to it where there is one.
import type { inspect } from "@holdfast/client";
import { useHoldfast } from "@holdfast/react";
import { go, replace, to } from "../route.ts";
import { Act, Card, Confirm, Icon } from "../ui.tsx";
import { count, sentence, words } from "../words.ts";
import { gist } from "./parts.tsx";

const quoted = (text: string) => (/^[[{]/.test(text) ? "" : `“${text.length > 60 ? `${text.slice(0, 60)}…` : text}”`);

/** Restore is the preview of going back, with the smaller act next to it where there is one. */
export function Restore(props: {
  kind: string;
  id: string;
  at: number;
  now: number;
  diff: inspect.DiffObjectResponse;
  restore(): Promise<unknown>;
}) {
  const { kind, id, at, now, diff } = props;
  const hf = useHoldfast();
  const title = diff.fields.find((f) => f.field === "title" && typeof f.before === "string");
  const others = diff.fields.filter((f) => f !== title);
  const groups = new Map<string, inspect.EntryDifference[]>();
  for (const e of diff.entries) {
    const sign = e.before && e.after ? "~" : e.before ? "+" : "−";
    groups.set(`${sign} ${e.collection}`, [...(groups.get(`${sign} ${e.collection}`) ?? []), e]);
  }
  const versions = now - at === 1 ? `Version ${now} stays` : `Versions ${at + 1} to ${now} stay`;
  return (
    <Card
      className="rst"
      title={
        <>
          <Icon name="back" />
          <h2>Restore version {at}</h2>
        </>
      }
    >
      <div className="pad">
        <p>
          Makes <b>version {now + 1}</b>, equal to version {at}. {versions} in the journal, so you can undo it.
        </p>
        <ul className="di">
          {title && (
            <li>
              <i>~</i>
              <span>
                <b>title</b> <del>{String(title.after ?? "none")}</del> <ins>{String(title.before)}</ins>
              </span>
            </li>
          )}
          {others.length > 0 && (
            <li>
              <i>~</i>
              <span>
                <b>{title ? count(others.length, "more field") : count(others.length, "field")}</b>{" "}
                <span className="d3">{others.map((f) => f.field).join(", ")}</span>
              </span>
            </li>
          )}
          {[...groups].map(([k, list]) => (
            <li key={k} className={k[0] === "−" ? "w" : ""}>
              <i>{k[0]}</i>
              <span>
                <b>{count(list.length, words(k.slice(2)).replace(/s$/, ""), words(k.slice(2)))}</b>{" "}
                <span className="d3">
                  {list
                    .slice(0, 3)
                    .map((e) => [e.key.replace(/^0+(?=.)/, ""), quoted(gist(e.after ?? e.before))].filter(Boolean).join(" "))
                    .join(", ")}
                  {list.length > 3 && ", …"}
                </span>
              </span>
            </li>
          ))}
          {diff.nextPageToken && (
            <li>
              <i>~</i>
              <span className="d3">{count(diff.entryCount, "entry", "entries")} in all</span>
            </li>
          )}
          <li>
            <i>~</i>
            <span>
              <b>Timers</b> <span className="d3">as they were. Those due by now run at once.</span>
            </span>
          </li>
        </ul>
        <div className="flex wrap">
          <Confirm
            label={`Restore as version ${now + 1}…`}
            className="main"
            keys="r"
            act={`Restore version ${at}`}
            title={`Restore version ${at}?`}
            run={props.restore}
          >
            <p>
              {sentence(id)} becomes what it was at version {at}. If someone changes it meanwhile, nothing happens. To undo it,
              restore version {now}.
            </p>
          </Confirm>
          {kind === "conversation" && (
            <Act
              className=""
              label="Fork from here"
              run={async () => {
                const made = await hf.conversation(id).fork({ atVersion: at });
                go(to("c", made.conversationId));
              }}
            />
          )}
        </div>
      </div>
      {title && kind === "conversation" && (
        <div className="alt">
          <p>
            <b>Want the title only?</b> That changes one field and keeps the rest as it is now.
          </p>
          <Act
            label="Take the title back"
            run={async () => {
              await hf.conversation(id).update({ title: String(title.before) }, { ifVersion: now });
              replace({ v: undefined });
            }}
          />
        </div>
      )}
    </Card>
  );
}
