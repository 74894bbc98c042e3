import { schema } from "./gen/schema.ts";

/** Any JSON value. */
export type Json = null | boolean | number | string | Json[] | JsonObject;
export type JsonObject = { [key: string]: Json };

/** A moment, such as `2026-01-31T10:00:00Z`. */
export type Timestamp = string;
export type TimestampInput = string | Date;
/** A span of seconds, such as `30s` or `0.25s`. */
export type Duration = `${number}s`;
/** Bytes in base64. */
export type Bytes = string;
/** Fields of an update, with commas between them: `title,labels`. */
export type FieldMask = string;

interface Field {
  name: string;
  many: string;
  kind: string;
  of: string;
}

const lines = new Map<string, string>();
const parsed = new Map<string, Field[]>();

function fields(message: string): Field[] {
  let area = "";
  if (lines.size === 0)
    for (const line of schema.split("\n")) {
      const [, name, rest = ""] = /^(\w+) (.*)/.exec(line) ?? [];
      if (name) lines.set(`${area}.${name}`, rest);
      else area = line.slice(0, -1);
    }
  let list = parsed.get(message);
  if (!list) {
    list = [];
    for (const text of lines.get(message)?.split(" ") ?? []) {
      const [, name = "", many = "", kind = "", of = ""] = /^(\w+)([*%?]?)([#!.~@]?)(.*)$/.exec(text) ?? [];
      list.push({ name, many, kind, of: kind === "@" && !of.includes(".") ? `${message.split(".")[0]}.${of}` : of });
    }
    parsed.set(message, list);
  }
  return list;
}

type Values = { [name: string]: unknown };

function each(many: string, value: unknown, convert: (value: unknown) => unknown): unknown {
  if (many === "*" && Array.isArray(value)) return value.map(convert);
  if (many === "%" && value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([key, v]) => [key, convert(v)]));
  return convert(value);
}

/**
 * decode turns the server's JSON into what the types say: what was left out gets its default, integers are numbers, and enums are
 * short words. It changes the value in place. What a newer server added is left as it came.
 */
export function decode(message: string, value: Values): unknown {
  for (const { name, many, kind, of } of fields(message)) {
    const v = value[name];
    if (v !== undefined && (v !== null || kind === ".")) {
      if (kind === "#") value[name] = each(many, v, (n) => number(message, name, n));
      else if (kind === "~") value[name] = each(many, v, (e) => word(of, String(e)));
      else if (kind === "@") value[name] = each(many, v, (m) => decode(of, m as Values));
    } else if (many === "*") value[name] = [];
    else if (many === "%") value[name] = {};
    else if (many !== "?" && kind !== "@" && kind !== ".")
      value[name] = kind === "#" ? 0 : kind === "!" ? false : kind === "~" ? "unspecified" : "";
  }
  return value;
}

function number(message: string, name: string, value: unknown): number {
  const n = Number(value);
  if (typeof value === "string" && /^-?\d+$/.test(value) && !Number.isSafeInteger(n))
    throw new RangeError(`${name} of ${message} is ${value}, which a number cannot hold`);
  return n;
}

function word(prefix: string, value: string): string {
  return value.startsWith(prefix) ? value.slice(prefix.length).toLowerCase() : value;
}

/** encode returns a copy of the value as the server reads it. A word that this client does not know is sent as it would be spelt. */
export function encode(message: string, value: Values): Values {
  const out = { ...value };
  for (const { name, many, kind, of } of fields(message)) {
    const v = out[name];
    if (v === undefined || v === null) continue;
    if (kind === "~") out[name] = each(many, v, (e) => (/^[a-z][a-z0-9_]*$/.test(String(e)) ? of + String(e).toUpperCase() : e));
    else if (kind === "@") out[name] = each(many, v, (m) => encode(of, m as Values));
  }
  return out;
}
