package gemini

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	"holdfast/jsonpb"
)

const (
	// MaxObjectDepth is that of documents: readers in other languages give up on deeper ones.
	MaxObjectDepth = 64
	// MaxObjectBytes is the JSON of one tool call's arguments or response: both, and some more, fit into an entry.
	MaxObjectBytes = 64 << 10
)

// inlineData is a string of base64.
type inlineData struct {
	size int // of what it stands for
	text string
}

func (d *inlineData) UnmarshalJSON(raw []byte) error {
	if len(raw) > 2 && raw[0] == '"' {
		text := bytes.TrimRight(raw[1:len(raw)-1], "=")
		d.size = len(text) * 3 / 4
		if d.size <= maxInlineData {
			d.text = string(text)
		}
	}
	return nil
}

// Bytes is the data; nil: it is too much, or no base64.
func (d *inlineData) Bytes() []byte {
	data, err := base64.RawStdEncoding.DecodeString(strings.NewReplacer("-", "+", "_", "/").Replace(d.text))
	if err != nil {
		return nil
	}
	return data
}

// Count is a number that may come as a string, as 64-bit numbers do in the JSON form of protobuf.
type Count int64

// UnmarshalJSON implements [json.Unmarshaler].
func (c *Count) UnmarshalJSON(raw []byte) error {
	if string(raw) == "null" {
		return nil
	}
	n, err := strconv.ParseInt(strings.Trim(string(raw), `"`), 10, 64)
	if err != nil {
		return errValue
	}
	*c = Count(n)
	return nil
}

// Value is a JSON value that can be stored: clean, not too large and not too deep. Any other is left out, and omitted says why.
type Value struct {
	// value is unset where the text stands in place of it: a double would round a number in it.
	Value   *structpb.Value
	Text    string
	omitted string
}

// UnmarshalJSON implements [json.Unmarshaler].
func (o *Value) UnmarshalJSON(raw []byte) error {
	v, err := ParseValue(raw)
	if err != nil {
		o.omitted = fmt.Sprintf("%s; it has %d bytes of the SHA-256 %x", err, len(raw), sha256.Sum256(raw))
		return errValue
	}
	if _, null := v.Value.GetKind().(*structpb.Value_NullValue); null {
		return nil
	}
	if o.Value = v.Value; v.Text != "" {
		o.Value, o.Text = nil, v.Text
	}
	return nil
}

// Object is a jsonValue that is an object.
type Object struct {
	Fields        *structpb.Struct
	Text, Omitted string
}

// UnmarshalJSON implements [json.Unmarshaler].
func (o *Object) UnmarshalJSON(raw []byte) error {
	if len(raw) > 0 && raw[0] != '{' && string(raw) != "null" {
		return errValue
	}
	var v Value
	err := v.UnmarshalJSON(raw)
	o.Fields, o.Text, o.Omitted = v.Value.GetStructValue(), v.Text, v.omitted
	return err
}

// Parsed is a JSON value as it is told to a model: numbers that a double would round are strings in it, and then text is the JSON.
type Parsed struct {
	Value *structpb.Value
	Text  string
}

// ParseValue reads JSON that is to be stored; it refuses what is too large or too deep.
func ParseValue(raw []byte) (Parsed, error) {
	if len(raw) > MaxObjectBytes {
		return Parsed{}, fmt.Errorf("it is over the limit of %d bytes", MaxObjectBytes)
	}
	return ParseStored(raw)
}

// ParseStored is parseValue of what is stored already, however large.
func ParseStored(raw []byte) (Parsed, error) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	var v any
	if err := decoder.Decode(&v); err != nil || decoder.More() {
		return Parsed{}, errors.New("it is no JSON")
	}
	exact := true
	value, err := toValue(v, 1, &exact)
	if err != nil {
		return Parsed{}, err
	}
	if exact {
		return Parsed{Value: value}, nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return Parsed{}, errors.New("it is no JSON")
	}
	return Parsed{Value: value, Text: strings.ToValidUTF8(b.String(), "\uFFFD")}, nil
}

// toValue converts what encoding/json decoded; depth is that of v, from 1. It clears exact where a double would round a number.
func toValue(v any, depth int, exact *bool) (*structpb.Value, error) {
	tooDeep := fmt.Errorf("it is deeper than %d levels", MaxObjectDepth)
	switch v := v.(type) {
	case map[string]any:
		if depth > MaxObjectDepth {
			return nil, tooDeep
		}
		fields := make(map[string]*structpb.Value, len(v))
		// In order, because two keys may be the same once they are clean: the last one stays, on every run.
		for _, key := range slices.Sorted(maps.Keys(v)) {
			value, err := toValue(v[key], depth+1, exact)
			if err != nil {
				return nil, err
			}
			fields[CleanText(key)] = value
		}
		return structpb.NewStructValue(&structpb.Struct{Fields: fields}), nil
	case []any:
		if depth > MaxObjectDepth {
			return nil, tooDeep
		}
		values := make([]*structpb.Value, len(v))
		for i, element := range v {
			value, err := toValue(element, depth+1, exact)
			if err != nil {
				return nil, err
			}
			values[i] = value
		}
		return structpb.NewListValue(&structpb.ListValue{Values: values}), nil
	case string:
		return structpb.NewStringValue(CleanText(v)), nil
	case json.Number:
		n, err := v.Float64()
		if exactly := err == nil && jsonpb.IsExact(v.String(), n); !exactly {
			*exact = false
			return structpb.NewStringValue(v.String()), nil
		}
		return structpb.NewNumberValue(n), nil
	case bool:
		return structpb.NewBoolValue(v), nil
	default:
		return structpb.NewNullValue(), nil
	}
}

// Offset is a place in the audio of a connection, as "1.5s"; At is nil where there is none.
type Offset struct{ At *durationpb.Duration }

// UnmarshalJSON implements [json.Unmarshaler].
func (o *Offset) UnmarshalJSON(raw []byte) error {
	const most = 24 * time.Hour
	if string(raw) == "null" {
		return nil
	}
	d, err := time.ParseDuration(strings.Trim(string(raw), `"`))
	if err != nil || d < 0 || d > most {
		return errValue
	}
	o.At = durationpb.New(d)
	return nil
}

// Digest stands for JSON that is not kept: its SHA-256 in hexadecimal, of its compact form; empty: there was none.
type Digest string

// UnmarshalJSON implements [json.Unmarshaler].
func (d *Digest) UnmarshalJSON(raw []byte) error {
	if string(raw) == "null" {
		return nil
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return errValue
	}
	*d = Digest(fmt.Sprintf("%x", sha256.Sum256(b.Bytes())))
	return nil
}
