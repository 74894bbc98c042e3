import type { Holdfast, state } from "@holdfast/client";
import type { RunnableConfig } from "@langchain/core/runnables";
import {
  BaseCheckpointSaver,
  type ChannelVersions,
  type Checkpoint,
  type CheckpointListOptions,
  type CheckpointMetadata,
  type CheckpointPendingWrite,
  type CheckpointTuple,
  compareWritesSortKeys,
  getCheckpointId,
  maxChannelVersion,
  type PendingWrite,
  type SerializerProtocol,
  TASKS,
  WRITES_IDX_MAP,
  writesSortKey,
} from "@langchain/langgraph-checkpoint";

const TYPE = "langgraph.thread";
/** Characters of a piece: an entry is at most 1 MiB of UTF-8. */
const PIECE = 250_000;
/** Queries in one Read of an object, and keys in one query. */
const QUERIES = 32;
const KEYS = 200;

type Packed = [type: string, value: string];
type Saved = { checkpoint: Packed; metadata: Packed; parent?: string };
type Write = { task: string; index: number; path: string; channel: string; value: Packed };

/**
 * Keeps the checkpoints of a graph. A thread is one object of the user that `hf` acts for, so what a call stores is stored whole or not at all. The
 * newest checkpoint takes two reads, however long the thread is.
 */
export class HoldfastSaver extends BaseCheckpointSaver<string | number> {
  readonly #hf: Holdfast;

  constructor(hf: Holdfast, serde?: SerializerProtocol) {
    super(serde);
    this.#hf = hf;
  }

  /** Versions have a random end: two branches of a thread count on from the same one, and their channels must not meet. */
  override getNextVersion(current: string | number | undefined): string {
    return `${String(Number.parseInt(String(current ?? 0), 10) + 1).padStart(16, "0")}.${crypto.randomUUID().slice(0, 8)}`;
  }

