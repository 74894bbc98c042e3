package jsonpb_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/apipb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/typepb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	linearv1 "holdfast/gen/holdfast/linear/v1"
	livev1 "holdfast/gen/holdfast/live/v1"
	conversationstorev1 "holdfast/gen/holdfast/store/conversation/v1"
	coordinationstorev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/jsonpb"
	"holdfast/object/objecttest"
)

// prototypes have between them every kind of field and every well-known type.
var prototypes = []proto.Message{
	&conversationv1.GetConversationResponse{}, &conversationstorev1.ConversationState{}, &livev1.IngestLiveRequest{},
	&conversationv1.EditMessagesRequest{}, &coordinationstorev1.ApiState{}, &linearv1.Issue{},
	&typepb.Type{}, &apipb.Api{}, &structpb.Struct{}, &structpb.Value{}, &structpb.ListValue{}, &timestamppb.Timestamp{},
	&descriptorpb.DescriptorProto{}, &descriptorpb.UninterpretedOption{}, &descriptorpb.FileOptions{},
	&wrapperspb.Int64Value{}, &wrapperspb.BytesValue{},
}

var (
	camel = jsonpb.New()
	snake = jsonpb.New(jsonpb.ProtoNames())
)

// differs compares a message's JSON with protojson's, and what is read back with what was written.
func differs(tb testing.TB, m proto.Message) {
	tb.Helper()
	for _, of := range []struct {
		codec *jsonpb.Codec
		names bool
	}{{camel, false}, {snake, true}} {
		want, wantErr := protojson.MarshalOptions{UseProtoNames: of.names}.Marshal(m)
		got, err := of.codec.Append([]byte("x"), m)
		if (err == nil) != (wantErr == nil) {
			tb.Fatalf("%T: %v, protojson: %v", m, err, wantErr)
		}
		if err != nil {
			return
		}
		var compact bytes.Buffer
		if err := json.Compact(&compact, want); err != nil {
			tb.Fatal(err)
		}
		if string(got) != "x"+compact.String() {
			tb.Fatalf("%T is written as\n%s\nprotojson:\n%s", m, got[1:], compact.Bytes())
		}
		back := m.ProtoReflect().New().Interface()
		if _, err := of.codec.Unmarshal(got[1:], back, jsonpb.Unknown|jsonpb.Inexact); err != nil || !proto.Equal(m, back) {
			tb.Fatalf("%s is read back as %v, %v", got[1:], back, err)
		}
	}
}

// reads compares what is read of a text with what protojson reads.
func reads(tb testing.TB, prototype proto.Message, text []byte) {
	tb.Helper()
	want, got := prototype.ProtoReflect().New().Interface(), prototype.ProtoReflect().New().Interface()
	wantErr := protojson.Unmarshal(text, want)
	_, err := camel.Unmarshal(text, got, jsonpb.Inexact)
	e, ok := errors.AsType[*jsonpb.Error](err)
	unnamed := ok && e.Unknown && wantErr == nil // an enum's value has no name
	if (err == nil) != (wantErr == nil) && !unnamed || err == nil && !proto.Equal(want, got) {
		tb.Fatalf("%T from %q: %v, %v; protojson: %v, %v", prototype, text, got, err, want, wantErr)
	}
	lenientErr := protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(text, want)
	unknown, err := camel.Unmarshal(text, got, jsonpb.Unknown|jsonpb.Inexact)
	if (err == nil) != (lenientErr == nil) || err == nil && (!proto.Equal(want, got) || unknown != (wantErr != nil)) {
		tb.Fatalf("leniently, %T from %q: %v, unknown %v, %v; protojson: %v, %v, strictly %v", prototype, text, got, unknown, err, want, lenientErr, wantErr)
	}
}

func TestItIsProtojson(t *testing.T) {
	t.Parallel()
	for i := range 4000 {
		r := rand.New(rand.NewPCG(uint64(i), 0))
		m := prototypes[r.IntN(len(prototypes))].ProtoReflect().New().Interface()
		objecttest.Fill(r, m)
		differs(t, m)
		text, err := protojson.Marshal(m)
		if err != nil {
			continue
		}
		reads(t, m, text)
		// The same with something wrong in it, or something else.
		for range 4 {
			broken := bytes.Clone(text)
			switch at := r.IntN(len(broken)); r.IntN(4) {
			case 0:
				const marks = "{}[]\",:0-e.ntf\\ \x01\xff"
				broken[at] = marks[r.IntN(len(marks))]
			case 1:
				broken = append(broken[:at], broken[at+1:]...)
			case 2:
				broken = append(broken[:at:at], append([]byte(`"x":`), broken[at:]...)...)
			case 3:
				broken = broken[:at]
			}
			reads(t, m, broken)
		}
	}
}

