package jsonpb

import (
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// number reads a number, which may be in quotes.
func (d *reader) number(kind protoreflect.Kind) (v protoreflect.Value, err error) {
	at := d.at
	var literal string
	if d.next() == '"' {
		text, err := d.string()
		if err != nil {
			return v, err
		}
		literal = string(text)
		if kind == protoreflect.FloatKind || kind == protoreflect.DoubleKind {
			if n, ok := map[string]float64{"NaN": math.NaN(), "Infinity": math.Inf(1), "-Infinity": math.Inf(-1)}[literal]; ok {
				return floatValue(kind, n), nil
			}
		}
		if end := scanNumber(text); end == 0 || end != len(text) {
			d.at = at
			return v, d.fail("%q is no number", literal)
		}
	} else {
		end := scanNumber(d.text[d.at:])
		if end == 0 {
			return v, d.unexpected("a number")
		}
		literal = string(d.text[d.at : d.at+end])
		d.at += end
		d.blanks()
	}
	v, ok := numberValue(kind, literal)
	if ok && kind == protoreflect.DoubleKind && d.pass&Inexact == 0 {
		ok = IsExact(literal, v.Float())
	}
	if !ok {
		d.at = at
		return v, d.inexact(literal, kind)
	}
	return v, nil
}

func (d *reader) inexact(literal string, kind protoreflect.Kind) *Error {
	e := d.fail("the type %v cannot hold %.40s exactly", kind, literal)
	e.Inexact = true
	return e
}

// IsExact reports whether n still has each digit of the literal that it was read from. A literal with a fraction or an exponent
// may have the 17 digits that some libraries print of each double. An integer must be the one that n is written as.
func IsExact(literal string, n float64) bool {
	digits, exponent := significant(literal)
	short, shortExponent := significant(strconv.FormatFloat(n, 'e', -1, 64))
	if digits == short && exponent == shortExponent {
		return true
	}
	const mostPrinted = 17
	if len(digits) > mostPrinted || !strings.ContainsAny(literal, ".eE") {
		return false
	}
	printed, printedExponent := significant(strconv.FormatFloat(n, 'e', max(len(digits)-1, 0), 64))
	return digits == printed && exponent == printedExponent
}

// significant returns the digits of a number without zeros at either end, and the exponent of 0.digits.
func significant(literal string) (digits string, exponent int64) {
	mantissa := strings.TrimPrefix(literal, "-")
	if i := strings.IndexAny(mantissa, "eE"); i >= 0 {
		// An exponent out of range becomes the greatest or smallest, which no double has. As protojson has it, "1e" is 1.
		exponent, _ = strconv.ParseInt(mantissa[i+1:], 10, 32)
		mantissa = mantissa[:i]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	digits = strings.TrimLeft(whole+fraction, "0")
	exponent += int64(len(whole) - (len(whole+fraction) - len(digits)))
	if digits = strings.TrimRight(digits, "0"); digits == "" {
		exponent = 0
	}
	return digits, exponent
}

func floatValue(kind protoreflect.Kind, n float64) protoreflect.Value {
	if kind == protoreflect.FloatKind {
		return protoreflect.ValueOfFloat32(float32(n))
	}
	return protoreflect.ValueOfFloat64(n)
}

func numberValue(kind protoreflect.Kind, literal string) (protoreflect.Value, bool) {
	if kind == protoreflect.FloatKind {
		n, err := strconv.ParseFloat(literal, 32)
		return protoreflect.ValueOfFloat32(float32(n)), err == nil
	}
	if kind == protoreflect.DoubleKind {
		n, err := strconv.ParseFloat(literal, 64)
		return protoreflect.ValueOfFloat64(n), err == nil
	}
	if strings.ContainsAny(literal, ".eE") {
		var ok bool
		if literal, ok = wholeNumber(literal); !ok {
			return protoreflect.Value{}, false
		}
	}
	switch kind {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		n, err := strconv.ParseInt(literal, 10, 32)
		return protoreflect.ValueOfInt32(int32(n)), err == nil
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		n, err := strconv.ParseInt(literal, 10, 64)
		return protoreflect.ValueOfInt64(n), err == nil
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		n, err := strconv.ParseUint(literal, 10, 32)
		return protoreflect.ValueOfUint32(uint32(n)), err == nil
	default:
		n, err := strconv.ParseUint(literal, 10, 64)
		return protoreflect.ValueOfUint64(n), err == nil
	}
}

// wholeNumber writes a number with a fraction or an exponent as digits alone, where it is whole: 1.20e1 is 12.
func wholeNumber(literal string) (string, bool) {
	const mostDigits = 20 // of a uint64
	digits, exponent := literal, 0
	if i := strings.IndexAny(literal, "eE"); i >= 0 {
		digits = literal[:i]
		if literal[i+1:] != "" { // as protojson has it, "1e" is 1
			n, err := strconv.ParseInt(literal[i+1:], 10, 32)
			if err != nil {
				// The exponent of zero is of no account.
				return "0", strings.Trim(digits, "-0.") == ""
			}
			exponent = int(n)
		}
	}
	digits, negative := strings.CutPrefix(digits, "-")
	whole, fraction, _ := strings.Cut(digits, ".")
	whole, fraction = strings.TrimLeft(whole, "0"), strings.TrimRight(fraction, "0")
	if whole == "" && fraction == "" {
		return "0", true
	}
	if exponent >= 0 {
		if len(fraction) > exponent || len(whole)+exponent > mostDigits {
			return "", false
		}
		digits = whole + fraction + strings.Repeat("0", exponent-len(fraction))
	} else {
		point := len(whole) + exponent
		if fraction != "" || point < 0 || strings.Trim(whole[point:], "0") != "" {
			return "", false
		}
		digits = whole[:point]
	}
	if negative {
		digits = "-" + digits
	}
	return digits, true
}

// scanNumber returns the length of the number at the beginning of a text; 0: there is none.
func scanNumber(s []byte) int {
	n := 0
	at := func() byte {
		if n < len(s) {
			return s[n]
		}
		return 0
	}
	run := func() (some bool) {
		for '0' <= at() && at() <= '9' {
			n++
			some = true
		}
		return some
	}
	if at() == '-' {
		n++
	}
	if at() == '0' {
		n++
	} else if !run() {
		return 0
	}
	if at() == '.' && n+1 < len(s) && '0' <= s[n+1] && s[n+1] <= '9' {
		n++
		run()
	}
	if c := at(); (c == 'e' || c == 'E') && n+1 < len(s) {
		n++
		if at() == '+' || at() == '-' {
			n++
			if n == len(s) {
				return 0
			}
		}
		run()
	}
	if n < len(s) && inWord(s[n]) {
		return 0
	}
	return n
}
