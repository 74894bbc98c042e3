const plain = (v: unknown): v is { [key: string]: unknown } =>
  typeof v === "object" && v !== null && (Array.isArray(v) || Object.getPrototypeOf(v) === Object.prototype);

/** share returns the new value made of the old one's parts wherever they are equal: what did not change stays the same object. */
export function share<T>(was: unknown, now: T): T {
  if (was === now || !plain(was) || !plain(now) || Array.isArray(was) !== Array.isArray(now)) return now;
  const out: { [key: string]: unknown } = Array.isArray(now) ? ([] as never) : {};
  const keys = Object.keys(now);
  let same = keys.length === Object.keys(was).length;
  for (const key of keys) {
    out[key] = share(was[key], now[key]);
    same &&= key in was && was[key] === out[key];
  }
  return (same ? was : out) as T;
}
