export { type Append, type Outgoing, useAppend } from "./append.ts";
export {
  type Conversation,
  type Listed,
  type Sessions,
  type StateObject,
  useApi,
  useConversation,
  useConversations,
  useIssues,
  useObject,
  useObjectAt,
  usePresence,
  useProject,
  useProjects,
  useSession,
  useStatus,
  useTask,
  useTasks,
  useWatch,
} from "./hooks.ts";
export { HoldfastProvider, type Live, type Shown, type Source, useHoldfast, useLive, type Waiting } from "./live.ts";
