package db

import (
	"encoding/binary"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// textsCodec is pgx's codec of text[] but for encoding a []string, which it does in one go into a buffer that is grown
// once: a batch's arrays are large, and growing by quarters was an eighth of all that a write allocates.
type textsCodec struct{ *pgtype.ArrayCodec }

func registerTexts(conn *pgx.Conn) {
	text, _ := conn.TypeMap().TypeForOID(pgtype.TextOID)
	conn.TypeMap().RegisterType(&pgtype.Type{
		Name: "_text", OID: pgtype.TextArrayOID, Codec: textsCodec{&pgtype.ArrayCodec{ElementType: text}},
	})
}

// PlanEncode implements [pgtype.Codec].
func (c textsCodec) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	if _, ok := value.([]string); ok && format == pgtype.BinaryFormatCode {
		return textsPlan{}
	}
	return c.ArrayCodec.PlanEncode(m, oid, format, value)
}

type textsPlan struct{}

// Encode implements [pgtype.EncodePlan]: Postgres's binary form of a one-dimensional array. A nil slice is NULL.
func (textsPlan) Encode(value any, buf []byte) ([]byte, error) {
	texts, _ := value.([]string)
	if texts == nil {
		return nil, nil
	}
	const header, length = 20, 4
	size := header + length*len(texts)
	for _, t := range texts {
		size += len(t)
	}
	buf = slices.Grow(buf, size)
	put := func(n int) { buf = binary.BigEndian.AppendUint32(buf, uint32(n)) } //nolint:gosec // bounded by the size of a message
	dimensions := min(len(texts), 1)
	put(dimensions)
	put(0) // no element is NULL
	put(pgtype.TextOID)
	if dimensions > 0 {
		put(len(texts))
		put(1) // the first element's index
	}
	for _, t := range texts {
		put(len(t))
		buf = append(buf, t...)
	}
	return buf, nil
}
