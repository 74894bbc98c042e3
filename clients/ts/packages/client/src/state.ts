import type { CallOptions } from "./call.ts";
import { type Change, retried } from "./change.ts";
import { HoldfastError, type SchemaIssue } from "./error.ts";
import type { Rpc } from "./gen/rpc.ts";
import type {
  ApplyRequest,
  ApplyResponse,
  OperationInput,
  QueryInput,
  RefInput,
  StateService,
  Object as Stored,
  Entry as StoredEntry,
} from "./gen/state.ts";
import type { StateItemInput } from "./gen/watch.ts";
import type { Json, JsonObject } from "./json.ts";
import type { View, Watch, Watcher } from "./watch.ts";

/** A schema of Zod, Valibot, ArkType, Effect (`Schema.standardSchemaV1`) or any other that follows standardschema.dev. It must not be asynchronous. */
export interface StandardSchema<Input = unknown, Output = Input> {
  readonly "~standard": {
    readonly version: 1;
    readonly vendor: string;
    readonly validate: (value: unknown) => SchemaResult<Output> | Promise<SchemaResult<Output>>;
    readonly types?: { readonly input: Input; readonly output: Output } | undefined;
  };
}
type SchemaResult<T> = { readonly value: T; readonly issues?: undefined } | { readonly issues: readonly SchemaIssue[] };

type Out<S> = S extends StandardSchema<infer _, infer O> ? O : never;
type In<S> = S extends StandardSchema<infer I, infer _> ? I : never;
/** The schemas of an object's collections. */
export type Schemas = { readonly [collection: string]: StandardSchema };

/** A type of objects, made by defineObject. */
export interface ObjectType<S extends StandardSchema, C extends Schemas> {
  readonly type: string;
  readonly state: S;
  readonly collections: C;
  /** The state of an object that is not there. */
  readonly initial: Out<S>;
  /** What `hf.state` calls. It is here so that who uses no objects need not load it. */
  readonly open: (rpc: Rpc, watcher: Pick<Watcher, "watch">, name: string, owner?: string) => StateHandle<S, C>;
}

/** An entry of a collection. */
export interface StateEntry<T> {
  readonly key: string;
  readonly value: T;
  /** The object's version that wrote it. */
  readonly version: number;
}

/** An object as it was read, or is watched. */
export interface StateView<S extends StandardSchema, C extends Schemas> {
  /** Of an object that is not there: the type's `initial`. */
  readonly state: Out<S>;
  /** Those that were asked for, in the order of their keys. */
  readonly entries: { readonly [K in keyof C]: readonly StateEntry<Out<C[K]>>[] };
  readonly version: number;
  readonly absent: boolean;
  /** Its owner, times, labels and leases; undefined where it is absent. */
  readonly object: Stored | undefined;
}

/** Which entries to read: so many of the last, those of these keys, or any query. */
export type StateQueries<C extends Schemas> = {
  readonly [K in keyof C]?: number | readonly string[] | Omit<QueryInput, "collection">;
};

/** What a change may do with a collection. */
export interface Collection<I, O> {
  /** An entry that was read. */
  get(key: string): O | undefined;
  /** Every entry that was read. */
  all(): readonly StateEntry<O>[];
  /** Sets an entry. */
  put(key: string, value: I): void;
  /** Adds an entry behind all that were appended. */
  append(value: I): void;
  delete(key: string): void;
}
export type Collections<C extends Schemas> = { readonly [K in keyof C]: Collection<In<C[K]>, Out<C[K]>> };

/** What a change of an object takes besides the change. */
export type StateChange = Omit<Change, "updateMask"> & Pick<ApplyRequest, "mustExist" | "labels" | "ttl" | "keepForever">;

