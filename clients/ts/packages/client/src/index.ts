export type { Assistant, AssistantOptions } from "./assistant.ts";
export type { CallOptions } from "./call.ts";
export type { Change } from "./change.ts";
export { type Holdfast, holdfast, type Options, type Status } from "./client.ts";
export { type ClientReason, HoldfastError, is, type Reason, type SchemaIssue } from "./error.ts";
export type * as conversation from "./gen/conversation.ts";
export type * as coordination from "./gen/coordination.ts";
export type * as error from "./gen/error.ts";
export type * as inspect from "./gen/inspect.ts";
export type * as linear from "./gen/linear.ts";
export type * as live from "./gen/live.ts";
export type * as project from "./gen/project.ts";
export type { Rpc } from "./gen/rpc.ts";
export type * as session from "./gen/session.ts";
export type * as state from "./gen/state.ts";
export type * as type from "./gen/type.ts";
export type * as watch from "./gen/watch.ts";
export type * from "./handles.ts";
export type { Bytes, Duration, FieldMask, Json, JsonObject, Timestamp, TimestampInput } from "./json.ts";
export {
  type Collection,
  type Collections,
  defineObject,
  type ObjectType,
  type Schemas,
  type StandardSchema,
  type StateChange,
  type StateEntry,
  type StateHandle,
  type StateQueries,
  type StateView,
} from "./state.ts";
export type { SignedIn, SignIn, Standing } from "./tokens.ts";
export type { ConversationView, View, Voice, Watch, Watched } from "./watch.ts";
