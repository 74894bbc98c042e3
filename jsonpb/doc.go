// Package jsonpb reads and writes the JSON form of protobuf messages, as google.golang.org/protobuf/encoding/protojson
// does, at a fraction of its cost. The API and the stored rows both use it; protojson took half of the CPU of a JSON read.
//
// What makes the difference is a table for each message type, made once: its fields in order, with their names ready to be
// written, and found by name in one look-up. Struct, Value, ListValue, Timestamp and, for reading, FieldMask have code of their
// own. The remaining well-known types, and messages of proto2 with extensions or required fields, go through protojson.
//
// The output is protojson's without its random blanks, byte for byte, and the input that is accepted is the same, except that
// unknown values of enums and inexact numbers are refused unless the caller lets them pass, and that masks may have keys in their
// paths. Fuzz tests hold both in both directions.
package jsonpb