  async getTuple(config: RunnableConfig): Promise<CheckpointTuple | undefined> {
    const thread = config.configurable?.["thread_id"];
    if (thread === undefined) return undefined;
    const id = getCheckpointId(config);
    const prefix = path(config.configurable?.["checkpoint_ns"] ?? "", "");
    const [page] = await this.#read(thread, [
      { collection: "checkpoints", ...(id ? { keys: [prefix + path(id)] } : { prefix, reverse: true, limit: 1 }) },
    ]);
    const [tuple] = await this.#tuples(thread, page?.entries ?? []);
    return tuple;
  }

  async *list(config: RunnableConfig, options: CheckpointListOptions = {}): AsyncGenerator<CheckpointTuple> {
    const { thread_id: thread, checkpoint_ns: ns, checkpoint_id: id } = config.configurable ?? {};
    const before = options.before && getCheckpointId(options.before);
    let left = options.limit ?? Number.POSITIVE_INFINITY;
    const prefix = ns === undefined ? "" : path(ns, "");
    for await (const name of thread === undefined ? this.#threads() : [thread as string])
      for (let last = before && prefix ? prefix + path(before) : "", more = true; more && left > 0; ) {
        // A page is what a second Read can complete: each checkpoint has a query of its own for its writes.
        const query = { collection: "checkpoints", prefix, before: last, reverse: true, limit: Math.min(left, QUERIES / 2) };
        const [page] = await this.#read(name, [query]);
        const entries = page?.entries ?? [];
        last = entries.at(-1)?.key ?? "";
        more = page?.more ?? false;
        const wanted = [];
        for (const entry of entries) {
          const key = keyOf(entry)[1] as string;
          if ((id && key !== id) || (before && key >= before)) continue;
          const metadata = options.filter && (await this.#load((JSON.parse(entry.text ?? "") as Saved).metadata));
          if (Object.entries(options.filter ?? {}).every(([k, v]) => metadata[k] === v)) wanted.push(entry);
        }
        const tuples = await this.#tuples(name, wanted.slice(0, left));
        left -= tuples.length;
        yield* tuples;
      }
  }

  async put(
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    newVersions: ChannelVersions,
  ): Promise<RunnableConfig> {
    const { thread, ns, id: parent } = place(config, "put a checkpoint");
    const { channel_values, ...rest } = checkpoint;
    const operations: state.OperationInput[] = [];
    for (const [channel, version] of Object.entries(newVersions))
      if (channel_values[channel] !== undefined)
        operations.push(...pieces("channels", path(ns, channel, String(version)), await this.#dump(channel_values[channel])));
    const saved: Saved = { checkpoint: await this.#dump(rest), metadata: await this.#dump(metadata) };
    if (parent) saved.parent = parent;
    const entry = { collection: "checkpoints", key: path(ns, checkpoint.id), text: JSON.stringify(saved) };
    await this.#apply(thread, [...operations, { put: { entry } }]);
    return { configurable: { thread_id: thread, checkpoint_ns: ns, checkpoint_id: checkpoint.id } };
  }

  async putWrites(config: RunnableConfig, writes: PendingWrite[], task: string, taskPath = ""): Promise<void> {
    const { thread, ns, id } = place(config, "put writes");
    if (!id) throw new Error("to put writes, `configurable` needs a checkpoint_id");
    const operations = writes.map(async ([channel, value], i) => {
      const index = WRITES_IDX_MAP[channel] ?? i;
      const write: Write = { task, index, path: taskPath, channel, value: await this.#dump(value) };
      // A task that runs again keeps what it wrote first; what is said of the task itself is replaced.
      return pieces("writes", path(ns, id, task, String(index)), write, index < 0 ? "replace" : "keep");
    });
    await this.#apply(thread, (await Promise.all(operations)).flat());
  }

  async deleteThread(threadId: string): Promise<void> {
    await this.#hf.rpc.state.deleteState({ ref: { type: TYPE, name: threadId } });
  }

  async *#threads(): AsyncGenerator<string> {
    for (let pageToken = ""; ; ) {
      const page = await this.#hf.rpc.state.listStates({ filter: { type: TYPE }, byName: true, pageToken });
      for (const { ref } of page.objects) if (ref) yield ref.name;
      pageToken = page.nextPageToken;
      if (!pageToken) return;
    }
  }

  /** Completes checkpoints of a thread with their channels and writes, all in one Read unless they are large. */
  async #tuples(thread: string, entries: readonly state.Entry[]): Promise<CheckpointTuple[]> {
    const found = await Promise.all(
      entries.map(async (entry) => {
        const saved = JSON.parse(entry.text ?? "") as Saved;
        const checkpoint = (await this.#load(saved.checkpoint)) as Checkpoint;
        const [ns, id] = keyOf(entry) as [string, string];
        // Before format 4, what a checkpoint sends on were the writes of its parent.
        const sends = checkpoint.v < 4 ? saved.parent : undefined;
        const channels = Object.entries(checkpoint.channel_versions ?? {}).map(([c, v]) => ({ c, key: path(ns, c, String(v)) }));
        return { saved, checkpoint, ns, id, sends, channels };
      }),
    );
    if (!found.length) return [];
    const keys = [...new Set(found.flatMap((f) => f.channels.map((c) => c.key)))];
    const queries: state.QueryInput[] = [];
    for (let i = 0; i < keys.length; i += KEYS) queries.push({ collection: "channels", keys: keys.slice(i, i + KEYS) });
    for (const { ns, id, sends } of found)
      for (const of of sends ? [id, sends] : [id]) queries.push({ collection: "writes", prefix: path(ns, of, ""), limit: 200 });
    const values = await this.#whole(thread, queries);
    const writes = async (ns: string, id: string): Promise<CheckpointPendingWrite[]> => {
      const prefix = path(ns, id, "");
      const of = [...values].filter(([key]) => key.startsWith(`writes:${prefix}`)).map(([, value]) => value as Write);
      const order = (w: Write) => writesSortKey(w.path, w.task, w.index);
      of.sort((a, b) => compareWritesSortKeys(order(a), order(b)));
      return await Promise.all(of.map(async (w) => [w.task, w.channel, await this.#load(w.value)] as CheckpointPendingWrite));
    };
    return await Promise.all(
      found.map(async ({ saved, checkpoint, ns, id, sends, channels }) => {
        checkpoint.channel_values = {};
        for (const { c, key } of channels) {
          const value = values.get(`channels:${key}`) as Packed | undefined;
          if (value) checkpoint.channel_values[c] = await this.#load(value);
        }
        if (sends) {
          const versions = Object.values(checkpoint.channel_versions);
          checkpoint.channel_values[TASKS] = (await writes(ns, sends)).filter(([, c]) => c === TASKS).map(([, , value]) => value);
          checkpoint.channel_versions[TASKS] = versions.length ? maxChannelVersion(...versions) : this.getNextVersion(undefined);
        }
        const at = { thread_id: thread, checkpoint_ns: ns };
        return {
          config: { configurable: { ...at, checkpoint_id: id } },
          checkpoint,
          metadata: (await this.#load(saved.metadata)) as CheckpointMetadata,
          pendingWrites: await writes(ns, id),
          ...(saved.parent && { parentConfig: { configurable: { ...at, checkpoint_id: saved.parent } } }),
        };
      }),
    );
  }

  /** Reads values, by `collection:key`, and in a second Read the other pieces of those that are large. */
  async #whole(thread: string, queries: state.QueryInput[]): Promise<Map<string, unknown>> {
    const texts = new Map<string, string>();
    const read = async (queries: state.QueryInput[]) => {
      for (const { entries } of await this.#read(thread, queries))
        for (const { collection, key, text } of entries) texts.set(`${collection}:${key}`, text ?? "");
    };
    await read(queries);
    const cut = [...texts].flatMap(([name, text]) => {
      const [collection = "", key = ""] = name.split(/:(.*)/s);
      return Array.from({ length: key.includes("+") ? 0 : Number.parseInt(text, 10) - 1 }, (_, i) => ({
        collection,
        key: `${key}+${i + 1}`,
      }));
    });
    // A prefix has found those of writes already.
    const missing = cut.filter(({ collection, key }) => !texts.has(`${collection}:${key}`));
    await read(missing.map(({ collection, key }) => ({ collection, keys: [key] })));
    const whole = new Map<string, unknown>();
    for (const [name, text] of texts) {
      if (name.includes("+")) continue;
      const rest = Array.from({ length: Number.parseInt(text, 10) - 1 }, (_, i) => texts.get(`${name}+${i + 1}`));
      whole.set(name, JSON.parse([text.slice(text.indexOf(":") + 1), ...rest].join("")));
    }
    return whole;
  }

  /** Reads pages of a thread, and again where they did not fit in one answer. */
  async #read(thread: string, queries: state.QueryInput[]): Promise<state.Page[]> {
    const pages: state.Page[] = [];
    for (let todo = queries; todo.length; ) {
      const now = todo.slice(0, QUERIES);
      const read = { ref: { type: TYPE, name: thread }, queries: now, withoutState: true };
      const object = (await this.#hf.rpc.state.read({ reads: [read] })).objects[0];
      const got = object?.absent ? [] : (object?.pages ?? []);
      pages.push(...got);
      todo = todo.slice(QUERIES);
      got.forEach(({ entries, more }, i) => {
        const query = now[i] as state.QueryInput;
        const seen = new Set(entries.map((e) => e.key));
        if (more && query.keys) todo = [...todo, { ...query, keys: query.keys.filter((k) => !seen.has(k)) }];
        else if (more && !query.reverse) todo = [...todo, { ...query, after: entries.at(-1)?.key ?? query.after }];
      });
    }
    return pages;
  }

  async #apply(thread: string, operations: state.OperationInput[]): Promise<void> {
    await this.#hf.rpc.state.apply({ ref: { type: TYPE, name: thread }, operations, keepForever: true });
  }

  async #dump(value: unknown): Promise<Packed> {
    const [type, bytes] = await this.serde.dumpsTyped(value);
    return [
      type,
      type === "json" ? new TextDecoder().decode(bytes) : btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join("")),
    ];
  }

  async #load([type, value]: Packed) {
    return await this.serde.loadsTyped(type, type === "json" ? value : Uint8Array.from(atob(value), (c) => c.charCodeAt(0)));
  }
}

/** A key: its parts are any text, and prefixes end where a part does. */
const path = (...parts: string[]) => parts.map(encodeURIComponent).join("/");
const keyOf = (entry: state.Entry) => entry.key.split("/").map(decodeURIComponent);

/** Puts a value as one entry, or as several where it is large: the first says how many there are. */
function pieces(
  collection: string,
  key: string,
  value: unknown,
  onExists: "keep" | "replace" = "replace",
): state.OperationInput[] {
  const texts = JSON.stringify(value).match(new RegExp(`[^]{1,${PIECE}}`, "gu")) ?? [];
  return texts.map((text, i) => ({
    put: {
      entry: i ? { collection, key: `${key}+${i}`, text } : { collection, key, text: `${texts.length}:${text}` },
      onExists,
    },
  }));
}

function place(config: RunnableConfig, what: string): { thread: string; ns: string; id: string | undefined } {
  const { thread_id: thread, checkpoint_ns: ns = "", checkpoint_id: id } = config.configurable ?? {};
  if (thread === undefined) throw new Error(`to ${what}, \`configurable\` needs a thread_id`);
  return { thread, ns, id };
}
