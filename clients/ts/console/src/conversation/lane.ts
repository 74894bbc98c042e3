// When who spoke: a conversation's messages, tool calls and sockets over time, with quiet folded.
import type { conversation, inspect, JsonObject } from "@holdfast/client";

/** Stretch is a part of a lane, from and to in milliseconds of the clock. */
export interface Stretch {
  from: number;
  to: number;
  text: string;
  className: string;
  /** How much of it was heard, 0 to 1. */
  heard?: number;
  seq?: number;
  /** It goes on. */
  open?: boolean;
  typed?: boolean;
}

export interface Moment {
  at: number;
  what: "said" | "interrupted" | "tool" | "socket";
  seq: number;
}

export interface Lanes {
  begin: number;
  end: number;
  user: Stretch[];
  model: Stretch[];
  tools: Stretch[];
  sockets: Stretch[];
  handles: { at: number; resumable: boolean; id: string }[];
  moments: Moment[];
}

const ms = (t: string | undefined) => (t ? Date.parse(t) : 0);

export function textOf(m: conversation.Message): string {
  return (
    m.text ||
    m.parts.map((p) => p.text ?? (p.toolCall ? `${p.toolCall.name}(…)` : p.toolResult ? `→ ${p.toolResult.name}` : "")).join(" ")
  );
}

/** The end of what is spoken is not kept. It is the message's last change, unless someone else spoke before that. */
function spoken(m: conversation.Message, all: readonly conversation.Message[]): number {
  const from = ms(m.createTime);
  if (m.spoken?.audioMs) return from + m.spoken.audioMs;
  const answer = all.find((n) => n.seq > m.seq && n.role !== m.role);
  const next = ms(answer?.createTime);
  return Math.max(from + 60, Math.min(ms(m.updateTime), next > from ? next : Number.POSITIVE_INFINITY));
}

/** The handles of the provider's sessions, of the stored state. They come without their secrets. */
export function handlesOf(state: JsonObject | undefined): { id: string; at: number; resumable: boolean; afterSeq: number }[] {
  const live = state?.["live"] as JsonObject | undefined;
  const list = (live?.["handles"] ?? []) as JsonObject[];
  return list.map((h) => ({
    id: String(h["id"]),
    at: ms(String(h["receive_time"])),
    resumable: h["resumable"] === true,
    afterSeq: Number(h["after_seq"] ?? 0),
  }));
}

export function lanesOf(
  c: conversation.Conversation,
  messages: readonly conversation.Message[],
  calls: readonly conversation.ToolCall[],
  events: readonly inspect.Event[],
  state: JsonObject | undefined,
  now: number,
): Lanes | undefined {
  const user: Stretch[] = [];
  const model: Stretch[] = [];
  const moments: Moment[] = [];
  for (const m of messages) {
    if (m.role !== "user" && m.role !== "assistant") continue;
    const from = ms(m.createTime);
    const text = textOf(m);
    const typed = m.modality !== "voice";
    const { heardText, interruptTime, playedMs, audioMs } = m.spoken ?? {};
    const to = typed ? from + 60 : m.status === "streaming" ? Math.min(now, from + 20_000) : spoken(m, messages);
    const share =
      audioMs && playedMs !== undefined
        ? playedMs / audioMs
        : heardText !== undefined && text
          ? heardText.length / text.length
          : 1;
    (m.role === "user" ? user : model).push({
      from,
      to,
      text,
      typed,
      seq: m.seq,
      className: m.role === "user" ? "us" : "ms",
      heard: Math.min(1, share),
    });
    moments.push({ at: from, what: "said", seq: m.seq });
    if (m.status === "interrupted") moments.push({ at: ms(interruptTime ?? m.updateTime), what: "interrupted", seq: m.seq });
  }
  const tools = calls.map((t): Stretch => {
    const open = t.status === "pending" || t.status === "running" || t.status === "orphaned";
    const from = ms(t.createTime);
    moments.push({ at: from, what: "tool", seq: t.seq });
    return {
      from,
      to: open ? Math.min(now, from + 20_000) : ms(t.updateTime),
      text: t.name,
      className: open ? "tl run" : "tl",
      open,
      seq: t.seq,
    };
  });
  const sockets: Stretch[] = [];
  for (const e of events) {
    const at = ms(e.time);
    const last = sockets.at(-1);
    if (/^live_(connected|disconnected|abandoned|session_ended)/.test(e.type) && last?.open) {
      last.to = at;
      last.open = false;
    }
    if (e.type === "live_connected") {
      sockets.push({ from: at, to: at, text: "", className: "sb", open: true });
      moments.push({ at, what: "socket", seq: sockets.length });
    }
  }
  const lease = ms(c.live?.lease?.expireTime);
  const newest = sockets.at(-1);
  if (newest?.open) {
    newest.open = lease > now;
    newest.to = Math.max(
      newest.from,
      newest.open ? now : Math.min(now, ms(events.findLast((e) => e.type === "live_ingested")?.time) || newest.from),
    );
  }
  const epoch = c.live?.lease?.fencingToken ?? sockets.length;
  sockets.forEach((s, i) => {
    const n = epoch - sockets.length + 1 + i;
    s.text = `epoch ${n}${i === sockets.length - 1 && c.live?.device?.name ? `, ${[c.live.user, c.live.device.name].filter(Boolean).join(", ")}` : ""}`;
    s.seq = n;
  });
  const all = [...user, ...model, ...tools, ...sockets];
  if (all.length === 0) return undefined;
  const begin = Math.min(...all.map((s) => s.from));
  return {
    begin,
    end: Math.max(...all.map((s) => s.to)),
    user,
    model,
    tools,
    sockets,
    handles: handlesOf(state).filter((h) => h.at >= begin),
    moments: moments.sort((a, b) => a.at - b.at),
  };
}

