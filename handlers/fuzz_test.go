package handlers_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
)

// fuzzing says how an area's methods are fuzzed.
type fuzzing struct {
	// seed are the methods and bodies that make c1; the first fails where there is one.
	seed [][2]string
	// full has for each unary method a request with all that it can have.
	full map[string]string
	// reads is what is read after a method has changed something, by method and body; "": after all others.
	reads map[string][2]string
	// service are methods that only services may call, and how full's request is answered.
	service map[string]string
	// needy are methods for whose full request a fresh c1 lacks something.
	needy []string
}

// fuzzed is a server and an object, which each input finds new: one that was changed is left to itself. In inputs its
// name is c1.
type fuzzed struct {
	*bundle

	methods      []protoreflect.MethodDescriptor // the unary ones, by name
	ada, service string
	made         int    // objects
	id           string // of the one in use; empty: make one
	area         protoreflect.FullName
}

func newFuzzed(tb testing.TB, b *bundle) *fuzzed {
	tb.Helper()
	z := &fuzzed{bundle: b, ada: b.key(tb, "ada"), service: b.key(tb, "")}
	methods := registered()
	for _, p := range slices.Sorted(maps.Keys(methods)) {
		if m := methods[p]; !m.IsStreamingServer() && m.Input().Fields().Len() > 0 { // without fields there is nothing to be hostile with
			z.methods = append(z.methods, m)
		}
	}
	return z
}

// fuzzingOf is how a method's area is fuzzed.
func fuzzingOf(m protoreflect.MethodDescriptor) fuzzing {
	return areas[m.ParentFile().Package()].fuzzing
}

// fresh makes what a method is about. Its id is as long as c1, so that it fits into binary inputs.
func (z *fuzzed) fresh(t *testing.T, m protoreflect.MethodDescriptor) {
	t.Helper()
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	z.area = m.ParentFile().Package()
	seed := fuzzingOf(m).seed
	for code := ""; code != "ok"; { // an input may have made one of that id
		if z.made == len(letters)*len(letters) {
			z.bundle, z.made = z.tenant(t), 0
			z.ada, z.service = z.key(t, "ada"), z.key(t, "")
		}
		z.id = string([]byte{letters[z.made/len(letters)], letters[z.made%len(letters)]})
		z.made++
		code = z.ask(t, z.method(seed[0][0]), "json", []byte(seed[0][1])).code
	}
	for _, step := range seed[1:] {
		if got := z.ask(t, z.method(step[0]), "json", []byte(step[1])); got.code != "ok" {
			t.Fatalf("%s: %+v", step[0], got)
		}
	}
}

// method is one of the area in use, or by its procedure of any.
func (z *fuzzed) method(name string) protoreflect.MethodDescriptor {
	if m := registered()[name]; m != nil {
		return m
	}
	for _, m := range z.methods {
		if string(m.Name()) == name && m.ParentFile().Package() == z.area {
			return m
		}
	}
	panic("no method " + name)
}

// ask sends a body and checks that the answer is one that a caller can do something with.
func (z *fuzzed) ask(t *testing.T, m protoreflect.MethodDescriptor, codec string, body []byte) reply {
	t.Helper()
	body = bytes.ReplaceAll(body, []byte("c1"), []byte(z.id))
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, procedure(m), bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/"+codec)
	name, value, _ := strings.Cut(z.ada, ": ")
	if fuzzingOf(m).service[string(m.Name())] != "" {
		name, value, _ = strings.Cut(z.service, ": ")
	}
	req.Header.Set(name, value)
	rec := httptest.NewRecorder()
	began := time.Now()
	z.handler.ServeHTTP(rec, req)
	long := 5 * time.Second
	if raceDetector {
		long *= 10
	}
	if took := time.Since(began); took > long {
		t.Errorf("%s took %v", m.Name(), took)
	}
	got := reply{status: rec.Code, code: "ok", body: rec.Body.String()}
	if rec.Code != http.StatusOK || codec == "json" {
		got = parse(t, rec.Code, rec.Body.Bytes())
		if !json.Valid(rec.Body.Bytes()) {
			t.Errorf("%s is answered with %d %q", m.Name(), got.status, got.body)
		}
	}
	switch got.code {
	case "ok", "invalid_argument", "not_found", "permission_denied", "already_exists", "failed_precondition", "aborted", "resource_exhausted":
	default: // internal and unknown above all, and 5xx
		t.Errorf("%s is answered with %+v", m.Name(), got)
	}
	return got
}

