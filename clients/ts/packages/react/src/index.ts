export { type Append, type Outgoing, useAppend } from "./append.ts";
export {
  type AssistantPage,
  type Conversation,
  type Listed,
  type Sessions,
  useApi,
  useAssistant,
  useConversation,
  useConversations,
  useIssues,
  useObject,
  useObjectAt,
  usePreferences,
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
