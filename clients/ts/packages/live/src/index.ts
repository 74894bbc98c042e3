export type { Sound } from "./frame.ts";
export { type GenAI, genai } from "./genai.ts";
export { type LiveOptions, type LiveSession, live, type Output, type Tool, type ToolCall } from "./session.ts";
export { type Connect, type Listener, type Socket, type WebSocketOptions, webSocket } from "./socket.ts";
export type { Happened, LiveError, LiveView, Mode, PendingTool, Status } from "./view.ts";
