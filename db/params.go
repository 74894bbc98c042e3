package db

import (
	"encoding/binary"
	"reflect"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"holdfast/gen/dbsqlc"
)

// Changes are the parameters of StoreChanges, and the memory that they are made in: a batch's are large, and pgx keeps
// nothing of them for the next. Use them from one goroutine.
type Changes struct {
	dbsqlc.StoreChangesParams

	encoded []byte
}

// maxKept bounds what is kept for the next batch: the bytes of its parameters.
const maxKept = 1 << 20

// NewChanges returns empty ones.
func (d *DB) NewChanges() *Changes {
	if c, ok := d.changes.Get().(*Changes); ok {
		return c
	}
	return &Changes{}
}

// Reuse takes back what NewChanges gave, once the pipeline that has them was sent, or is not to be.
func (d *DB) Reuse(c *Changes) {
	if cap(c.encoded) > maxKept {
		return
	}
	for _, f := range reflect.ValueOf(&c.StoreChangesParams).Elem().Fields() {
		if f.Kind() == reflect.Slice {
			f.Clear() // nothing of it stays in memory
			f.SetLen(0)
		} else {
			f.SetZero()
		}
	}
	d.changes.Put(c)
}

// arguments are the fields in order. The first brings the buffer in which pgx encodes them all. size is at least what they take.
func (c *Changes) arguments() (args []any, size int) {
	args = fields(&c.StoreChangesParams)
	size = encodedLen(args)
	if cap(c.encoded) < size {
		c.encoded = make([]byte, 0, size+size/4)
	}
	args[0] = first{c.TenantID, c.encoded[:0]}
	return args, size
}

// encodedLen is at least what the binary forms of args take.
func encodedLen(args []any) int {
	const scalar, array, element = 12, 20, 12
	n := 0
	for _, arg := range args {
		switch arg := arg.(type) {
		case string:
			n += scalar + len(arg)
		case []byte:
			n += scalar + len(arg)
		case []string:
			n += array + element*len(arg)
			for _, s := range arg {
				n += len(s)
			}
		case [][]byte:
			n += array + element*len(arg)
			for _, b := range arg {
				n += len(b)
			}
		default:
			n += array
			if v := reflect.ValueOf(arg); v.Kind() == reflect.Slice {
				n += element * v.Len()
			}
		}
	}
	return n
}

// first is a text argument in front of all others. pgx appends each argument to a buffer, which it begins small, grows by
// quarters and throws away: an eighth of all that a write allocates. Here it goes on with ours.
type first struct {
	text   string
	buffer []byte
}

// registerParams makes conn encode a batch's parameters in one go, without a value or a copy for each element, and answer
// times in UTC.
func registerParams(conn *pgx.Conn) {
	m := conn.TypeMap()
	text, _ := m.TypeForOID(pgtype.TextOID)
	// Without a location pgx answers in the zone of the machine.
	instant := &pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}}
	for _, t := range []*pgtype.Type{
		instant,
		{Name: "text", OID: pgtype.TextOID, Codec: encoded[first]{text.Codec, encodeFirst, true}},
		{Name: "_text", OID: pgtype.TextArrayOID, Codec: encoded[[]string]{&pgtype.ArrayCodec{ElementType: text}, encodeTexts, false}},
		{Name: "_timestamptz", OID: pgtype.TimestamptzArrayOID, Codec: encoded[[]time.Time]{&pgtype.ArrayCodec{ElementType: instant}, encodeInstants, false}},
	} {
		m.RegisterType(t)
	}
}

// encoded is a codec with a way of its own to append a T, in Postgres's binary form.
type encoded[T any] struct {
	pgtype.Codec

	encode func(value T, buf []byte) []byte
	// plain: the text form is the same.
	plain bool
}

// PlanEncode implements [pgtype.Codec].
func (e encoded[T]) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	if _, ok := value.(T); ok && (e.plain || format == pgtype.BinaryFormatCode) {
		return e
	}
	return e.Codec.PlanEncode(m, oid, format, value)
}

// Encode implements [pgtype.EncodePlan].
func (e encoded[T]) Encode(value any, buf []byte) ([]byte, error) {
	v, _ := value.(T)
	return e.encode(v, buf), nil
}

func encodeFirst(f first, before []byte) []byte {
	return append(append(f.buffer, before...), f.text...)
}

// encodeTexts makes a one-dimensional array. A nil slice is NULL.
func encodeTexts(texts []string, buf []byte) []byte {
	if texts == nil {
		return nil
	}
	size := arrayHeader + 4*len(texts)
	for _, t := range texts {
		size += len(t)
	}
	buf = appendArray(slices.Grow(buf, size), pgtype.TextOID, len(texts))
	for _, t := range texts {
		buf = append(appendInt(buf, len(t)), t...)
	}
	return buf
}

// encodeInstants makes a one-dimensional array. A nil slice is NULL.
func encodeInstants(times []time.Time, buf []byte) []byte {
	if times == nil {
		return nil
	}
	buf = appendArray(slices.Grow(buf, arrayHeader+12*len(times)), pgtype.TimestamptzOID, len(times))
	for _, t := range times {
		buf = binary.BigEndian.AppendUint64(appendInt(buf, 8), uint64(t.UnixMicro()-postgresEpoch)) //nolint:gosec // two's complement
	}
	return buf
}

// postgresEpoch is 2000-01-01, from where Postgres counts, in microseconds of Unix.
const postgresEpoch = 946684800 * 1000 * 1000

const arrayHeader = 20

func appendArray(buf []byte, element uint32, n int) []byte {
	dimensions := min(n, 1)
	buf = appendInt(buf, dimensions)
	buf = appendInt(buf, 0) // no element is NULL
	buf = binary.BigEndian.AppendUint32(buf, element)
	if dimensions > 0 {
		buf = appendInt(buf, n)
		buf = appendInt(buf, 1) // the first element's index
	}
	return buf
}

func appendInt(buf []byte, n int) []byte {
	return binary.BigEndian.AppendUint32(buf, uint32(n)) //nolint:gosec // bounded by the size of a message
}
