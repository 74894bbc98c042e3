package handlers

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxValues bounds the values of one request: each scalar, object and list is one. In a
// google.protobuf.Struct three bytes of JSON can take 200 bytes of memory and some microseconds, so a limit in bytes is not enough.
const maxValues = 50_000

// countJSON counts the values of a JSON text without decoding it. It is exact for valid JSON.
func countJSON(data []byte) int {
	if len(bytes.TrimLeft(data, " \t\r\n")) == 0 {
		return 0
	}
	// Each member of an object or list follows a comma or an opening bracket, and the text itself is one value.
	count := 1
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '"':
			i = endOfString(data, i)
		case ',':
			count++
		case '{', '[':
			rest := bytes.TrimLeft(data[i+1:], " \t\r\n")
			if len(rest) > 0 && rest[0] != '}' && rest[0] != ']' {
				count++
			}
		}
	}
	return count
}

// endOfString returns the index of the quote that closes the string which begins at i.
func endOfString(data []byte, i int) int {
	for i++; i < len(data) && data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return i
}

// maxWireDepth is the nesting limit of package proto.
const maxWireDepth = 10_000

// countWire counts the values of an encoded message. A malformed one is left to package proto to refuse.
func countWire(data []byte, md protoreflect.MessageDescriptor) int {
	return 1 + countFields(data, md, maxWireDepth)
}

func countFields(data []byte, md protoreflect.MessageDescriptor, depth int) int {
	count := 0
	// A Value and a map's entry hold one value, which was counted with the field that they are in.
	if md.IsMapEntry() {
		count = -2
	} else if md.FullName() == "google.protobuf.Value" {
		count = -1
	}
	nested := 0
	for len(data) > 0 && depth > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			break
		}
		data = data[n:]
		if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
			break
		}
		count++
		if fd := md.Fields().ByNumber(number); fd != nil && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(data)
			switch {
			case fd.Message() != nil:
				nested += countFields(value, fd.Message(), depth-1)
			case fd.IsList() && fd.Kind() != protoreflect.StringKind && fd.Kind() != protoreflect.BytesKind:
				nested += len(value) // a packed number is a byte or more
			}
		}
		data = data[n:]
	}
	return max(count, 0) + nested
}
