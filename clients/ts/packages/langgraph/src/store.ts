import type { Holdfast, JsonObject, state } from "@holdfast/client";
import {
  BaseStore,
  InMemoryStore,
  type Item,
  type ListNamespacesOperation,
  type Operation,
  type OperationResults,
  type PutOperation,
  type SearchItem,
  type SearchOperation,
} from "@langchain/langgraph-checkpoint";

const TYPE = "langgraph.store";
const MANY = Number.MAX_SAFE_INTEGER;

/**
 * Keeps items by namespace and key, for the user that `hf` acts for. A batch changes up to 8 namespaces together, all or none. `search` by a
 * filter on one of `fields` reads only the items with that value; other filters read the namespaces.
 */
export class HoldfastStore extends BaseStore {
  readonly #hf: Holdfast;
  readonly #fields: readonly string[];

  constructor(hf: Holdfast, options: { fields?: readonly string[] } = {}) {
    super();
    this.#hf = hf;
    this.#fields = options.fields ?? [];
  }

  async batch<Op extends Operation[]>(operations: Op): Promise<OperationResults<Op>> {
    // As the other stores: what is read is what was there before the batch.
    const results = await Promise.all(
      operations.map((op) => {
        if ("namespacePrefix" in op) return this.#search(op);
        if ("value" in op) return null;
        if ("key" in op) return this.#get(op.namespace, op.key);
        return this.#namespaces(op as ListNamespacesOperation);
      }),
    );
    await this.#put(operations.filter((op): op is PutOperation => "value" in op));
    return results as OperationResults<Op>;
  }

  async #get(namespace: string[], key: string): Promise<Item | null> {
    const queries = ["items", "created"].map((collection) => ({ collection, keys: [key] }));
    const { objects } = await this.#hf.rpc.state.read({
      reads: [{ ref: refOf(nameOf(namespace)), queries, withoutState: true }],
    });
    const [item, created] = objects[0]?.pages.map((page) => page.entries[0]) ?? [];
    return item ? itemOf(namespace, item, created) : null;
  }

  async #put(operations: PutOperation[]): Promise<void> {
    const now = new Date().toISOString();
    const changes = new Map<string, state.OperationInput[]>();
    for (const { namespace, key, value } of operations) {
      const name = nameOf(namespace);
      const change = changes.get(name) ?? [];
      changes.set(name, change);
      if (value === null) for (const collection of ["items", "created"]) change.push({ delete: { collection, keys: [key] } });
      else {
        const labels: { [field: string]: string } = {};
        for (const field of this.#fields) if (value[field] !== undefined) labels[field] = labelOf(value[field]);
        const json = { value: value as JsonObject, updated: now };
        change.push({
          put: { entry: { collection: "items", key, jsonText: JSON.stringify(json), labels }, onExists: "replace" },
        });
        change.push({ put: { entry: { collection: "created", key, text: now }, onExists: "keep" } });
      }
    }
    const all = [...changes].map(([name, operations]) => ({ ref: refOf(name), operations, keepForever: true }));
    for (let i = 0; i < all.length; i += 8) await this.#hf.rpc.state.applyTogether({ changes: all.slice(i, i + 8) });
  }

  async #search({ namespacePrefix, filter, offset = 0, limit = 10 }: SearchOperation): Promise<SearchItem[]> {
    const found: Item[] = [];
    const field = this.#fields.find((f) => filter?.[f] !== undefined && (typeof filter[f] !== "object" || filter[f] === null));
    const label = field === undefined ? undefined : { key: field, value: labelOf(filter?.[field]) };
    for await (const name of this.#names(namespacePrefix)) {
      for (let after = "", more = true; more && found.length < offset + limit; ) {
        const queries = [{ collection: "items", after, limit: 200, ...(label && { label }) }];
        const [page] = await this.#pages(name, queries);
        const entries = page?.entries ?? [];
        more = page?.more ?? false;
        after = entries.at(-1)?.key ?? "";
        if (!entries.length) break;
        const [times] = await this.#pages(name, [{ collection: "created", keys: entries.map((e) => e.key) }]);
        const created = new Map(times?.entries.map((e) => [e.key, e]));
        const items = entries.map((e) => itemOf(name.split("/").slice(0, -1).map(decodeURIComponent), e, created.get(e.key)));
        found.push(...(await matching(items, filter)));
      }
      if (found.length >= offset + limit) break;
    }
    return found.slice(offset, offset + limit);
  }

  async #namespaces(operation: ListNamespacesOperation): Promise<string[][]> {
    const prefix = operation.matchConditions?.find((c) => c.matchType === "prefix")?.path ?? [];
    const fixed = prefix.includes("*") ? prefix.slice(0, prefix.indexOf("*")) : prefix;
    const memory = new InMemoryStore();
    for await (const name of this.#names(fixed)) {
      const [page] = await this.#pages(name, [{ collection: "items", limit: 1 }]);
      if (page?.entries.length)
        await memory.batch([{ namespace: name.split("/").slice(0, -1).map(decodeURIComponent), key: "", value: {} }]);
    }
    return (await memory.batch([operation]))[0] as string[][];
  }

  async *#names(prefix: string[]): AsyncGenerator<string> {
    const filter = { type: TYPE, namePrefix: prefix.length ? nameOf(prefix) : "" };
    for (let pageToken = ""; ; ) {
      const page = await this.#hf.rpc.state.listStates({ filter, byName: true, pageToken, pageSize: 200 });
      for (const { ref } of page.objects) if (ref) yield ref.name;
      pageToken = page.nextPageToken;
      if (!pageToken) return;
    }
  }

  async #pages(name: string, queries: state.QueryInput[]): Promise<state.Page[]> {
    return (
      (await this.#hf.rpc.state.read({ reads: [{ ref: refOf(name), queries, withoutState: true }] })).objects[0]?.pages ?? []
    );
  }
}

const refOf = (name: string) => ({ type: TYPE, name });
/** Ends with a slash, so that a prefix of names is one of labels. */
const nameOf = (namespace: string[]) => namespace.map((label) => `${encodeURIComponent(label)}/`).join("");
/** The start of a value, within a label's 256 bytes; what only starts alike is filtered out afterwards. */
const labelOf = (value: unknown) => [...JSON.stringify(value)].slice(0, 60).join("");

function itemOf(namespace: string[], item: state.Entry, created: state.Entry | undefined): Item {
  const { value, updated } = (item.jsonText === undefined ? item.json : JSON.parse(item.jsonText)) as {
    value: JsonObject;
    updated: string;
  };
  return { namespace, key: item.key, value, createdAt: new Date(created?.text ?? updated), updatedAt: new Date(updated) };
}

/** LangGraph's own meaning of a filter, with $gt, $ne and the like. */
async function matching(items: Item[], filter: SearchOperation["filter"]): Promise<Item[]> {
  if (!filter) return items;
  const memory = new InMemoryStore();
  await memory.batch(items.map(({ value }, i) => ({ namespace: ["items"], key: String(i), value })));
  const kept = await memory.search(["items"], { filter, limit: MANY });
  return kept.map(({ key }) => items[Number(key)] as Item);
}
