package handlers_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
)

// fuzzed is a server and the conversation c1, which each input finds as it was.
type fuzzed struct {
	*bundle

	methods []protoreflect.MethodDescriptor // the unary ones, by name
	ada     string
	dirty   bool
}

func newFuzzed(f *testing.F) *fuzzed {
	f.Helper()
	b := setup(f)
	z := &fuzzed{bundle: b, ada: b.key(f, "ada")}
	methods := registered()
	for _, p := range slices.Sorted(maps.Keys(methods)) {
		if m := methods[p]; !m.IsStreamingServer() {
			z.methods = append(z.methods, m)
		}
	}
	z.fill(f, z.ada)
	return z
}

func (z *fuzzed) method(name string) protoreflect.MethodDescriptor {
	for _, m := range z.methods {
		if string(m.Name()) == name {
			return m
		}
	}
	panic("no method " + name)
}

// ask sends a body and checks that the answer is one that a caller can do something with.
func (z *fuzzed) ask(t *testing.T, m protoreflect.MethodDescriptor, codec string, body []byte) reply {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, procedure(m), bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/"+codec)
	name, value, _ := strings.Cut(z.ada, ": ")
	req.Header.Set(name, value)
	rec := httptest.NewRecorder()
	began := time.Now()
	z.handler.ServeHTTP(rec, req)
	if took := time.Since(began); took > 5*time.Second {
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
	case "ok", "invalid_argument", "not_found", "already_exists", "failed_precondition", "aborted", "resource_exhausted":
	default: // internal and unknown above all, and 5xx
		t.Errorf("%s is answered with %+v", m.Name(), got)
	}
	return got
}

// try sends a body of c1, and checks that what it left there can be read.
func (z *fuzzed) try(t *testing.T, m protoreflect.MethodDescriptor, codec string, body []byte) {
	t.Helper()
	if z.dirty {
		z.ask(t, z.method("DeleteConversation"), "json", []byte(`{"conversationId":"c1"}`))
		z.fill(t, z.ada)
		z.dirty = false
	}
	got := z.ask(t, m, codec, body)
	if m.Input().Fields().ByName("request_id") == nil || got.code != "ok" {
		return
	}
	z.dirty = true
	for _, read := range []string{"GetConversation", "ListMessages", "ListIntents", "ListFlowSteps", "ListConversations"} {
		again := z.ask(t, z.method(read), "json", []byte(isolationCases[procedure(z.method(read))].body))
		if again.code != "ok" && (again.code != "not_found" || m.Name() != "DeleteConversation") {
			t.Errorf("after %s, %s is answered with %+v", m.Name(), read, again)
		}
	}
}

// hostile are values that go wherever JSON has a value.
func hostile() []string {
	deep := func(n int, open, close string) string {
		return strings.Repeat(open, n) + "1" + strings.Repeat(close, n)
	}
	return []string{
		`"\u0000"`, `"\ud800"`, `"\udc00\ud800"`, `"\ud83d\ude00"`, "\"\xff\xfe\"", "\"\x00\"", `"\x"`, `"NaN"`, `"-Infinity"`, `NaN`, `1e400`, `-1e-400`,
		`9223372036854775807`, `"9223372036854775807"`, `9223372036854775808`, `-9223372036854775808`, `1e18`, `1.5`, `-0`, `0x10`, `01`,
		`null`, `true`, `{}`, `[]`, `[[]]`, `[null]`, `[{}]`, `{"":null}`, `{"a":1,"a":2}`, `""`, `"` + strings.Repeat("x", 70000) + `"`,
		`"title,labels"`, `"a.b"`, `"*"`, `"99999h"`, `"86400s"`, `"315576000001s"`, `"0.0000000001s"`,
		deep(70, "[", "]"), deep(10000, "[", "]"), deep(10000, `{"a":`, "}"), strings.Repeat("[", 10000),
		`{"a":` + deep(63, `{"a":`, "}") + `}`, `{"a":` + deep(64, `[`, "]") + `}`, `{"@type":"type.googleapis.com/google.protobuf.Struct"}`,
	}
}