/** An object of a type. The handle does no I/O. */
export interface StateHandle<S extends StandardSchema, C extends Schemas> {
  readonly type: string;
  readonly name: string;
  /** Reads it, with entries of its collections as they were at the same moment. */
  get(options?: { entries?: StateQueries<C> } & CallOptions): Promise<StateView<S, C>>;
  /**
   * Reads it, runs the function, and writes what the function changed, all of it or nothing. Where someone else was faster it begins again,
   * so the function must do nothing but change the draft and the collections, or return another state. `entries` is what it reads of them.
   * An object that is not there is made. Only what differs is written: fields that the schema does not know stay as they are.
   */
  update(
    // biome-ignore lint/suspicious/noConfusingVoidType: a function that returns nothing is the usual one
    change: (draft: Out<S>, entries: Collections<C>) => Out<S> | void,
    options?: Omit<StateChange, "ifVersion"> & { entries?: StateQueries<C> },
  ): Promise<{ readonly state: Out<S>; readonly version: number }>;
  /** Makes operations, in order: all of them or none. No schema checks them. */
  apply(operations: OperationInput[], options?: StateChange): Promise<ApplyResponse>;
  /** The entries of a collection, fetched page by page. */
  entries<K extends keyof C & string>(
    collection: K,
    query?: Omit<QueryInput, "collection" | "keys">,
    options?: CallOptions,
  ): AsyncIterableIterator<StateEntry<Out<C[K]>>>;
  /** Deletes it, and resolves to whether it was there. */
  delete(options?: Omit<Change, "updateMask">): Promise<boolean>;
  /** Follows it, and of the collections named those entries that are the last now, and every one that changes. */
  watch(entries?: { readonly [K in keyof C]?: number }): Watch<StateView<S, C>>;
}

/**
 * defineObject names a type of objects: a schema of the state, and schemas of the entries of its collections. The schemas check what is read and
 * what is written; they should not convert, because what they make of JSON is written as JSON again.
 */
export function defineObject<S extends StandardSchema, const C extends Schemas = Record<never, never>>(
  type: string,
  schemas: { state: S; collections?: C; initial?: In<S> },
): ObjectType<S, C> {
  const collections = schemas.collections ?? ({} as C);
  const initial = fit(schemas.state, schemas.initial ?? {}, `the state of a new ${type}`) as Out<S>;
  const show = ({ things, absent, version }: View): StateView<S, C> => {
    const all = [...things.values()].flatMap((t) => t.entry ?? []).sort((a, b) => byBytes(a.key, b.key));
    return read(definition, { ...things.get("object")?.object, absent, version } as Stored, (name) =>
      all.filter((e) => e.collection === name),
    );
  };
  const definition: ObjectType<S, C> = {
    type,
    state: schemas.state,
    collections,
    initial,
    open: ({ state }, watcher, name, owner) =>
      handle(state, definition, { type, name, owner }, (item) => watcher.watch({ state: item }, show)),
  };
  return definition;
}

/** byBytes compares two keys as the server does, by their bytes in UTF-8, which is by code points. */
function byBytes(a: string, b: string): number {
  for (let i = 0; i < a.length && i < b.length; i++) {
    const [x = 0, y = 0] = [a.charCodeAt(i), b.charCodeAt(i)];
    if (x !== y) return x >= 0xd800 && y >= 0xd800 ? ((x + 0x2000) & 0xffff) - ((y + 0x2000) & 0xffff) : x - y;
  }
  return a.length - b.length;
}

function read<S extends StandardSchema, C extends Schemas>(
  of: ObjectType<S, C>,
  object: Stored,
  entriesOf: (collection: string) => StoredEntry[],
): StateView<S, C> {
  const { absent, version } = object;
  const what = `${of.type} ${object.ref?.name}`;
  const entries: { [name: string]: StateEntry<unknown>[] } = {};
  for (const [name, schema] of Object.entries(of.collections))
    entries[name] = entriesOf(name).map((e) => ({
      key: e.key,
      value: fit(schema, exact(e.jsonText, e.text ?? e.data ?? e.json ?? null, what), `${what}: ${name} ${e.key}`),
      version: e.version,
    }));
  return {
    state: absent ? of.initial : (fit(of.state, exact(object.stateJson, object.state ?? {}, what), what) as Out<S>),
    entries: entries as never,
    version,
    absent,
    object: absent ? undefined : object,
  };
}

/** exact refuses a number that JavaScript would round. */
function exact(text: string | undefined, value: Json, what: string): Json {
  if (!text) return value;
  throw new HoldfastError(`${what} has a number that JavaScript rounds; read it by hf.rpc.state`, "state.read", {
    reason: "NUMBER_INEXACT",
    retry: "never",
  });
}

function fit(schema: StandardSchema, value: unknown, what: string): unknown {
  const result = schema["~standard"].validate(value);
  if (result instanceof Promise) throw new TypeError(`${what} has an asynchronous schema`);
  if (!result.issues) return result.value;
  const said = result.issues.map(({ path = [], message }) =>
    [path.map((p) => String(typeof p === "object" ? p.key : p)).join("."), message].filter(Boolean).join(": "),
  );
  throw new HoldfastError(
    `${what} does not fit its schema: ${said.join("; ")}`,
    "state.schema",
    { reason: "SCHEMA_MISMATCH", retry: "never" },
    { issues: result.issues },
  );
}

