import { type Assistant, type AssistantOptions, assistant } from "./assistant.ts";
import type { CallOptions } from "./call.ts";
import { type Change, pages, retried } from "./change.ts";
import type * as conversation from "./gen/conversation.ts";
import type * as coordination from "./gen/coordination.ts";
import type * as inspect from "./gen/inspect.ts";
import type * as linear from "./gen/linear.ts";
import type * as live from "./gen/live.ts";
import type * as project from "./gen/project.ts";
import type { Rpc } from "./gen/rpc.ts";
import type * as session from "./gen/session.ts";
import type { ItemInput } from "./gen/watch.ts";
import type { ObjectType, Schemas, StandardSchema, StateHandle } from "./state.ts";
import {
  asItIs,
  type ConversationView,
  conversationView,
  projectView,
  taskView,
  type View,
  type Watch,
  type Watched,
  type Watcher,
} from "./watch.ts";

/** A request without what the handle or the call's other arguments have. */
type Without<R, K extends keyof R> = Omit<R, K>;
/** A change, or a function that makes one of what there is. The function may run more than once. */
type ChangeOf<T, I> = I | ((now: T) => I);
/** Everything of a list, fetched page by page as it is read. */
type All<T> = AsyncIterableIterator<T>;

export interface Handles {
  /** A conversation. */
  conversation(conversationId: string): ConversationHandle;
  /** The caller's conversations, the last changed first. */
  conversations(filter?: conversation.ConversationFilterInput, options?: CallOptions): All<conversation.Conversation>;
  /** A project. */
  project(projectId: string): ProjectHandle;
  projects(filter?: project.ProjectFilterInput, options?: CallOptions): All<project.Project>;
  /** A run of a coding agent. */
  task(taskId: string): TaskHandle;
  tasks(filter?: project.TaskFilterInput, options?: CallOptions): All<project.Task>;
  /** The caller's preferences. */
  readonly preferences: PreferencesHandle;
  /** A session; without an id the one whose token calls are made with. */
  session(sessionId?: string): SessionHandle;
  /** The caller's sessions, or by services a user's, the newest first. */
  sessions(request?: Without<session.ListSessionsRequest, "pageToken">, options?: CallOptions): All<session.Session>;
  /** The coordinator of a provider's API. */
  api(name: string): ApiHandle;
  apis(options?: CallOptions): All<coordination.Api>;
  /** Linear's issues. */
  readonly linear: LinearHandle;
  /**
   * What an assistant's page holds, as one live value: the conversation with its messages and its voice, the user's sessions, and the context of
   * the project that the user works on.
   */
  assistant(conversationId: string, options?: AssistantOptions): Watch<Assistant>;
  /** An object of a type of your own; `owner` as in `hf.rpc.state`. */
  state<S extends StandardSchema, C extends Schemas>(type: ObjectType<S, C>, name: string, owner?: string): StateHandle<S, C>;
  /** Any object, as it is stored and as it was. */
  inspect(kind: string, objectId: string): InspectHandle;
  /** Anything that can be watched, such as `{ list: { tasks: { open: true } } }`. All watches of a client share a stream. */
  watch(item: Omit<ItemInput, "itemId" | "cursor">): Watch<View>;
}

