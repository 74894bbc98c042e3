// A Holdfast in memory, for tests: a `fetch` that answers as the server does. The tests of test/contract.ts hold for it and for the server.
import { Effect, Layer } from "effect";
import { Holdfast } from "./holdfast.ts";

/**
 * A layer in memory, for tests. It has the calls of conversations and of states as far as the package's contract tests go, and watches of
 * both; all others fail with METHOD_UNKNOWN. Each building of it begins empty.
 */
export const layerMemory: Layer.Layer<Holdfast> = Layer.unwrap(
  Effect.sync(() => Holdfast.layer({ url: "http://memory", fetch: memory() })),
);

type Json = { [name: string]: unknown };

/** What a call that fails is answered with. */
class Refusal extends Error {
  readonly problem: Json;
  constructor(reason: string, message: string, retry: "NEVER" | "REREAD" = "NEVER", details: Json = {}) {
    super(message);
    this.problem = { reason, retry: `RETRY_${retry}`, ...details };
  }
}

const unknown = (what: string) => new Refusal("METHOD_UNKNOWN", `the layer in memory has no ${what}`);
const invalid = (field: string, description: string) =>
  new Refusal("FIELD_INVALID", `${field}: ${description}`, "NEVER", { violations: { fields: [{ field, description }] } });
const unmet = (operation: number, path: string, description: string) =>
  new Refusal("EXPECTATION_FAILED", description, "REREAD", { expectation: { operation, path } });

interface Thing {
  owner: string;
  version: number;
  createTime: string;
  updateTime: string;
  labels: { [name: string]: string };
}

interface Talk extends Thing {
  set: Json;
  messages: Json[];
}

interface Stored extends Thing {
  state: Json;
  entries: Map<string, Json>; // by collection and key
  appended: { [collection: string]: number };
}

/** Objects of a kind, by owner and name. */
class Objects<O extends Thing> {
  readonly all = new Map<string, O>();
  readonly #answers = new Map<string, { body: string; answer: Json }>();
  readonly #kind: string;
  readonly #changed: () => void;

  constructor(kind: string, changed: () => void) {
    this.#kind = kind;
    this.#changed = changed;
  }

  /** change makes a change once, on a copy, which is kept only if nothing throws. The change answers nothing where it changes nothing. */
  change(key: string, request: Json, empty: () => O, make: (object: O, exists: boolean) => Json | undefined): Json {
    const [id, body] = [request["requestId"] ? `${key}\n${request["requestId"]}` : "", JSON.stringify(request)];
    const before = this.#answers.get(id);
    if (before?.body === body) return before.answer;
    if (before) throw new Refusal("REQUEST_ID_REUSED", `request_id ${request["requestId"]} was used for something else`);
    const old = this.all.get(key);
    const wanted = request["ifVersion"];
    if (wanted !== undefined && Number(wanted) !== (old?.version ?? 0)) {
      const mismatch = { currentVersion: old?.version ?? 0, exists: old !== undefined, object: `${this.#kind}/${key}` };
      throw new Refusal("VERSION_MISMATCH", `it is at version ${mismatch.currentVersion}`, "REREAD", { mismatch });
    }
    const next = old ? structuredClone(old) : empty();
    const answer = make(next, old !== undefined);
    if (!answer) return {};
    next.version++;
    next.updateTime = now();
    this.all.set(key, next);
    const full = { ...answer, version: next.version };
    if (id) this.#answers.set(id, { body, answer: full });
    this.#changed();
    return full;
  }

