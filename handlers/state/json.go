package state

import (
	"bytes"
	"encoding/json"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	"holdfast/jsonpb"
)

// JSON is kept as text, because a number that is decoded may be rounded.

var texts = jsonpb.New() //nolint:gochecknoglobals // a cache of what never changes

// maxNesting bounds how deep JSON nests, as in a google.protobuf.Struct.
const maxNesting = 64

// parse checks a JSON text and takes the blanks out. said is what is wrong with it.
func parse(text string) (value json.RawMessage, said string) {
	if err := jsonpb.Check([]byte(text), maxNesting); err != nil {
		return nil, strings.TrimPrefix(err.Error(), "jsonpb: ")
	}
	var b bytes.Buffer
	_ = json.Compact(&b, []byte(text)) // it is JSON
	if bytes.Contains(b.Bytes(), []byte(`\u0000`)) && holdsNUL(decoded(b.Bytes())) {
		return nil, "has the character U+0000, which no text here may have"
	}
	return b.Bytes(), ""
}

// holdsNUL finds what no text and no name of a member may have.
func holdsNUL(v any) bool {
	switch v := v.(type) {
	case string:
		return strings.Contains(v, "\x00")
	case []any:
		return slices.ContainsFunc(v, holdsNUL)
	case map[string]any:
		for k, member := range v {
			if holdsNUL(k) || holdsNUL(member) {
				return true
			}
		}
	}
	return false
}

// textOf is a value as JSON.
func textOf(v *structpb.Value) (json.RawMessage, error) { return texts.Append(nil, v) }

// decoded returns what a JSON text means, with numbers as they are spelt.
func decoded(value json.RawMessage) (v any) {
	d := json.NewDecoder(bytes.NewReader(value))
	d.UseNumber()
	_ = d.Decode(&v) // it is JSON
	return v
}

// valueOf is a JSON text as a Value, or nil where that would round a number.
func valueOf(value json.RawMessage) *structpb.Value {
	v, exact := rounded(decoded(value))
	if !exact {
		return nil
	}
	out, err := structpb.NewValue(v)
	if err != nil {
		return nil
	}
	return out
}

// rounded has doubles for numbers; exact is false where one of them is another number.
func rounded(v any) (_ any, exact bool) {
	switch v := v.(type) {
	case json.Number:
		n, err := v.Float64()
		return n, err == nil && jsonpb.IsExact(string(v), n)
	case []any:
		for i := range v {
			if v[i], exact = rounded(v[i]); !exact {
				return nil, false
			}
		}
	case map[string]any:
		for k := range v {
			if v[k], exact = rounded(v[k]); !exact {
				return nil, false
			}
		}
	}
	return v, true
}

// same compares two JSON texts: numbers by value, objects whatever the order of their members.
func same(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	return alike(decoded(a), decoded(b))
}

func alike(a, b any) bool {
	switch a := a.(type) {
	case json.Number:
		b, ok := b.(json.Number)
		if !ok || a == b {
			return ok
		}
		x, okX := decimalOf(string(a))
		y, okY := decimalOf(string(b))
		return okX && okY && x.compare(y)
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, alike)
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k, v := range a {
			if w, ok := b[k]; !ok || !alike(v, w) {
				return false
			}
		}
		return true
	default:
		return a == b
	}
}

// decimal is digits * 10^exponent.
type decimal struct {
	digits   *big.Int
	exponent int
}

// maxDigits bounds the numbers that are added and compared: a short text can name one with a billion digits.
const maxDigits = 400

func decimalOf(literal string) (d decimal, ok bool) {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(literal), "e")
	if exponent != "" {
		n, err := strconv.Atoi(exponent)
		if err != nil || n > maxDigits || n < -maxDigits {
			return d, false
		}
		d.exponent = n
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	if len(whole)+len(fraction) > maxDigits {
		return d, false
	}
	d.exponent -= len(fraction)
	d.digits, ok = new(big.Int).SetString(whole+fraction, 10)
	return d, ok
}

// to returns the digits for a smaller exponent.
func (d decimal) to(exponent int) *big.Int {
	scale := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(d.exponent-exponent)), nil)
	return scale.Mul(scale, d.digits)
}