export interface Scale {
  /** Where a time is, in percent. */
  x(t: number): number;
  folds: { at: number; width: number; ms: number }[];
  ticks: { at: number; t: number }[];
}

const quiet = 2000;
const margin = 300;
const foldWidth = 3.4;

/** scale folds what nobody filled for two seconds. An open socket alone fills nothing. */
export function scale(lanes: Lanes): Scale {
  const busy = [...lanes.user, ...lanes.model, ...lanes.tools].map((s) => [s.from - margin, s.to + margin] as const);
  for (const s of lanes.sockets) busy.push([s.from - margin, s.from + margin], [s.to - margin, s.to + margin]);
  busy.sort((a, b) => a[0] - b[0]);
  const parts: { from: number; to: number }[] = [];
  for (const [from, to] of busy) {
    const last = parts.at(-1);
    if (last && from - last.to < quiet) last.to = Math.max(last.to, to);
    else parts.push({ from, to });
  }
  const total = parts.reduce((sum, p) => sum + p.to - p.from, 0);
  const room = 100 - foldWidth * (parts.length - 1);
  let left = 0;
  const placed = parts.map((p) => {
    const width = ((p.to - p.from) / total) * room;
    const at = left;
    left += width + foldWidth;
    return { ...p, at, width };
  });
  const x = (t: number): number => {
    const p = placed.findLast((p) => t >= p.from) ?? placed[0];
    if (!p) return 0;
    return Math.max(0, p.at + Math.min(1, (t - p.from) / (p.to - p.from)) * p.width);
  };
  const step =
    [100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000, 600_000].find((s) => total / s <= 14) ?? 3_600_000;
  const ticks = placed.flatMap((p) => {
    const first = Math.ceil((p.from - lanes.begin) / step);
    const last = Math.floor((p.to - lanes.begin) / step);
    return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => {
      const t = (first + i) * step;
      return { t, at: x(lanes.begin + t) };
    }).filter((k) => k.t >= 0 && k.at - p.at < p.width - 2.5);
  });
  return {
    x,
    ticks,
    folds: placed.slice(1).map((p, i) => ({ at: p.at - foldWidth, width: foldWidth, ms: p.from - (parts[i]?.to ?? 0) })),
  };
}

/** offset is a time since the beginning, as 0:10.45. */
export function offset(t: number, exact = true): string {
  const s = Math.max(0, t) / 1000;
  const rest = s % 60;
  return `${Math.floor(s / 60)}:${exact ? rest.toFixed(2).padStart(5, "0") : (Number.isInteger(rest) ? String(rest) : rest.toFixed(1)).padStart(Number.isInteger(rest) ? 2 : 4, "0")}`;
}