const object = (v: unknown): v is JsonObject => typeof v === "object" && v !== null && !Array.isArray(v);

/** differ finds what to set and what to remove, by JSON Pointer. */
function differ(was: JsonObject, now: JsonObject, at: string, fields: JsonObject, remove: string[]): void {
  for (const key of Object.keys({ ...was, ...now })) {
    const path = `${at}/${key.replaceAll("~", "~0").replaceAll("/", "~1")}`;
    const [a, b] = [was, now].map((v) => (Object.hasOwn(v, key) ? v[key] : undefined));
    if (b === undefined) {
      if (a !== undefined) remove.push(path);
    } else if (object(a) && object(b)) differ(a, b, path, fields, remove);
    else if (JSON.stringify(a) !== JSON.stringify(b)) fields[path] = b;
  }
}

function handle<S extends StandardSchema, C extends Schemas>(
  rpc: StateService,
  of: ObjectType<S, C>,
  ref: RefInput & { name: string },
  watch: (item: StateItemInput) => Watch<StateView<S, C>>,
): StateHandle<S, C> {
  const what = `${of.type} ${ref.name}`;
  const get: StateHandle<S, C>["get"] = async ({ entries = {}, ...o } = {}) => {
    const queries = Object.entries(entries as StateQueries<Schemas>).map(([collection, q]) => ({
      collection,
      ...(typeof q === "number" ? { reverse: true, limit: q } : Array.isArray(q) ? { keys: [...q] } : (q as QueryInput)),
    }));
    const [found] = (await rpc.read({ reads: [{ ref, queries }] }, o)).objects;
    return read(of, { ref, ...found } as Stored, (collection) =>
      (found?.pages ?? []).flatMap((p) => (p.collection === collection ? p.entries : [])).sort((a, b) => byBytes(a.key, b.key)),
    );
  };
  const apply: StateHandle<S, C>["apply"] = (operations, { signal, timeout, ...o } = {}) =>
    rpc.apply({ ...o, ref, operations }, { signal, timeout });
  return {
    type: of.type,
    name: ref.name,
    get,
    apply,
    update: (change, { entries = {}, ...o } = {}) =>
      retried(o, async (call) => {
        const now = await get({ ...call, entries });
        const operations: OperationInput[] = [];
        const collections: { [name: string]: Collection<unknown, unknown> } = {};
        for (const [collection, schema] of Object.entries(of.collections)) {
          const all = now.entries[collection] ?? [];
          const value = (v: unknown) => fit(schema, v, `${what}: ${collection}`) as Json;
          collections[collection] = {
            get: (key) => structuredClone(all.find((e) => e.key === key)?.value),
            all: () => structuredClone(all),
            put: (key, v) => void operations.push({ put: { entry: { collection, key, json: value(v) } } }),
            append: (v) => void operations.push({ append: { collection, json: value(v) } }),
            delete: (key) => void operations.push({ delete: { collection, keys: [key] } }),
          };
        }
        const draft = structuredClone(now.state) as Out<S>;
        const state = fit(of.state, change(draft, collections as Collections<C>) ?? draft, what) as JsonObject;
        const fields: JsonObject = {};
        const remove: string[] = [];
        differ(now.state as JsonObject, state, "", fields, remove);
        if (Object.keys(fields).length + remove.length > 0)
          operations.unshift(now.absent ? { setState: state } : { setFields: { fields, remove } });
        if (operations.length === 0) return { state: now.state, version: now.version };
        const { version } = await apply(operations, { ...o, ...call, ifVersion: now.version });
        return { state: state as Out<S>, version };
      }),
    async *entries(collection, query, o) {
      for (let at = {}, more = true; more; ) {
        const [found] = (await rpc.read({ reads: [{ ref, withoutState: true, queries: [{ ...query, ...at, collection }] }] }, o))
          .objects;
        const page = found?.pages[0];
        const { entries } = read(of, { ref, absent: true } as Stored, (name) => (name === collection && page?.entries) || []);
        yield* entries[collection];
        more = page?.more ?? false;
        at = { [query?.reverse ? "before" : "after"]: page?.entries.at(-1)?.key };
      }
    },
    delete: async ({ signal, timeout, ...o } = {}) => (await rpc.deleteState({ ...o, ref }, { signal, timeout })).existed,
    watch: (entries = {}) => {
      const collections = Object.entries(entries as { [name: string]: number }).map(([collection, limit]) => ({
        collection,
        limit,
      }));
      return watch({ ref, collections });
    },
  };
}
