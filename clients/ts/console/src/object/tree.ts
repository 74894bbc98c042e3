// A state as rows of a tree, next to another in which it may differ.
import type { Json, JsonObject } from "@holdfast/client";
import { clock } from "../words.ts";

export interface Row {
  /** Where the value is, as `live.handles.2`. */
  path: string;
  name: string;
  depth: number;
  /** Undefined: it is not set there. */
  value: Json | undefined;
  other: Json | undefined;
  differs: boolean;
  /** It has parts. */
  parts: boolean;
}

const isParts = (v: Json | undefined): v is Json[] | JsonObject =>
  typeof v === "object" && v !== null && Object.keys(v).length > 0;

export function same(a: Json | undefined, b: Json | undefined): boolean {
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || !a || !b) return false;
  const [ka, kb] = [Object.keys(a), Object.keys(b)];
  return (
    ka.length === kb.length && Array.isArray(a) === Array.isArray(b) && ka.every((k) => k in b && same(part(a, k), part(b, k)))
  );
}

const part = (v: Json | undefined, key: string): Json | undefined =>
  typeof v === "object" && v !== null ? (v as JsonObject)[key] : undefined;

/** tree lists the fields of a value in their order, those of the other that it lacks behind them, and the parts of those that are open. */
export function tree(
  value: Json | undefined,
  other: Json | undefined,
  open: (path: string, depth: number) => boolean,
  depth = 0,
  prefix = "",
): Row[] {
  const keys = new Set([...Object.keys(value ?? {}), ...Object.keys(other ?? {})]);
  const list = Array.isArray(value ?? other);
  return [...keys].flatMap((key) => {
    const [a, b, path] = [part(value, key), part(other, key), prefix + key];
    const parts = isParts(a) || isParts(b);
    const row: Row = { path, name: list ? `[${key}]` : key, depth, value: a, other: b, differs: !same(a, b), parts };
    return parts && open(path, depth) ? [row, ...tree(a, b, open, depth + 1, `${path}.`)] : [row];
  });
}

/** brief is a value in one line, and its class. In states of Holdfast's own kinds, text may be a large number or a time. */
export function brief(v: Json | undefined, own = false): [text: string, className: string] {
  if (v === undefined) return ["not set", "d3"];
  if (v === "[REDACTED]") return ["sealed", "chip mono"];
  if (own && typeof v === "string" && /^-?\d{1,20}$/.test(v)) return [v, "nu"];
  if (own && typeof v === "string" && /^\d{4}-\d\d-\d\dT/.test(v)) return [clock(v, true), "nu"];
  if (typeof v === "string") return /^[A-Z]+(_[A-Z0-9]+)+$/.test(v) ? [v, "en"] : [`"${v}"`, "s"];
  if (typeof v === "number") return [String(v), "nu"];
  if (typeof v !== "object" || v === null) return [String(v), "en"];
  const n = Object.keys(v).length;
  if (n === 0) return ["empty", "d3"];
  return [Array.isArray(v) ? (n === 1 ? "1 item" : `${n} items`) : n === 1 ? "1 key" : `${n} keys`, "d3"];
}
