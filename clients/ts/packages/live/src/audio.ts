import type { Sound } from "./frame.ts";
import type { Output } from "./session.ts";

/** How a page hears and speaks. */
export interface AudioOptions {
  /** Where `workletSource` is served, for pages whose Content-Security-Policy forbids `blob:`. */
  worklet?: string | URL | undefined;
}

/** A microphone and a loudspeaker. */
export interface BrowserAudio extends Output {
  /** Asks for the microphone, and calls back with what it brings: 16-bit PCM, 16,000 samples a second, 40 ms at a time. */
  start(heard: (pcm: Uint8Array<ArrayBuffer>) => void): Promise<void>;
  /** Gives the microphone back, and is silent. */
  stop(): void;
  /** How loud it is right now, from 0 to 1: for a meter, which asks at each frame of its own. */
  level(): { readonly in: number; readonly out: number };
}

/** The AudioWorklet that reads the microphone. Not every browser records at another rate than its device's, so it resamples. */
export const workletSource = `
registerProcessor("holdfast-microphone", class extends AudioWorkletProcessor {
  constructor() { super(); this.out = new Int16Array(640); this.n = 0; this.at = 0; this.sum = 0; this.count = 0; }
  process([[samples]]) {
    if (!samples) return true;
    const step = sampleRate / 16000;
    for (const s of samples) {
      this.sum += s; this.count++; this.at++;
      if (this.at < step) continue;
      this.at -= step;
      this.out[this.n++] = Math.max(-1, Math.min(1, this.sum / this.count)) * 32767;
      this.sum = this.count = 0;
      if (this.n === this.out.length) {
        this.port.postMessage(this.out.buffer, [this.out.buffer]);
        this.out = new Int16Array(640); this.n = 0;
      }
    }
    return true;
  }
});`;

/** browserAudio makes them. It asks for nothing until it is started. */
export function browserAudio(options: AudioOptions = {}): BrowserAudio {
  let context: AudioContext | undefined;
  let meter: AnalyserNode | undefined;
  let stream: MediaStream | undefined;
  let loud = 0;
  let end = 0; // when what is queued has been played, by the context's clock
  const queued = new Set<AudioBufferSourceNode>();
  const samples = new Float32Array(512);

  const open = () => {
    if (context) return context;
    context = new AudioContext();
    meter = new AnalyserNode(context, { fftSize: 512 });
    meter.connect(context.destination);
    return context;
  };
  const interrupt = () => {
    const left = context ? Math.max(0, end - context.currentTime) * 1000 : 0;
    for (const source of queued) source.stop();
    queued.clear();
    end = 0;
    return left;
  };
  return {
    async start(heard) {
      const c = open();
      await c.resume();
      if (stream) return;
      stream = await navigator.mediaDevices.getUserMedia({
        audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true, autoGainControl: true },
      });
      const url = options.worklet ?? URL.createObjectURL(new Blob([workletSource], { type: "text/javascript" }));
      await c.audioWorklet.addModule(url);
      const reader = new AudioWorkletNode(c, "holdfast-microphone", { numberOfOutputs: 0 });
      reader.port.onmessage = ({ data }: MessageEvent<ArrayBuffer>) => {
        const pcm = new Int16Array(data);
        loud = Math.sqrt(pcm.reduce((sum, s) => sum + s * s, 0) / pcm.length) / 32768;
        heard(new Uint8Array(data));
      };
      c.createMediaStreamSource(stream).connect(reader);
    },
    stop() {
      interrupt();
      for (const track of stream?.getTracks() ?? []) track.stop();
      void context?.close();
      stream = context = meter = undefined;
      loud = 0;
    },
    play({ pcm, rate }: Sound) {
      const c = open();
      const words = new Int16Array(pcm.buffer, pcm.byteOffset, pcm.length >> 1);
      const buffer = c.createBuffer(1, words.length, rate);
      buffer.copyToChannel(
        Float32Array.from(words, (w) => w / 32768),
        0,
      );
      const source = new AudioBufferSourceNode(c, { buffer });
      source.connect(meter ?? c.destination);
      source.onended = () => queued.delete(source);
      queued.add(source);
      // A little later than now where nothing is playing, so that the next piece comes before this one ends.
      end = Math.max(end, c.currentTime + 0.04);
      source.start(end);
      end += buffer.duration;
    },
    interrupt,
    level() {
      meter?.getFloatTimeDomainData(samples);
      const out = meter ? Math.sqrt(samples.reduce((sum, s) => sum + s * s, 0) / samples.length) : 0;
      return { in: Math.min(1, loud * 6), out: Math.min(1, out * 6) };
    },
  };
}