// try sends a body, and checks that what it left can be read.
func (z *fuzzed) try(t *testing.T, m protoreflect.MethodDescriptor, codec string, body []byte) {
	t.Helper()
	if z.id == "" || z.area != m.ParentFile().Package() {
		z.fresh(t, m)
	}
	got := z.ask(t, m, codec, body)
	if m.Input().Fields().ByName("request_id") == nil || got.code != "ok" {
		return
	}
	reads := fuzzingOf(m).reads
	read, ok := reads[string(m.Name())]
	if !ok {
		read = reads[""]
	}
	again := z.ask(t, z.method(read[0]), "json", []byte(read[1]))
	if again.code != "ok" && (again.code != "not_found" || !strings.HasPrefix(string(m.Name()), "Delete")) {
		t.Errorf("after %s, %s is answered with %+v", m.Name(), read[0], again)
	}
	z.id = ""
}

// hostile are values that go wherever JSON has a value.
func hostile() []string {
	return []string{
		`"\u0000"`, `"\ud800"`, `"\udc00\ud800"`, `"\ud83d\ude00"`, "\"\xff\xfe\"", "\"\x00\"", `"\x"`, `"NaN"`, `"-Infinity"`, `NaN`, `1e400`, `-1e-400`,
		`9223372036854775807`, `"9223372036854775807"`, `9223372036854775808`, `1e18`, `-1`, `1.5`, `-0`, `0x10`, `01`,
		`null`, `true`, `{}`, `[]`, `[null]`, `[{}]`, `{"":null}`, `{"a":1,"a":2}`, `""`, `"a.b"`, `"999999h"`, `"315576000001s"`,
		`{"a":` + nested(63, "[") + `}`, `{"a":` + nested(64, `{"a":`) + `}`, `{"@type":"type.googleapis.com/google.protobuf.Struct"}`,
	}
}

// nested is a JSON value n levels deep.
func nested(n int, open string) string {
	end := map[byte]string{'[': "]", '{': "}"}[open[0]]
	return strings.Repeat(open, n) + "1" + strings.Repeat(end, n)
}

// large are hostile values that take a while.
func large() []string {
	return []string{nested(10_000, "["), nested(10_000, `{"a":`), strings.Repeat("[", 10_000), `"` + strings.Repeat("x", 70_000) + `"`, `[` + strings.Repeat(`{},`, 10_000) + `{}]`}
}

// mutants are a JSON document with each of its values in turn replaced.
func mutants(document string, values []string) (out []string) {
	const mark = "\"the mark\""
	var root any
	if err := json.Unmarshal([]byte(document), &root); err != nil {
		panic(err)
	}
	var walk func(node any, set func(any))
	walk = func(node any, set func(any)) {
		set("the mark")
		text, err := json.Marshal(root)
		if err != nil {
			panic(err)
		}
		set(node)
		for _, v := range values {
			out = append(out, strings.Replace(string(text), mark, v, 1))
		}
		switch n := node.(type) {
		case map[string]any:
			for _, k := range slices.Sorted(maps.Keys(n)) {
				walk(n[k], func(v any) { n[k] = v })
			}
		case []any:
			for i := range n {
				walk(n[i], func(v any) { n[i] = v })
			}
		}
	}
	walk(root, func(v any) { root = v })
	return out
}