var texts = []string{
	``, ` `, `null`, `{}`, `{} `, `{}x`, `[]`, `{"title":"a"}`, `{"title":"a",}`, `{"title":"a" "b"}`, `{title:1}`, `{"title":null}`, `{"title":1}`,
	`{"title":"\ud83d\ude00\u00e9\n\/"}`, `{"title":"\ud83d"}`, `{"title":"\ude00\ud83d"}`, `{"title":"\ud83d\u0041"}`, `{"title":"\x"}`, "{\"title\":\"\xff\"}",
	"{\"title\":\"\\n\xff\"}", `{"title":"a","title":"b"}`, `{"lastSeq":"12","last_seq":"13"}`, `{"last_seq":1.20e1}`, `{"lastSeq":"1e2"}`, `{"lastSeq":" 1"}`,
	`{"lastSeq":1.5}`, `{"lastSeq":01}`, `{"lastSeq":-0}`, `{"lastSeq":-}`, `{"lastSeq":1e}`, `{"lastSeq":1e+}`, `{"lastSeq":"1e"}`, `{"lastSeq":1.}`,
	`{"lastSeq":9223372036854775807}`, `{"lastSeq":9223372036854775808}`, `{"lastSeq":92233720368547758070e-1}`, `{"lastSeq":1e400}`, `{"lastSeq":0e99999999999}`,
	`{"lastSeq":120e-1}`, `{"lastSeq":125e-1}`, `{"lastSeq":true}`, `{"labels":{"a":"b","a":"c"}}`, `{"labels":{"a":null}}`, `{"labels":[]}`, `{"labels":null}`,
	`{"nothing":{"a":[1,{"b":null}]}}`, `{"nothing":[1,]}`, `{"nothing":nul}`, `{"voice":{"status":"VOICE_STATUS_IDLE"}}`, `{"voice":{"status":"NONE"}}`,
	`{"voice":{"status":7}}`, `{"voice":{"status":-3}}`, `{"voice":{"status":1.0}}`, `{"voice":{"status":4294967296}}`, `{"voice":{"status":null}}`,
	`{"createTime":"2026-01-02T03:04:05Z"}`, `{"createTime":"2026-01-02T03:04:05.1234567890Z"}`, `{"createTime":"2026-01-02T03:04:05+02:00"}`,
	`{"createTime":"0000-01-02T03:04:05Z"}`, `{"createTime":"0001-01-01T00:00:00+01:00"}`, `{"createTime":1}`, `{"ttl":"1.5s"}`, `{"ttl":"1.5"}`, `{"ttl":null}`,
	`{"a":1,"b":[true,null,"x",{"c":{}}],"d":-1.5e3}`, `{"a":1e400}`, `{"a":1,"a":2}`, `{"stringValue":"a"}`, `"a"`, `1`, `-1.25e-7`, `tru`, `true`, `[1,[2,[]]]`, `[1 2]`, `nullx`,
	`"2026-01-02T03:04:05Z"`, `"12"`, `"YWI"`, `"YWI="`, `"YW-_"`, `"Y"`, `{"@type":"x"}`, `{"typeUrl":""}`, strings.Repeat("[", 11000) + strings.Repeat("]", 11000), strings.Repeat("[", 9000) + strings.Repeat("]", 9000),
}

func TestItReadsWhatProtojsonReads(t *testing.T) {
	t.Parallel()
	for _, text := range texts {
		for _, m := range append([]proto.Message{&wrapperspb.StringValue{}, &wrapperspb.BoolValue{}, &wrapperspb.FloatValue{}, &wrapperspb.DoubleValue{}}, prototypes...) {
			reads(t, m, []byte(text))
		}
	}
}

func TestNumbersAreWrittenAsInECMAScript(t *testing.T) {
	t.Parallel()
	for _, n := range []float64{0, 1, -1, 0.1, 1e-6, 9.99e-7, 1e-7, 1e20, 1e21, 123456789012345680000, 1.7976931348623157e308, 5e-324, 1e-10} {
		differs(t, structpb.NewNumberValue(n))
		differs(t, wrapperspb.Double(n))
		differs(t, wrapperspb.Float(float32(n)))
	}
}

