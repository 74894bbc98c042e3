// What the generated schemas are made of. A schema has exactly the client's type, which the annotation of each proves.
import type { Duration, Json, JsonObject, Timestamp } from "@holdfast/client";
import { Schema, SchemaGetter } from "effect";

/** A schema of what the client's type says, from JSON. */
export type Of<T> = Schema.Codec<T, unknown>;

export const text = Schema.String;
export const bool = Schema.Boolean;
export const number = Schema.Number;
export const integer = Schema.Int;
export const timestamp: Of<Timestamp> = Schema.String.check(
  Schema.isPattern(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/),
);
export const duration = Schema.String.check(Schema.isPattern(/^-?\d+(\.\d+)?s$/)) as unknown as Of<Duration>;
export const json = Schema.Json as unknown as Of<Json>;
export const jsonObject = Schema.Record(Schema.String, Schema.Json) as unknown as Of<JsonObject>;

export const ref = <T>(of: () => Of<T>): Of<T> => Schema.suspend(of);
export const list = <T>(of: Of<T>): Of<T[]> => Schema.mutable(Schema.Array(of));
export const map = <T>(of: Of<T>): Of<{ [key: string]: T }> => Schema.Record(Schema.String, of) as Of<{ [key: string]: T }>;
export const maybe = <T>(of: Of<T>): Schema.optional<Of<T>> => Schema.optional(of);
export const message = Schema.Struct;

/** word is one of some words. One that a newer server has added is unspecified here, as it is not said what it means. */
export function word<const W extends readonly [unspecified: string, ...others: string[]]>(...words: W): Of<W[number]> {
  return Schema.String.pipe(
    Schema.decodeTo(Schema.Literals(words), {
      decode: SchemaGetter.transform((w) => (words.includes(w) ? w : words[0]) as W[number]),
      encode: SchemaGetter.transform((w) => w as string),
    }),
  ) as Of<W[number]>;
}