export interface ConversationHandle {
  readonly id: string;
  /** Creates it. ALREADY_EXISTS where the id is taken. */
  create(
    conversation?: conversation.ConversationInput,
    more?: Pick<conversation.CreateConversationRequest, "messages" | "shared">,
    options?: Change,
  ): Promise<conversation.Conversation>;
  /** The conversation with its newest messages, of which there are none unless `messages` says how many. */
  get(options?: { messages?: number } & CallOptions): Promise<conversation.Conversation & { messages: conversation.Message[] }>;
  /** Appends a turn, all of it or none. The answer has what the server gave each message, and not its text again. */
  append(
    messages: conversation.MessageInput | conversation.MessageInput[],
    more?: Without<conversation.AppendRequest, "conversationId" | "messages" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<conversation.AppendResponse>;
  /** Truncates, deletes, changes and appends messages, all of it or none. */
  edit(
    edits: Without<conversation.EditMessagesRequest, "conversationId" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<conversation.EditMessagesResponse>;
  /** Changes its title, labels and the like. What is set is set; labels merge. A function runs again where someone else was faster. */
  update(
    change: ChangeOf<conversation.Conversation, conversation.ConversationInput>,
    options?: Change,
  ): Promise<conversation.Conversation>;
  /** Deletes it, and resolves to whether it was there. */
  delete(options?: Change): Promise<boolean>;
  /** All messages, or those that the request names. */
  messages(
    request?: Without<conversation.ListMessagesRequest, "conversationId" | "pageToken">,
    options?: CallOptions,
  ): All<conversation.Message>;
  /** Intents, steps of flows, summaries, fragments and tool calls. */
  records(
    request?: Without<conversation.ListRecordsRequest, "conversationId" | "pageToken">,
    options?: CallOptions,
  ): All<conversation.Record>;
  /** What a model is told, within a budget of tokens. */
  context(
    request?: Without<conversation.GetContextWindowRequest, "conversationId">,
    options?: CallOptions,
  ): Promise<conversation.GetContextWindowResponse>;
  /** What to summarize, and the lease to do it. */
  proposeCompaction(
    request?: Without<conversation.ProposeCompactionRequest, "conversationId" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<conversation.ProposeCompactionResponse>;
  commitCompaction(
    request: Without<conversation.CommitCompactionRequest, "conversationId" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<conversation.CommitCompactionResponse>;
  /** Copies it, as it is, or was at a version or message. */
  fork(
    request?: Without<conversation.ForkConversationRequest, "conversationId" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<conversation.Conversation>;
  /** Follows it, from so many of its newest messages on: what is stored and, with `signals`, what is said right now. */
  watch(options?: { messages?: number; signals?: boolean }): Watch<ConversationView>;
  /** Its connection to Gemini Live. */
  readonly live: LiveHandle;
}

export interface LiveHandle {
  /** Takes the conversation's one connection, and answers how to connect to the provider. */
  connect(
    request?: Without<live.ConnectLiveRequest, "conversationId" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<live.ConnectLiveResponse>;
  /** Folds frames of the provider's socket into the conversation; without frames it renews the lease. */
  ingest(request: Without<live.IngestLiveRequest, "conversationId">, options?: CallOptions): Promise<live.IngestLiveResponse>;
  disconnect(
    request: Without<live.DisconnectLiveRequest, "conversationId" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<live.DisconnectLiveResponse>;
  claimToolCall(
    request: Without<live.ClaimToolCallRequest, "conversationId" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<live.ClaimToolCallResponse>;
  completeToolCall(
    request: Without<live.CompleteToolCallRequest, "conversationId" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<live.CompleteToolCallResponse>;
  /** The raw frames that are kept, oldest first. */
  frames(options?: CallOptions): All<live.LiveFrameBatch>;
}

export interface ProjectHandle {
  readonly id: string;
  get(options?: CallOptions): Promise<project.Project>;
  /** Makes or changes it. What is set is set; labels and settings merge. A function runs again where someone else was faster. */
  put(
    change: ChangeOf<project.Project, project.ProjectInput>,
    options?: Change & Pick<project.PutProjectRequest, "mustExist" | "shared">,
  ): Promise<project.Project>;
  /** Deletes it, and resolves to whether it was there. */
  delete(options?: Change): Promise<boolean>;
  /** The seed of an assistant's turn: tasks, issues, preferences and the standing of APIs, of one moment. */
  context(
    request?: Without<project.GetProjectContextRequest, "projectId">,
    options?: CallOptions,
  ): Promise<project.GetProjectContextResponse>;
  tasks(filter?: Without<project.TaskFilterInput, "projectId">, options?: CallOptions): All<project.Task>;
  watch(): Watch<Watched<project.Project>>;
}

export interface TaskHandle {
  readonly id: string;
  get(options?: CallOptions): Promise<project.Task>;
  /** Makes or changes it, or reports its status. A function runs again where someone else was faster. */
  put(
    change: ChangeOf<project.Task, project.TaskInput>,
    options?: Change & Pick<project.PutTaskRequest, "mustExist" | "shared" | "report">,
  ): Promise<project.Task>;
  delete(options?: Change): Promise<boolean>;
  /** The changes of its status, the newest first. */
  transitions(options?: CallOptions): All<project.TaskTransition>;
  watch(): Watch<Watched<project.Task>>;
}

export interface PreferencesHandle {
  get(options?: CallOptions): Promise<project.GetPreferencesResponse>;
  update(
    preferences: project.PreferencesInput,
    options?: Change & Pick<project.UpdatePreferencesRequest, "tenantDefaults">,
  ): Promise<project.Preferences>;
}

export interface SessionHandle {
  get(options?: CallOptions): Promise<session.Session>;
  update(change: session.SessionInput, options?: Change): Promise<session.Session>;
  /** Signs it out. */
  end(options?: Change): Promise<session.EndSessionsResponse>;
  /** Opens a connection, keeps it alive, changes or closes it. */
  connection(
    request: Without<session.PutConnectionRequest, "sessionId" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<session.PutConnectionResponse>;
}

export interface ApiHandle {
  readonly name: string;
  get(
    request?: Without<coordination.GetApiRequest, "api" | "pageToken">,
    options?: CallOptions,
  ): Promise<coordination.Api & { usage: coordination.UsageDay[] }>;
  /** Changes its limits and breaker; services only. */
  update(
    change: Without<coordination.UpdateApiRequest, "api" | "requestId" | "ifVersion" | "updateMask">,
    options?: Change,
  ): Promise<coordination.Api>;
  /** Takes from its limits. `grantId` is made by the client, so that a repeated call takes once. */
  acquire(request?: Without<coordination.AcquireRequest, "api">, options?: CallOptions): Promise<coordination.AcquireResponse>;
  release(request: Without<coordination.ReleaseRequest, "api">, options?: CallOptions): Promise<coordination.ReleaseResponse>;
  /** Tells what the provider said of its limits, how far a sync is, or which Live sessions there are. */
  report(
    request: Without<coordination.ReportRequest, "api" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<coordination.ReportResponse>;
  /** Begins a call that goes out once, no matter how many clients try. */
  begin(
    request: Without<coordination.BeginCallRequest, "api" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<coordination.BeginCallResponse>;
  finish(
    request: Without<coordination.FinishCallRequest, "api" | "requestId" | "ifVersion">,
    options?: Change,
  ): Promise<coordination.FinishCallResponse>;
  calls(request?: Without<coordination.ListCallsRequest, "api" | "pageToken">, options?: CallOptions): All<coordination.Call>;
}

export interface LinearHandle {
  issues(filter?: linear.IssueFilterInput, options?: { payload?: boolean } & CallOptions): All<linear.Issue>;
  putIssues(issues: linear.PutIssuesRequest["issues"], options?: Change): Promise<linear.PutIssueResult[]>;
}

export interface InspectHandle {
  get(options?: CallOptions): Promise<inspect.StoredObject>;
  /** The object as it was at a version or a time. */
  at(moment: inspect.MomentInput, options?: CallOptions): Promise<inspect.StoredObject>;
  /** Its entries, as they are or were. */
  entries(request?: Pick<inspect.GetObjectRequest, "at" | "collection">, options?: CallOptions): All<inspect.StoredEntry>;
  /** Its changes, the newest first. */
  events(options?: CallOptions): All<inspect.Event>;
  diff(from: inspect.MomentInput, to?: inspect.MomentInput, options?: CallOptions): Promise<inspect.DiffObjectResponse>;
  /** Makes it again what it was. That is a new version. */
  restore(at: inspect.MomentInput, options?: Change): Promise<inspect.RestoreObjectResponse>;
  delete(options?: Change): Promise<boolean>;
  timers(options?: { parked?: boolean } & CallOptions): All<inspect.Timer>;
  retryTimer(name: string, options?: Change): Promise<inspect.RetryTimerResponse>;
}

/** handles makes the handles. None of them does I/O until it is called. */
export function handles(rpc: Rpc, watcher: Watcher): Handles {
  return {
    conversation: (id) => conversationHandle(rpc, watcher, id),
    conversations: (filter, o) => pages(rpc.conversation.listConversations, { filter }, (a) => a.conversations, o),
    project: (id) => projectHandle(rpc, watcher, id),
    projects: (filter, o) => pages(rpc.project.listProjects, { filter }, (a) => a.projects, o),
    task: (id) => taskHandle(rpc, watcher, id),
    tasks: (filter, o) => pages(rpc.project.listTasks, { filter }, (a) => a.tasks, o),
    preferences: {
      get: (o) => rpc.project.getPreferences({}, o),
      update: async (preferences, o) => has((await rpc.project.updatePreferences({ ...change(o), preferences }, o)).preferences),
    },
    session: (id) => sessionHandle(rpc, id),
    sessions: (request, o) => pages(rpc.session.listSessions, { ...request }, (a) => a.sessions, o),
    api: (name) => apiHandle(rpc, name),
    apis: (o) => pages(rpc.coordination.listApis, {}, (a) => a.apis, o),
    linear: {
      issues: (filter, o = {}) => pages(rpc.linear.listIssues, { filter, withPayload: o.payload }, (a) => a.issues, o),
      putIssues: async (issues, o) => (await rpc.linear.putIssues({ ...ids(o), issues }, o)).results,
    },
    assistant: (id, o) => assistant(watcher, id, o),
    state: (type, name, owner) => type.open(rpc, watcher, name, owner),
    inspect: (kind, objectId) => inspectHandle(rpc, { kind, objectId }),
    watch: (item) => watcher.watch(item, asItIs),
  };
}

function conversationHandle({ conversation: c, live: l }: Rpc, watcher: Watcher, conversationId: string): ConversationHandle {
  const at = { conversationId };
  const get: ConversationHandle["get"] = async (o = {}) => {
    const { conversation, messages } = await c.getConversation({ ...at, messageLimit: o.messages }, o);
    return { ...has(conversation), messages };
  };
  return {
    id: conversationId,
    create: async (conversation, more, o) =>
      has((await c.createConversation({ ...more, ...ids(o), ...at, conversation }, o)).conversation),
    get,
    append: (messages, more, o) =>
      c.append({ ...more, ...ids(o), ...at, messages: Array.isArray(messages) ? messages : [messages] }, o),
    edit: (edits, o) => c.editMessages({ ...edits, ...ids(o), ...at }, o),
    update: (to, o) =>
      revise(get, to, o, async (conversation, how) =>
        has((await c.updateConversation({ ...how, ...at, conversation }, o)).conversation),
      ),
    delete: async (o) => (await c.deleteConversation({ ...ids(o), ...at }, o)).existed,
    messages: (request, o) => pages(c.listMessages, { ...request, ...at }, (a) => a.messages, o),
    records: (request, o) => pages(c.listRecords, { ...request, ...at }, (a) => a.records, o),
    context: (request, o) => c.getContextWindow({ ...request, ...at }, o),
    proposeCompaction: (request, o) => c.proposeCompaction({ ...request, ...ids(o), ...at }, o),
    commitCompaction: (request, o) => c.commitCompaction({ ...request, ...ids(o), ...at }, o),
    fork: async (request, o) => has((await c.forkConversation({ ...request, ...ids(o), ...at }, o)).conversation),
    watch: ({ messages, signals } = {}) =>
      watcher.watch({ conversation: { ...at, messageLimit: messages, signals } }, conversationView),
    live: {
      connect: (request, o) => l.connectLive({ ...request, ...ids(o), ...at }, o),
      ingest: (request, o) => l.ingestLive({ ...request, ...at }, o),
      disconnect: (request, o) => l.disconnectLive({ ...request, ...ids(o), ...at }, o),
      claimToolCall: (request, o) => l.claimToolCall({ ...request, ...ids(o), ...at }, o),
      completeToolCall: (request, o) => l.completeToolCall({ ...request, ...ids(o), ...at }, o),
      frames: (o) => pages(l.listLiveFrames, at, (a) => a.batches, o),
    },
  };
}

function projectHandle({ project: p }: Rpc, watcher: Watcher, projectId: string): ProjectHandle {
  const get: ProjectHandle["get"] = async (o) => has((await p.getProject({ projectId }, o)).project);
  return {
    id: projectId,
    get,
    put: (to, o = {}) =>
      revise(get, to, o, async (project, how) =>
        has((await p.putProject({ mustExist: o.mustExist, shared: o.shared, ...how, projectId, project }, o)).project),
      ),
    delete: async (o) => (await p.deleteProject({ ...ids(o), projectId }, o)).existed,
    context: (request, o) => p.getProjectContext({ ...request, projectId }, o),
    tasks: (filter, o) => pages(p.listTasks, { filter: { ...filter, projectId } }, (a) => a.tasks, o),
    watch: () => watcher.watch({ projectId }, projectView),
  };
}

function taskHandle({ project: p }: Rpc, watcher: Watcher, taskId: string): TaskHandle {
  const get: TaskHandle["get"] = async (o) => has((await p.getTask({ taskId }, o)).task);
  return {
    id: taskId,
    get,
    put: (to, o = {}) =>
      revise(get, to, o, async (task, how) =>
        has((await p.putTask({ mustExist: o.mustExist, shared: o.shared, report: o.report, ...how, taskId, task }, o)).task),
      ),
    delete: async (o) => (await p.deleteTask({ ...ids(o), taskId }, o)).existed,
    transitions: (o) => pages(p.getTask, { taskId }, (a) => a.transitions, o),
    watch: () => watcher.watch({ taskId }, taskView),
  };
}

function sessionHandle({ session: s }: Rpc, sessionId = ""): SessionHandle {
  return {
    get: async (o) => has((await s.getSession({ sessionId }, o)).session),
    update: async (session, o) => has((await s.updateSession({ ...change(o), sessionId, session }, o)).session),
    end: (o) => s.endSessions({ ...ids(o), sessionIds: sessionId ? [sessionId] : [] }, o),
    connection: (request, o) => s.putConnection({ ...request, ...ids(o), sessionId }, o),
  };
}

function apiHandle({ coordination: c }: Rpc, api: string): ApiHandle {
  return {
    name: api,
    get: async (request, o) => {
      const answer = await c.getApi({ ...request, api }, o);
      return { ...has(answer.api), usage: answer.usage };
    },
    update: async (request, o) => has((await c.updateApi({ ...request, ...change(o), api }, o)).api),
    acquire: (request, o) => c.acquire({ ...request, api }, o),
    release: (request, o) => c.release({ ...request, api }, o),
    report: (request, o) => c.report({ ...request, ...ids(o), api }, o),
    begin: (request, o) => c.beginCall({ ...request, ...ids(o), api }, o),
    finish: (request, o) => c.finishCall({ ...request, ...ids(o), api }, o),
    calls: (request, o) => pages(c.listCalls, { ...request, api }, (a) => a.calls, o),
  };
}

function inspectHandle({ inspect: i }: Rpc, ref: { kind: string; objectId: string }): InspectHandle {
  return {
    get: async (o) => has((await i.getObject({ ref }, o)).object),
    at: async (at, o) => has((await i.getObject({ ref, at }, o)).object),
    entries: (request, o) => pages(i.getObject, { ...request, ref }, (a) => a.entries, o),
    events: (o) => pages(i.listEvents, { ref }, (a) => a.events, o),
    diff: (from, to, o) => i.diffObject({ ref, from, to }, o),
    restore: (at, o) => i.restoreObject({ ...ids(o), ref, at }, o),
    delete: async (o) => (await i.deleteObject({ ...ids(o), ref }, o)).existed,
    timers: (o = {}) => pages(i.listTimers, { ...ref, parked: o.parked }, (a) => a.timers, o),
    retryTimer: (name, o) => i.retryTimer({ ...ids(o), ref, name }, o),
  };
}

/** ids are the fields that every change has. */
const ids = (o: Change = {}) => ({ requestId: o.requestId, ifVersion: o.ifVersion });
const change = (o: Change = {}) => ({ ...ids(o), updateMask: o.updateMask });

/** has is for what the server always sends with an answer. */
function has<T>(value: T | undefined): T {
  if (value === undefined) throw new TypeError("the server left out what was asked for");
  return value;
}

/** revise writes a change, or what a function makes of the object, with the version that the function was shown, until no one was faster. */
async function revise<T extends { version: number }, I>(
  read: (options?: CallOptions) => Promise<T>,
  to: ChangeOf<T, I>,
  o: Change | undefined,
  write: (value: I, how: ReturnType<typeof change>) => Promise<T>,
): Promise<T> {
  if (typeof to !== "function") return await write(to, change(o));
  return await retried(o, async (call) => {
    const now = await read(call);
    return await write((to as (now: T) => I)(now), { ...change(o), ifVersion: now.version });
  });
}