  remove(key: string): Json {
    const old = this.all.get(key);
    this.all.delete(key);
    for (const id of this.#answers.keys()) if (id.startsWith(`${key}\n`)) this.#answers.delete(id);
    if (old) this.#changed();
    return { existed: old !== undefined, version: (old?.version ?? -1) + 1 };
  }
}

const now = () => new Date().toISOString();
const fresh = (owner: string): Thing => ({ owner, version: 0, createTime: now(), updateTime: now(), labels: {} });
const merge = (labels: Thing["labels"], more: unknown) => {
  for (const [name, value] of Object.entries((more ?? {}) as Thing["labels"])) {
    if (value === "") delete labels[name];
    else labels[name] = value;
  }
};
const has = (labels: Thing["labels"], wanted: unknown) =>
  Object.entries((wanted ?? {}) as Thing["labels"]).every(([name, value]) => labels[name] === value);
const equal = (a: unknown, b: unknown): boolean => {
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b;
  const [x, y] = [a as Json, b as Json];
  const names = Object.keys(x);
  return (
    Array.isArray(a) === Array.isArray(b) &&
    names.length === Object.keys(y).length &&
    names.every((n) => n in y && equal(x[n], y[n]))
  );
};

/** nameOf is the name in a key: an object of StateService is its owner's, and the name of a conversation is the tenant's. */
const nameOf = (key: string) => key.slice(key.indexOf("\n") + 1);

/** page is a part of a list, with the place of the next as its token. */
function page<T>(all: T[], request: Json): [T[], string] {
  const [from, size] = [Number(request["pageToken"] || 0), Number(request["pageSize"] || 50)];
  return [all.slice(from, from + size), from + size < all.length ? String(from + size) : ""];
}

/** Where a watch began: what came later is shown, and of what was there as much as was asked for. */
interface Since {
  seq?: number;
  version?: number;
  entries?: Set<string>;
}

/** memory makes a Holdfast that is forgotten with the function. */
function memory(): typeof fetch {
  const watchers = new Set<() => void>();
  const changed = () => {
    for (const tell of [...watchers]) tell();
  };
  const talks = new Objects<Talk>("conversation", changed);
  const states = new Objects<Stored>("state", changed);

  const shown = (id: string, { set, messages, ...thing }: Talk): Json => ({
    ...set,
    ...thing,
    conversationId: id,
    messageCount: messages.length,
    lastSeq: Number(messages.at(-1)?.["seq"] ?? 0),
  });
  const idOf = (request: Json) => String(request["conversationId"] || crypto.randomUUID());
  const talk = (user: string, request: Json): Talk => {
    const found = talks.all.get(idOf(request));
    // Someone else's is not told from one that is not there.
    if (found?.owner !== user) throw new Refusal("NOT_FOUND", `there is no conversation ${request["conversationId"]}`);
    return found;
  };
  const taken = (id: string) => new Refusal("ALREADY_EXISTS", `there is a conversation ${id}`, "REREAD");
  const begun = (user: string) => (): Talk => ({ ...fresh(user), set: {}, messages: [] });
  const set = (on: Talk, request: Json) => {
    const { labels, ...fields } = (request["conversation"] ?? {}) as Json;
    const mask = String(request["updateMask"] ?? "").split(",");
    for (const name of ["title", "projectId", "metadata"]) {
      if (fields[name] !== undefined) on.set[name] = fields[name];
      else if (mask.includes(name)) delete on.set[name];
    }
    if (mask.includes("labels")) on.labels = {};
    merge(on.labels, labels);
    if (new TextEncoder().encode(String(on.set["title"] ?? "")).length > 1024)
      throw invalid("conversation.title", "at most 1024 bytes");
  };
  const add = (on: Talk, list: unknown): { messages: Json[]; duplicateSeqs: unknown[] } => {
    const out = { messages: [] as Json[], duplicateSeqs: [] as unknown[] };
    for (const message of (list ?? []) as Json[]) {
      const id = message["clientMessageId"];
      const twin = id ? on.messages.find((m) => m["clientMessageId"] === id) : undefined;
      if (twin) {
        out.duplicateSeqs.push(twin["seq"]);
        continue;
      }
      const seq = Number(on.messages.at(-1)?.["seq"] ?? 0) + 1;
      on.messages.push({
        status: "MESSAGE_STATUS_COMPLETE",
        modality: "MODALITY_TEXT",
        ...message,
        seq,
        createTime: now(),
        updateTime: now(),
      });
      const { text: _, parts: __, ...given } = on.messages.at(-1) ?? {};
      out.messages.push(given);
    }
    return out;
  };
  const list = <O extends Thing>(of: Objects<O>, user: string, filter: Json, wanted: (o: O, name: string) => boolean) =>
    [...of.all]
      .filter(([key, o]) => o.owner === user && has(o.labels, filter["labels"]) && wanted(o, nameOf(key)))
      .sort(([, a], [, b]) => Date.parse(b.updateTime) - Date.parse(a.updateTime))
      .map(([key, o]) => [nameOf(key), o] as const);
  const conversations = (user: string, filter: Json = {}) =>
    list(
      talks,
      user,
      filter,
      (o) =>
        (!filter["projectId"] || o.set["projectId"] === filter["projectId"]) &&
        (!filter["activeSince"] || Date.parse(o.updateTime) >= Date.parse(String(filter["activeSince"]))),
    ).map(([id, o]) => shown(id, o));

  const refKey = (user: string, ref: unknown): string => {
    const { type, name, owner } = (ref ?? {}) as Json;
    if (!type || !name) throw invalid("ref", "it has a type and a name");
    return `${owner ?? user}\n${JSON.stringify([type, name])}`;
  };
  const object = (key: string, o: Stored | undefined): Json => {
    const [type, name] = JSON.parse(nameOf(key)) as string[];
    if (!o) return { ref: { type, name }, absent: true };
    const { entries: _, appended: __, ...rest } = o;
    return { ref: { type, name }, ...rest };
  };
  const entriesOf = (o: Stored, collection: unknown): Json[] =>
    [...o.entries.values()]
      .filter((e) => e["collection"] === collection)
      .sort((a, b) => byBytes(String(a["key"]), String(b["key"])));
  const inRange = (entries: Json[], range: Json): Json[] =>
    entries.filter(({ key }) => {
      const k = String(key);
      const keys = range["keys"] as string[] | undefined;
      return (
        (!keys?.length || keys.includes(k)) &&
        (!range["prefix"] || k.startsWith(String(range["prefix"]))) &&
        (!range["after"] || byBytes(k, String(range["after"])) > 0) &&
        (!range["before"] || byBytes(k, String(range["before"])) < 0)
      );
    });
  const statesOf = (user: string, filter: Json = {}) =>
    list(states, user, filter, (_, name) => {
      const [type, own] = JSON.parse(name) as [string, string];
      return (!filter["type"] || type === filter["type"]) && own.startsWith(String(filter["namePrefix"] ?? ""));
    });

  const calls: { [call: string]: (user: string, request: Json) => Json } = {
    CreateConversation(user, request) {
      const id = idOf(request);
      const answer = talks.change(id, request, begun(user), (on, exists) => {
        if (exists) throw taken(id);
        set(on, request);
        return add(on, request["messages"]);
      });
      return { ...answer, conversation: shown(id, talk(user, { conversationId: id })) };
    },
    GetConversation(user, request) {
      const found = talk(user, request);
      if (request["ifVersionNot"] === found.version) return { notModified: true };
      const limit = Number(request["messageLimit"] ?? 0);
      return {
        conversation: shown(String(request["conversationId"]), found),
        messages: limit ? found.messages.slice(-limit) : [],
      };
    },
    ListConversations(user, request) {
      const [some, nextPageToken] = page(conversations(user, request["filter"] as Json), request);
      return { conversations: some, nextPageToken };
    },
    UpdateConversation(user, request) {
      talk(user, request);
      talks.change(idOf(request), request, begun(user), (on) => {
        set(on, request);
        return {};
      });
      return { conversation: shown(idOf(request), talk(user, request)) };
    },
    DeleteConversation(user, request) {
      const mine = talks.all.get(idOf(request))?.owner === user;
      return mine ? talks.remove(idOf(request)) : { existed: false };
    },
    Append(user, request) {
      const id = idOf(request);
      return talks.change(id, request, begun(user), (on, exists) => {
        if (!request["createIfMissing"]) talk(user, request);
        else if (on.owner !== user) throw taken(id);
        if (!exists) set(on, request);
        else if (((request["messages"] ?? []) as Json[]).length === 0) throw invalid("messages", "there are none");
        return { created: !exists, ...add(on, request["messages"]) };
      });
    },
    ListMessages(user, request) {
      const [after, before] = [Number(request["afterSeq"] ?? 0), Number(request["beforeSeq"] ?? 0) || Number.POSITIVE_INFINITY];
      const { messages, version } = talk(user, request);
      const all = messages.filter(({ seq }) => Number(seq) > after && Number(seq) < before);
      const [some, nextPageToken] = page(request["newestFirst"] ? all.reverse() : all, request);
      return { messages: some, nextPageToken, version };
    },
    Apply(user, request) {
      const key = refKey(user, request["ref"]);
      const empty = () => ({
        ...fresh(key.slice(0, key.indexOf("\n"))),
        state: {},
        entries: new Map<string, Json>(),
        appended: {},
      });
      return states.change(key, request, empty, (on, exists) => {
        if (!exists && request["mustExist"]) throw new Refusal("NOT_FOUND", "there is no such object");
        merge(on.labels, request["labels"]);
        const operations = (request["operations"] ?? []) as Json[];
        return { created: !exists, results: operations.map((operation, i) => apply(on, operation, i, entriesOf, inRange)) };
      });
    },
    Read(user, request) {
      const objects = ((request["reads"] ?? []) as Json[]).map((read) => {
        const key = refKey(user, read["ref"]);
        const found = states.all.get(key);
        if (!found) return object(key, undefined);
        const pages = ((read["queries"] ?? []) as Json[]).map((query) => {
          const all = inRange(entriesOf(found, query["collection"]), query);
          const limit = Number(query["limit"] || 50);
          const entries = (query["reverse"] ? all.reverse() : all).slice(0, limit);
          return { collection: query["collection"], entries, more: all.length > limit };
        });
        if (Number(read["ifVersionNot"]) === found.version)
          return { ref: object(key, found)["ref"], version: found.version, notModified: true, pages };
        return { ...object(key, found), pages };
      });
      return { objects };
    },
    ListStates(user, request) {
      const all = statesOf(user, request["filter"] as Json).map(([name, o]) => {
        const { state, ...rest } = object(`${user}\n${name}`, o);
        return request["withState"] ? { ...rest, state } : rest;
      });
      const [objects, nextPageToken] = page(all, request);
      return { objects, nextPageToken };
    },
    DeleteState: (user, request) => states.remove(refKey(user, request["ref"])),
  };

  /** look is what an item shows now: its things by key, or nothing while it is absent. */
  const look = (user: string, item: Json): ((since: Since) => { version: number; things: Json[] } | undefined) => {
    const { conversation, state, list } = item as { [kind: string]: Json | undefined };
    if (conversation)
      return (since) => {
        const id = String(conversation["conversationId"]);
        const found = talks.all.get(id);
        if (found?.owner !== user) {
          since.seq ??= 0;
          return undefined;
        }
        since.seq ??= Number(found.messages.at(-1 - Number(conversation["messageLimit"] ?? 0))?.["seq"] ?? 0);
        const messages = found.messages.filter((m) => Number(m["seq"]) > (since.seq ?? 0));
        return {
          version: found.version,
          things: [
            { key: "conversation", conversation: shown(id, found) },
            ...messages.map((message) => ({ key: `messages/${message["seq"]}`, message })),
          ],
        };
      };
    if (state)
      return (since) => {
        const key = refKey(user, state["ref"]);
        const found = states.all.get(key);
        if (!found) {
          since.version ??= 0;
          return undefined;
        }
        const collections = (state["collections"] ?? []) as Json[];
        const last = (c: Json) => (Number(c["limit"]) ? entriesOf(found, c["collection"]).slice(-Number(c["limit"])) : []);
        since.entries ??= new Set(collections.flatMap(last).map((e) => `${e["collection"]}\n${e["key"]}`));
        since.version ??= found.version;
        const { entries: first, version } = since;
        const entries = collections
          .flatMap((c) => entriesOf(found, c["collection"]))
          .filter((e) => Number(e["version"]) > version || first.has(`${e["collection"]}\n${e["key"]}`));
        return {
          version: found.version,
          things: [
            { key: "object", object: object(key, found) },
            ...entries.map((entry) => ({ key: `entries/${entry["collection"]}/${entry["key"]}`, entry })),
          ],
        };
      };
    if (list?.["conversations"])
      return () => ({
        version: 0,
        things: conversations(user, list["conversations"] as Json)
          .slice(0, Number(list["limit"] || 50))
          .map((c) => ({ key: `conversations/${c["conversationId"]}`, conversation: c })),
      });
    throw unknown(`watch of ${Object.keys(item).join(", ")}`);
  };

  const watch = (
    user: string,
    request: Json,
    signal: AbortSignal | null | undefined,
  ): ReadableStream<Uint8Array<ArrayBuffer>> => {
    const items = ((request["items"] ?? []) as Json[]).map(({ itemId, cursor: _, ...item }) => ({
      itemId,
      look: look(user, item),
      since: {},
      sent: undefined as Map<string, string> | undefined,
      absent: false,
    }));
    let tell = () => {};
    const end = () => watchers.delete(tell);
    return new ReadableStream({
      start(controller) {
        tell = () => {
          for (const item of items) {
            const seen = item.look(item.since);
            const next = new Map((seen?.things ?? []).map((t) => [String(t["key"]), JSON.stringify(t)]));
            const put = [...next].filter(([key, text]) => item.sent?.get(key) !== text).map(([, text]) => JSON.parse(text));
            const removed = [...(item.sent?.keys() ?? [])].filter((key) => !next.has(key));
            const absent = seen === undefined;
            if (item.sent && absent === item.absent && put.length === 0 && removed.length === 0) continue;
            const changed = { reset: !item.sent, put, removed, absent, version: seen?.version ?? 0 };
            [item.sent, item.absent] = [next, absent];
            controller.enqueue(frame({ itemId: item.itemId, changed }));
          }
        };
        watchers.add(tell);
        signal?.addEventListener("abort", () => {
          end();
          controller.error(signal.reason);
        });
        tell();
      },
      cancel() {
        end();
      },
    });
  };

  return async (input, init) => {
    init?.signal?.throwIfAborted();
    const call = String(input).split("/").at(-1) ?? "";
    const user = new Headers(init?.headers).get("Holdfast-User") ?? "";
    try {
      if (call === "Watch") {
        const framed = (init as { body: Uint8Array<ArrayBuffer> }).body;
        const request = JSON.parse(new TextDecoder().decode(framed.subarray(5))) as Json;
        return new Response(watch(user, request, init?.signal), { headers: { "Content-Type": "application/connect+json" } });
      }
      const answer = calls[call];
      if (!answer) throw unknown(`call ${call}`);
      return Response.json(structuredClone(answer(user, JSON.parse(String(init?.body)) as Json)));
    } catch (e) {
      if (!(e instanceof Refusal)) throw e;
      const details = [{ type: "holdfast.error.v1.Problem", debug: e.problem }];
      return Response.json({ code: "unknown", message: e.message, details }, { status: 400 });
    }
  };
}

/** apply makes one operation on an object, and is its result. */
function apply(
  on: Stored,
  operation: Json,
  index: number,
  entriesOf: (o: Stored, collection: unknown) => Json[],
  inRange: (entries: Json[], range: Json) => Json[],
): Json {
  const [kind = "nothing", value] = Object.entries(operation).find(([, v]) => v !== undefined) ?? [];
  const of = (typeof value === "object" ? value : {}) as Json;
  const write = (entry: Json, key: string): Json => {
    const { jsonText, ...rest } = entry;
    if (jsonText !== undefined) rest["json"] = JSON.parse(String(jsonText));
    on.entries.set(`${entry["collection"]}\n${key}`, { ...rest, key, version: on.version + 1 });
    return { key };
  };
  switch (kind) {
    case "setState":
      on.state = structuredClone(of);
      return {};
    case "setFields":
      for (const [path, field] of Object.entries((of["fields"] ?? {}) as Json))
        place(on.state, path)?.set(structuredClone(field));
      for (const path of (of["remove"] ?? []) as string[]) place(on.state, path)?.remove();
      return {};
    case "increment": {
      const path = String(of["path"]);
      const at = place(on.state, path);
      const old = at?.get() ?? 0;
      if (!at || typeof old !== "number") throw unmet(index, path, `${path} is no number`);
      const number = Number((old + Number(of["by"] ?? 1)).toPrecision(15)); // 0.1 + 0.2 is 0.3
      at.set(number);
      return { number };
    }
    case "append": {
      const collection = String(of["collection"]);
      on.appended[collection] = (on.appended[collection] ?? 0) + 1;
      return write(of, String(on.appended[collection]).padStart(12, "0"));
    }
    case "put": {
      const entry = (of["entry"] ?? {}) as Json;
      const exists = on.entries.has(`${entry["collection"]}\n${entry["key"]}`);
      if (exists && of["onExists"] === "ON_EXISTS_FAIL") throw new Refusal("ALREADY_EXISTS", `there is an entry ${entry["key"]}`);
      if (exists && of["onExists"] === "ON_EXISTS_KEEP") return { put: false };
      write(entry, String(entry["key"]));
      return { put: true };
    }
    case "delete": {
      const all = inRange(entriesOf(on, of["collection"]), of);
      const deleted = of["last"] ? all.slice(-Number(of["last"])) : of["limit"] ? all.slice(0, Number(of["limit"])) : all;
      for (const e of deleted) on.entries.delete(`${e["collection"]}\n${e["key"]}`);
      return {
        deletedCount: deleted.length,
        deleted: of["returnDeleted"] ? deleted : [],
        more: deleted.length < all.length && !of["last"],
      };
    }
    case "expect": {
      const path = of["collection"] ? `${of["collection"]}/${of["key"]}` : String(of["path"] ?? "");
      const entry = of["collection"] ? on.entries.get(`${of["collection"]}\n${of["key"]}`) : undefined;
      if (of["last"] !== undefined) throw unknown("expectation of last entries");
      const actual = of["collection"] ? entry?.["json"] : path === "" ? on.state : place(on.state, path)?.get();
      const there = of["collection"] ? entry !== undefined : actual !== undefined;
      const wanted = of["jsonText"] === undefined ? of["json"] : JSON.parse(String(of["jsonText"]));
      const met =
        (of["absent"] === undefined || of["absent"] === !there) &&
        (wanted === undefined || (there && equal(actual, wanted))) &&
        ["text", "data", "version"].every((name) => of[name] === undefined || entry?.[name] === of[name]);
      if (!met) throw unmet(index, path, `${path} is not as expected`);
      return {};
    }
    default:
      throw unknown(`operation ${kind}`);
  }
}

/** place finds a path of a state: a JSON Pointer, or the name of a field. */
function place(state: Json, path: string): { get(): unknown; set(value: unknown): void; remove(): void } | undefined {
  const names = path.startsWith("/")
    ? path
        .slice(1)
        .split("/")
        .map((n) => n.replaceAll("~1", "/").replaceAll("~0", "~"))
    : [path];
  const last = names.pop() ?? "";
  let at = state;
  for (const name of names) {
    at[name] ??= {};
    at = at[name] as Json;
    if (typeof at !== "object" || at === null) return undefined;
  }
  return {
    get: () => at[last],
    set(value) {
      at[last] = value;
    },
    remove() {
      delete at[last];
    },
  };
}

/** byBytes has the order of the server's keys, which is that of code points. */
function byBytes(a: string, b: string): number {
  const [x, y] = [Array.from(a), Array.from(b)];
  for (let i = 0; i < x.length && i < y.length; i++)
    if (x[i] !== y[i]) return (x[i]?.codePointAt(0) ?? 0) - (y[i]?.codePointAt(0) ?? 0);
  return x.length - y.length;
}

function frame(message: Json): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(JSON.stringify(message));
  const framed = new Uint8Array(5 + text.length);
  new DataView(framed.buffer).setUint32(1, text.length);
  framed.set(text, 5);
  return framed;
}
