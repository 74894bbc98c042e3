import type { JsonObject } from "@holdfast/client";

/** What a piece of audio is. */
export interface Sound {
  /** 16-bit PCM, one channel, little-endian. */
  readonly pcm: Uint8Array<ArrayBuffer>;
  /** In samples a second. */
  readonly rate: number;
}

/** One frame of the provider's, as it is needed here. */
export interface Read {
  readonly frame: Frame;
  /** What is sent to Holdfast: the frame as it came, and in place of its audio silence of the same length. */
  readonly text: string;
  readonly sounds: readonly Sound[];
}

/** The parts of a frame that decide what to do. Everything else passes through. */
export interface Frame {
  readonly setupComplete?: object;
  readonly serverContent?: {
    readonly inputTranscription?: { readonly text?: string };
    readonly outputTranscription?: { readonly text?: string };
    readonly modelTurn?: { readonly parts?: readonly Part[] };
    readonly interrupted?: boolean;
    readonly generationComplete?: boolean;
    readonly turnComplete?: boolean;
  };
  readonly voiceActivity?: { readonly voiceActivityType?: string };
  readonly toolCall?: object;
  readonly toolCallCancellation?: object;
  readonly goAway?: { readonly timeLeft?: string };
  readonly sessionResumptionUpdate?: { readonly newHandle?: string; readonly resumable?: boolean };
}

interface Part {
  readonly inlineData?: { readonly mimeType?: string; readonly data?: string };
}

/** read takes a frame's audio out. undefined: it is no JSON object. */
export function read(data: string | object): Read | undefined {
  let frame: Frame;
  try {
    // A copy of what an SDK has parsed: the application may see the same object.
    frame = (typeof data === "string" ? JSON.parse(data) : structuredClone(data)) as Frame;
  } catch {
    return undefined;
  }
  if (typeof frame !== "object" || frame === null || Array.isArray(frame)) return undefined;
  const sounds: Sound[] = [];
  for (const part of frame.serverContent?.modelTurn?.parts ?? []) {
    const inline = part.inlineData as { mimeType?: string; data?: string } | undefined;
    if (!inline?.data || !/^audio\/pcm\b/.test(inline.mimeType ?? "")) continue;
    const rate = Number(/rate=(\d+)/.exec(inline.mimeType ?? "")?.[1] ?? 24_000);
    const pcm = fromBase64(inline.data);
    sounds.push({ pcm, rate });
    // 1,000 samples a second are the fewest that Holdfast reads: two bytes a millisecond tell how long the answer was.
    inline.mimeType = "audio/pcm;rate=1000";
    inline.data = "A".repeat(Math.ceil((pcm.length / 2 / rate) * 1000 * (8 / 3)));
  }
  // As it came where it can be, because JavaScript would round large numbers.
  const text = typeof data === "string" && sounds.length === 0 ? data : JSON.stringify(frame);
  return { frame, text, sounds };
}

export function fromBase64(text: string): Uint8Array<ArrayBuffer> {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

export function toBase64(bytes: Uint8Array): string {
  let binary = "";
  for (let i = 0; i < bytes.length; i += 8192) binary += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(binary);
}

/** audioFrame is what the microphone brought, as the provider takes it. */
export const audioFrame = (pcm: Uint8Array, rate: number): JsonObject => ({
  realtimeInput: { audio: { data: toBase64(pcm), mimeType: `audio/pcm;rate=${rate}` } },
});

/** hash names a setup: a handle is valid only for the same. It guards against mistakes, not against people. */
export function hash(value: unknown): string {
  const text = JSON.stringify(value) ?? "";
  let [a, b] = [0xdeadbeef, 0x41c6ce57];
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    a = Math.imul(a ^ c, 2654435761);
    b = Math.imul(b ^ c, 1597334677);
  }
  return [a, b].map((n) => (n >>> 0).toString(16).padStart(8, "0")).join("");
}