// Every value of every request, replaced by what does not belong there.
func TestHostileJSON(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, m := range newFuzzed(t, b).methods {
		t.Run(string(m.Name()), func(t *testing.T) {
			t.Parallel()
			z := newFuzzed(t, b.tenant(t))
			how := fuzzingOf(m)
			document, ok := how.full[string(m.Name())]
			if !ok {
				t.Fatal("its area's fuzzing has no full request of it")
			}
			z.fresh(t, m)
			if got := z.ask(t, m, "json", []byte(document)); got.code != cmp.Or(how.service[string(m.Name())], "ok") && !slices.Contains(how.needy, string(m.Name())) {
				t.Fatalf("as it is, it is answered with %+v", got)
			}
			z.id = ""
			bodies := mutants(document, hostile())
			for i := range m.Input().Fields().Len() {
				for _, v := range large() {
					bodies = append(bodies, fmt.Sprintf(`{%q:%s}`, m.Input().Fields().Get(i).JSONName(), v))
				}
			}
			for i, body := range bodies {
				if !raceDetector || i%10 == 0 {
					z.try(t, m, "json", []byte(body))
				}
			}
		})
	}
}

// FuzzJSON sends any bytes to any unary RPC. Nothing that a caller sends is the server's fault: no answer is internal or
// unknown, none takes long, and what was accepted can be read back.
func FuzzJSON(f *testing.F) {
	z := newFuzzed(f, setup(f))
	for i, m := range z.methods {
		body := fuzzingOf(m).full[string(m.Name())]
		for _, s := range []string{body, "", "{", "null", body + "x", body + body, "\xef\xbb\xbf" + body, strings.Repeat("{", 10_000), body[:len(body)/2]} {
			f.Add(uint8(i), []byte(s))
		}
		switch m.Name() {
		case "CreateConversation", "Append": // a text, and a tree
			for _, v := range append(hostile(), large()...) {
				f.Add(uint8(i), fmt.Appendf(nil, `{"conversationId":"c1","conversation":{"title":%s}}`, v))
				f.Add(uint8(i), fmt.Appendf(nil, `{"conversationId":"c1","intents":[{"name":"n","slots":%s}]}`, v))
			}
		}
	}
	f.Fuzz(func(t *testing.T, method uint8, body []byte) {
		z.try(t, z.methods[int(method)%len(z.methods)], "json", body)
	})
}

// FuzzProto is FuzzJSON for what JSON cannot say: wrong wire types, values of no kind, numbers that JSON has not.
func FuzzProto(f *testing.F) {
	z := newFuzzed(f, setup(f))
	add := func(i int, m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	for i, m := range z.methods {
		body := cmp.Or(isolationCases[procedure(m)].body, "{}")
		req := dynamicpb.NewMessage(m.Input())
		if err := protojson.Unmarshal([]byte(body), req); err != nil {
			f.Fatal(err)
		}
		add(i, req)
		f.Add(uint8(i), []byte("\x0a\x01\xff"))
		f.Add(uint8(i), []byte("\x0a\x02c1\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	}
	for _, v := range []*structpb.Value{
		nil,
		{},
		structpb.NewNumberValue(math.NaN()), structpb.NewNumberValue(math.Inf(-1)), structpb.NewStringValue("\x00"),
		structpb.NewListValue(nil), structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{{}}}),
	} {
		s := &structpb.Struct{Fields: map[string]*structpb.Value{"a": v}}
		for i, m := range z.methods {
			switch m.Name() {
			case "Append":
				add(i, &conversationv1.AppendRequest{ConversationId: "c1", Intents: []*conversationv1.Intent{{Name: "n", Slots: s}}})
				add(i, &conversationv1.AppendRequest{ConversationId: "c1", Messages: []*conversationv1.Message{{Role: 1, Parts: []*conversationv1.Part{{Part: &conversationv1.Part_Json{Json: structpb.NewStructValue(s)}}}}}})
			case "IngestLive":
				add(i, &livev1.IngestLiveRequest{ConversationId: "c1", FencingToken: 1, Frames: []*livev1.LiveFrame{{ClientIndex: 1, Frame: &livev1.LiveFrame_Object{Object: s}}}})
			}
		}
	}
	f.Fuzz(func(t *testing.T, method uint8, body []byte) {
		z.try(t, z.methods[int(method)%len(z.methods)], "proto", body)
	})
}