// FuzzJSON sends any bytes to any unary RPC. Nothing that a caller sends is the server's fault: no answer is internal or
// unknown, none takes long, and what was accepted can be read back.
func FuzzJSON(f *testing.F) {
	z := newFuzzed(f)
	for i, m := range z.methods {
		body := isolationCases[procedure(m)].body
		f.Add(uint8(i), []byte(body))
		for _, s := range []string{"", "{", "null", "[]", body + "x", body + body, "\xef\xbb\xbf" + body, strings.Repeat("{", 10000), body[:len(body)/2]} {
			f.Add(uint8(i), []byte(s))
		}
		// Each field of the request with each hostile value, beside the good ones and once more in their place.
		fields := m.Input().Fields()
		for j := range fields.Len() {
			name := fields.Get(j).JSONName()
			for _, value := range hostile() {
				f.Add(uint8(i), fmt.Appendf(nil, `{%s:%s,%s`, strconv.Quote(name), value, strings.TrimPrefix(body, "{")))
				f.Add(uint8(i), fmt.Appendf(nil, `%s:%s}`, replaced(body, name), value))
			}
		}
	}
	f.Fuzz(func(t *testing.T, method uint8, body []byte) {
		z.try(t, z.methods[int(method)%len(z.methods)], "json", body)
	})
}

// replaced is a JSON object without a member, open for its new value.
func replaced(body, name string) string {
	members := map[string]json.RawMessage{}
	if err := json.Unmarshal([]byte(body), &members); err != nil {
		panic(err)
	}
	delete(members, name)
	var b strings.Builder
	b.WriteByte('{')
	for _, k := range slices.Sorted(maps.Keys(members)) {
		fmt.Fprintf(&b, "%q:%s,", k, members[k])
	}
	return b.String() + strconv.Quote(name)
}

// FuzzProto is FuzzJSON for what JSON cannot say: wrong wire types, values of no kind, numbers that JSON has not.
func FuzzProto(f *testing.F) {
	z := newFuzzed(f)
	add := func(i int, m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	for i, m := range z.methods {
		body := isolationCases[procedure(m)].body
		req := dynamicpb.NewMessage(m.Input())
		if err := protojson.Unmarshal([]byte(body), req); err != nil {
			f.Fatal(err)
		}
		add(i, req)
		f.Add(uint8(i), []byte("\x0a\x01\xff"))
		f.Add(uint8(i), []byte("\x0a\x02c1\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	}
	for _, v := range []*structpb.Value{
		nil, {}, structpb.NewNumberValue(math.NaN()), structpb.NewNumberValue(math.Inf(-1)), structpb.NewStringValue("\x00"),
		structpb.NewListValue(nil), structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{{}}}),
	} {
		s := &structpb.Struct{Fields: map[string]*structpb.Value{"a": v}}
		for i, m := range z.methods {
			switch m.Name() {
			case "RecordIntent":
				add(i, &conversationv1.RecordIntentRequest{ConversationId: "c1", Name: "n", Slots: s})
			case "IngestLive":
				add(i, &conversationv1.IngestLiveRequest{ConversationId: "c1", Epoch: 1, Frames: []*conversationv1.LiveFrame{{ClientIndex: 1, Frame: &conversationv1.LiveFrame_Object{Object: s}}}})
			case "AppendMessages":
				add(i, &conversationv1.AppendMessagesRequest{ConversationId: "c1", Messages: []*conversationv1.NewMessage{{Role: 1, Parts: []*conversationv1.Part{{Part: &conversationv1.Part_Json{Json: s}}}}}})
			}
		}
	}
	f.Fuzz(func(t *testing.T, method uint8, body []byte) {
		z.try(t, z.methods[int(method)%len(z.methods)], "proto", body)
	})
}
