import type {
  Assistant,
  AssistantOptions,
  ConversationView,
  conversation,
  coordination,
  Holdfast,
  HoldfastError,
  inspect,
  linear,
  ObjectType,
  project,
  Schemas,
  StandardSchema,
  StateView,
  Status,
  session,
  View,
  watch,
} from "@holdfast/client";
import { useEffect, useMemo, useSyncExternalStore } from "react";
import { type Outgoing, outbox, unseen } from "./append.ts";
import { type Live, type Shown, type Source, useHoldfast, useLive, type Waiting } from "./live.ts";

/** A conversation as a page shows it. */
export interface Conversation extends ConversationView {
  /** What useAppend sends and `messages` does not have yet. A message is in one of the two from the first moment on, and never in both. */
  readonly outgoing: readonly Outgoing[];
}

/** useConversation shows a conversation with its newest messages, of which there are none unless `messages` says how many. */
export function useConversation<S extends boolean = false>(
  conversationId: string,
  options: { messages?: number; signals?: boolean } & Waiting<S> = {},
): Shown<Conversation, S> {
  const { suspense, ...how } = options;
  return useTalk(conversationId, "conversation", how, (hf) => hf.conversation(conversationId).watch(how), suspense);
}

/** useTalk adds what is on its way to a view of a conversation. */
export function useTalk<V extends Pick<ConversationView, "version" | "messages">, S extends boolean>(
  conversationId: string,
  kind: string,
  how: object,
  follow: (hf: Holdfast) => Source<V>,
  suspense: S | undefined,
): Shown<V & Pick<Conversation, "outgoing">, S> {
  const out = outbox(useHoldfast(), conversationId);
  const batches = useSyncExternalStore(out.subscribe, out.get, out.get);
  const add = (view: V) => ({ ...view, outgoing: batches.flatMap((b) => unseen(b, view)) });
  const shown = useMapped(`${kind} ${JSON.stringify([conversationId, how])}`, follow, add, suspense, batches);
  const view = (suspense ? shown : (shown as Live<V>).value) as V | undefined;
  useEffect(() => {
    if (view) out.seen(view);
  }, [out, view]);
  return shown;
}

/** useConversations shows the caller's conversations, the last changed first. */
export function useConversations<S extends boolean = false>(
  filter: conversation.ConversationFilterInput = {},
  options: Listed<S> = {},
): Shown<readonly conversation.Conversation[], S> {
  return useList("conversation", { conversations: filter }, options);
}

/** useProjects shows the caller's projects, the last changed first. */
export function useProjects<S extends boolean = false>(
  filter: project.ProjectFilterInput = {},
  options: Listed<S> = {},
): Shown<readonly project.Project[], S> {
  return useList("project", { projects: filter }, options);
}

/** useTasks shows the caller's tasks, the last changed first. */
export function useTasks<S extends boolean = false>(
  filter: project.TaskFilterInput = {},
  options: Listed<S> = {},
): Shown<readonly project.Task[], S> {
  return useList("task", { tasks: filter }, options);
}

/** useIssues shows issues of Linear, the last changed first. */
export function useIssues<S extends boolean = false>(
  filter: linear.IssueFilterInput = {},
  options: Listed<S> = {},
): Shown<readonly linear.Issue[], S> {
  return useList("issue", { issues: filter }, options);
}

/** useProject shows a project; undefined while there is none. */
export function useProject<S extends boolean = false>(
  projectId: string,
  options: Waiting<S> = {},
): Shown<project.Project | undefined, S> {
  return useThing("project", { projectId }, options);
}

/** useTask shows a run of a coding agent; undefined while there is none. */
export function useTask<S extends boolean = false>(taskId: string, options: Waiting<S> = {}): Shown<project.Task | undefined, S> {
  return useThing("task", { taskId }, options);
}

/** useApi shows how a provider's API stands; undefined while it was never used. */
export function useApi<S extends boolean = false>(
  name: string,
  options: Waiting<S> = {},
): Shown<coordination.Api | undefined, S> {
  return useThing("api", { api: name }, options);
}

/** usePreferences shows the caller's preferences; undefined while there are none, neither the user's own nor the tenant's. */
export function usePreferences<S extends boolean = false>(options: Waiting<S> = {}): Shown<project.Preferences | undefined, S> {
  return useThing("preferences", { preferences: true }, options);
}

/** What an assistant's page shows. */
export interface AssistantPage extends Assistant, Pick<Conversation, "outgoing"> {}

/**
 * useAssistant shows all that an assistant's page holds: the conversation with its voice and with messages on their way, the user's sessions, and the
 * project with its tasks, issues, preferences and APIs.
 */
export function useAssistant<S extends boolean = false>(
  conversationId: string,
  options: AssistantOptions & Waiting<S> = {},
): Shown<AssistantPage, S> {
  const { suspense, ...how } = options;
  return useTalk(conversationId, "assistant", how, (hf) => hf.assistant(conversationId, how), suspense);
}

/** A user's sessions. */
export interface Sessions {
  /** The one whose token the page's calls are made with; of clients with an API key there is none. */
  readonly current: session.Session | undefined;
  /** All of the user's, also the last that ended, the newest first. */
  readonly all: readonly session.Session[];
}

