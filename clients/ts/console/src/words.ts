// How the console says things: clocks, spans, numbers, and who.

const two = (n: number) => String(n).padStart(2, "0");

/** clock is the time of day, with the day before it where that is not today. */
export function clock(time: string | undefined, exact = false): string {
  if (!time) return "never";
  const at = new Date(time);
  const hms = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  if (exact) return `${day(at)} ${at.getFullYear()}, ${hms}.${String(at.getMilliseconds()).padStart(3, "0")}`;
  return at.toDateString() === new Date().toDateString() ? hms : `${day(at)}, ${hms.slice(0, 5)}`;
}

function day(at: Date): string {
  return at.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
}

/** span is how long, in at most two units. */
export function span(ms: number): string {
  const s = Math.abs(ms) / 1000;
  if (s < 10) return `${Math.round(s * 10) / 10} s`;
  if (s < 60) return `${Math.round(s)} s`;
  const units: [number, string][] = [
    [86400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
  ];
  const first = units.findIndex(([size]) => s >= size);
  const [size, unit] = units[first] ?? [1, "s"];
  const [less, lesser] = units[first + 1] ?? [1, "s"];
  const rest = Math.floor((s % size) / less);
  return `${Math.floor(s / size)} ${unit}${rest && first > 0 ? ` ${rest} ${lesser}` : ""}`;
}

/** ms reads a span such as 1.5s. */
export const ms = (duration: string | undefined): number => (duration ? Number.parseFloat(duration) * 1000 : 0);

export const until = (time: string | undefined, now: number): number => (time ? Date.parse(time) - now : 0);

export const num = (n: number): string => n.toLocaleString("en-US");

/** count is a number with its noun. */
export function count(n: number, one: string, many = `${one}s`): string {
  return `${num(n)} ${n === 1 ? one : many}`;
}

export function bytes(n: number): string {
  return n < 1024 ? `${n} B` : n < 1024 * 1024 ? `${(n / 1024).toFixed(1)} KB` : `${(n / 1024 / 1024).toFixed(1)} MB`;
}

/** who is an actor, an owner or a user. */
export const who = (user: string | undefined, nobody = "a service"): string => user || nobody;

/** words turns a name such as live_ingested into words. */
export const words = (name: string): string => name.replace(/[_.]/g, " ");

export const sentence = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1);