func TestAnErrorNamesTheField(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"messages":[{},{"rol":1}]}`:                                          "messages[1].rol unknown",
		`{"messages":[{},{"role":"ROLE_KING"}]}`:                               "messages[1].role unknown",
		`{"messages":[{"seq":"x"}]}`:                                           "messages[0].seq",
		`{"messages":[{"role":99}]}`:                                           "messages[0].role unknown",
		`{"messages":[{"client_message_id":1}]}`:                               "messages[0].client_message_id",
		`{"messages":[{"seq":1.5}]}`:                                           "messages[0].seq inexact",
		`{"messages":[{"parts":[{"json":{"a":[1,{"b":9007199254740993}]}}]}]}`: "messages[0].parts[0].json.a[1].b inexact",
		`{"conversation":{"labels":{"a":1}}}`:                                  "conversation.labels.a",
		`{"messages":[{"createTime":"today"}]}`:                                "messages[0].createTime",
		`{`:                                                                    "",
	} {
		_, err := camel.Unmarshal([]byte(text), &conversationv1.GetConversationResponse{}, 0)
		var e *jsonpb.Error
		if !errors.As(err, &e) {
			t.Fatalf("%s: %v", text, err)
		}
		got := e.Path
		if e.Unknown {
			got += " unknown"
		}
		if e.Inexact {
			got += " inexact"
		}
		if got != want {
			t.Errorf("%s: %q, want %q (%v)", text, got, want, err)
		}
	}
}

func TestAMaskKeepsItsKeys(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		`""`: nil, `"title"`: {"title"}, `"createTime,labels.teamENG"`: {"create_time", "labels.teamENG"}, `"create_time, labels.a_b.C"`: {"create_time", "labels.a_b.C"},
		`"settings.x.fooBar,*"`: {"settings.x.fooBar", "*"}, `"a,,b"`: {"a", "", "b"}, `null`: nil,
	} {
		got := &conversationv1.UpdateConversationRequest{}
		if _, err := camel.Unmarshal([]byte(`{"updateMask":`+text+`}`), got, 0); err != nil || !slices.Equal(got.GetUpdateMask().GetPaths(), want) {
			t.Errorf("%s: %q, %v", text, got.GetUpdateMask().GetPaths(), err)
		}
	}
	if _, err := camel.Unmarshal([]byte(`{"updateMask":{"paths":["title"]}}`), &conversationv1.UpdateConversationRequest{}, 0); err == nil {
		t.Error("a mask in JSON is a text")
	}
}

func TestANumberThatADoubleWouldChangeIsRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"0": true, "-0": true, "0.0e5": true, "1": true, "-1.50": true, "0.1": true, "100e-3": true, "1e21": true, "123456789012345680000": true,
		"9007199254740992": true, "9007199254740993": false, "-9007199254740993": false, "9007199254740993.0": false, "1234567890123456789": false,
		"18446744073709551615": false, "1152921504606847000": true, "0.30000000000000004": true, "0.10000000000000001": true,
		"0.1234567890123456789": false, "3.141592653589793": true, "3.14159265358979323846": false, "1.7976931348623157e308": true, "1e400": false,
		"-1e400": false, "1e-400": false, "5e-324": true, "1e99999999999": false, "1e-99999999999": false, "0e99999999999": true, "0.1e1": true,
	} {
		v := &structpb.Value{}
		_, err := camel.Unmarshal([]byte(text), v, 0)
		if e, _ := errors.AsType[*jsonpb.Error](err); (err == nil) != want || !want && (e == nil || !e.Inexact) {
			t.Errorf("%s: %v", text, err)
		}
		if _, err := camel.Unmarshal([]byte(text), &wrapperspb.DoubleValue{}, jsonpb.Inexact); (err != nil) != strings.Contains(text, "e400") && !strings.Contains(text, "e99999") {
			t.Errorf("%s in a row: %v", text, err)
		}
	}
	for i := range 20_000 {
		r := rand.New(rand.NewPCG(uint64(i), 2))
		n := math.Float64frombits(r.Uint64())
		if math.IsNaN(n) || math.IsInf(n, 0) {
			continue
		}
		for _, printed := range []string{strconv.FormatFloat(n, 'g', -1, 64), strconv.FormatFloat(n, 'e', 16, 64)} {
			v := &structpb.Value{}
			if _, err := camel.Unmarshal([]byte(printed), v, 0); err != nil || v.GetNumberValue() != n {
				t.Errorf("%s is a double: %v, %v", printed, v, err)
			}
		}
		long := strconv.FormatUint(r.Uint64N(1<<63)|1<<62|1, 10) // an odd number above 2^53
		if _, err := camel.Unmarshal([]byte(long), &structpb.Value{}, 0); err == nil {
			t.Errorf("%s was taken", long)
		}
	}
}

func FuzzRead(f *testing.F) {
	for i, text := range texts {
		f.Add([]byte(text), uint(i))
	}
	f.Fuzz(func(t *testing.T, text []byte, which uint) {
		reads(t, prototypes[which%uint(len(prototypes))], text)
	})
}

func FuzzWrite(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		m := prototypes[r.IntN(len(prototypes))].ProtoReflect().New().Interface()
		objecttest.Fill(r, m)
		differs(t, m)
	})
}

func BenchmarkJSON(b *testing.B) {
	m := &conversationv1.GetConversationResponse{Conversation: &conversationv1.Conversation{ConversationId: "c1", Title: "Auth refactor"}}
	for i := range 20 {
		m.Messages = append(m.Messages, &conversationv1.Message{
			Seq: int32(int64(i)), Role: conversationv1.Role_ROLE_USER, Text: strings.Repeat("words ", 16), CreateTime: timestamppb.Now(), UpdateTime: timestamppb.Now(), TokenCount: new(int32(25)),
		})
	}
	text, err := camel.Append(nil, m)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			text, _ = camel.Append(text[:0], m)
		}
	})
	b.Run("write/protojson", func(b *testing.B) {
		for b.Loop() {
			_, _ = protojson.Marshal(m)
		}
	})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			_, _ = camel.Unmarshal(text, &conversationv1.GetConversationResponse{}, 0)
		}
	})
	b.Run("read/protojson", func(b *testing.B) {
		for b.Loop() {
			_ = protojson.Unmarshal(text, &conversationv1.GetConversationResponse{})
		}
	})
}