/** useSession shows the caller's session and the user's others. Who is signed in at all, useStatus shows. */
export function useSession<S extends boolean = false>(options: Waiting<S> = {}): Shown<Sessions, S> {
  return useWatch({ session: {} }, options, (view) => {
    const all = newest(view, "session", "createTime");
    return { current: all.find((s) => s.current), all };
  });
}

/** usePresence shows where a user is: the caller, or by services another one. */
export function usePresence<S extends boolean = false>(
  options: { user?: string } & Waiting<S> = {},
): Shown<session.Presence | undefined, S> {
  const { user } = options;
  return useWatch({ session: user === undefined ? {} : { user } }, options, (view) => view.things.get("presence")?.presence);
}

/** useStatus shows whether someone is signed in, and whether the server answers. */
export function useStatus(): Status {
  const { status } = useHoldfast();
  return useSyncExternalStore(status.subscribe, status.get, status.get);
}

/**
 * useObject shows an object of a type of your own, made by `defineObject`, and entries of its collections, of each from so many of the last on. Of an
 * object that is not there yet it shows the type's initial state.
 */
export function useObject<S extends StandardSchema, C extends Schemas, W extends boolean = false>(
  type: ObjectType<S, C>,
  name: string,
  options: { entries?: { readonly [K in keyof C]?: number } } & Waiting<W> = {},
): Shown<StateView<S, C>, W> {
  const { entries, suspense } = options;
  return useLive<StateView<S, C>, W>(
    `state ${JSON.stringify([type.type, name, entries])}`,
    (hf) => hf.state(type, name).watch(entries),
    { suspense },
  );
}

/** useObjectAt shows an object of any kind as it was at a version or a time. */
export function useObjectAt<S extends boolean = false>(
  kind: string,
  objectId: string,
  moment: inspect.MomentInput,
  options: Waiting<S> = {},
): Shown<inspect.StoredObject, S> {
  return useLive(
    `at ${JSON.stringify([kind, objectId, moment])}`,
    (hf) => once((signal) => hf.inspect(kind, objectId).at(moment, { signal })),
    options,
  );
}

/** How much of a list to show. */
export interface Listed<S extends boolean> extends Waiting<S> {
  /** 1 to 200; 50. */
  limit?: number | undefined;
}

function useList<K extends keyof watch.Thing, S extends boolean>(
  key: K,
  list: watch.ListItemInput,
  options: Listed<S>,
): Shown<readonly NonNullable<watch.Thing[K]>[], S> {
  return useWatch({ list: { ...list, limit: options.limit } }, options, (view) => newest(view, key, "updateTime"));
}

function useThing<K extends keyof watch.Thing, S extends boolean>(
  key: K,
  item: watch.ItemInput,
  options: Waiting<S>,
): Shown<NonNullable<watch.Thing[K]> | undefined, S> {
  return useWatch(item, options, (view) => view.things.get(key)?.[key] ?? undefined);
}

/** useWatch shows what `show` makes of anything that can be watched. */
export function useWatch<T, S extends boolean = false>(
  item: Omit<watch.ItemInput, "itemId" | "cursor">,
  options: Waiting<S>,
  show: (view: View) => T,
): Shown<T, S> {
  return useMapped(`item ${JSON.stringify(item)}`, (hf) => hf.watch(item), show, options.suspense);
}

/** useMapped is useLive with a value that is made of the watch's: again with each of its changes, and of what else it is made of. */
function useMapped<V, T, S extends boolean>(
  key: string,
  follow: (hf: Holdfast) => Source<V>,
  show: (value: V) => T,
  suspense: S | undefined,
  also?: unknown,
): Shown<T, S> {
  const shown = useLive<V, boolean>(key, follow, { suspense });
  // show is new in each render, and the same function of the key and `also`.
  return useMemo(() => {
    if (suspense) return show(shown as V);
    const live = shown as Live<V>;
    return live.value === undefined ? live : { ...live, value: show(live.value) };
  }, [shown, key, suspense, also]) as Shown<T, S>;
}

function newest<K extends keyof watch.Thing>(view: View, key: K, by: string): NonNullable<watch.Thing[K]>[] {
  const all = [...view.things.values()].flatMap((t) => t[key] ?? []) as NonNullable<watch.Thing[K]>[];
  const time = (o: object) => Date.parse((o as { [field: string]: string })[by] ?? "") || 0;
  return all.sort((a, b) => time(b as object) - time(a as object));
}

/** once is a watch of what does not change: it calls for the first subscriber, and ends the call when the last is gone. */
function once<T>(call: (signal: AbortSignal) => Promise<T>): Source<T> {
  let value: T | undefined;
  let error: HoldfastError | undefined;
  return {
    get: () => value,
    error: () => error,
    subscribe(changed) {
      const controller = new AbortController();
      [value, error] = [undefined, undefined];
      call(controller.signal).then(
        (v) => {
          value = v;
          changed();
        },
        (e) => {
          if (controller.signal.aborted) return;
          error = e;
          changed();
        },
      );
      return () => {
        controller.abort();
        [value, error] = [undefined, undefined];
      };
    },
  };
}