func (d decimal) compare(o decimal) bool {
	e := min(d.exponent, o.exponent)
	return d.to(e).Cmp(o.to(e)) == 0
}

func (d decimal) plus(o decimal) decimal {
	e := min(d.exponent, o.exponent)
	return decimal{new(big.Int).Add(d.to(e), o.to(e)), e}
}

// String is the number without an exponent, and without zeros at its end.
func (d decimal) String() string {
	if d.exponent >= 0 {
		return d.to(0).String()
	}
	text := new(big.Int).Abs(d.digits).String()
	if missing := 1 - d.exponent - len(text); missing > 0 {
		text = strings.Repeat("0", missing) + text
	}
	point := len(text) + d.exponent
	out := text[:point]
	if fraction := strings.TrimRight(text[point:], "0"); fraction != "" {
		out += "." + fraction
	}
	if d.digits.Sign() < 0 {
		out = "-" + out
	}
	return out
}

// badEscape says what is wrong with a path that is no JSON Pointer (RFC 6901); empty: nothing.
func badEscape(path string) string {
	rest := strings.NewReplacer("~0", "", "~1", "").Replace(path)
	if strings.HasPrefix(path, "/") && strings.Contains(rest, "~") {
		return "has a path in which ~ is followed by neither 0 nor 1; ~0 is ~, and ~1 is /"
	}
	return ""
}

// steps splits a path: a JSON Pointer, or the name of one field.
func steps(path string) []string {
	switch {
	case path == "":
		return nil
	case path[0] != '/':
		return []string{path}
	}
	out := strings.Split(path[1:], "/")
	for i, s := range out {
		out[i] = strings.ReplaceAll(strings.ReplaceAll(s, "~1", "/"), "~0", "~")
	}
	return out
}

// find is what steps lead to in a value, or nil.
func find(value json.RawMessage, steps []string) json.RawMessage {
	for _, step := range steps {
		switch first(value) {
		case '{':
			var members map[string]json.RawMessage
			_ = json.Unmarshal(value, &members) // it is JSON
			value = members[step]
		case '[':
			var elements []json.RawMessage
			_ = json.Unmarshal(value, &elements)
			i, ok := index(step, len(elements))
			if !ok {
				return nil
			}
			value = elements[i]
		default:
			return nil
		}
	}
	return value
}

// with is value with another one where steps lead, or without it where to is nil. ok is false where they lead into what is neither
// an object nor a list, or past a list's end.
func with(value json.RawMessage, steps []string, to json.RawMessage) (_ json.RawMessage, ok bool) {
	if len(steps) == 0 {
		return to, true
	}
	step, rest := steps[0], steps[1:]
	switch first(value) {
	case 0, '{':
		members := map[string]json.RawMessage{}
		if value != nil {
			_ = json.Unmarshal(value, &members)
		}
		if to == nil && members[step] == nil {
			return value, true
		}
		member, ok := with(members[step], rest, to)
		if members[step] = member; member == nil {
			delete(members, step)
		}
		return encoded(members), ok
	case '[':
		var elements []json.RawMessage
		_ = json.Unmarshal(value, &elements)
		i, ok := index(step, len(elements))
		switch {
		case !ok && to == nil:
			return value, true
		case !ok && (step == "-" || step == strconv.Itoa(len(elements))):
			i, elements = len(elements), append(elements, nil)
		case !ok:
			return nil, false
		}
		element, ok := with(elements[i], rest, to)
		if elements[i] = element; element == nil {
			elements = slices.Delete(elements, i, i+1)
		}
		return encoded(elements), ok
	default:
		return value, to == nil
	}
}

func first(value json.RawMessage) byte {
	if len(value) == 0 {
		return 0
	}
	return value[0]
}

// index reads the number of an element that is there.
func index(step string, n int) (i int, ok bool) {
	i, err := strconv.Atoi(step)
	return i, err == nil && i >= 0 && i < n && step == strconv.Itoa(i)
}

// encoded writes parts that are JSON.
func encoded(parts any) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(parts) //nolint:errchkjson // its parts are JSON
	return bytes.TrimRight(b.Bytes(), "\n")
}
