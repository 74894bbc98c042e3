package handlers_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// wrong is a request's JSON with one value that must not pass, and the path of that value.
type wrong struct{ body, path, reason string }

// wrongs returns, for every field that a message type leads to, the wrong values that the field can have or stand next to.
func wrongs(md protoreflect.MessageDescriptor, above map[protoreflect.FullName]bool, wrap func(inner string) string, at string) (out []wrong) {
	switch md.FullName() {
	case "google.protobuf.Struct":
		return []wrong{{wrap(`{"a":[0.1,{"b":9007199254740993}]}`), at + ".a[1].b", "NUMBER_INEXACT"}}
	case "google.protobuf.Value":
		return []wrong{{wrap(`{"a":-1e400}`), at + ".a", "NUMBER_INEXACT"}}
	}
	if above[md.FullName()] || md.ParentFile().Package() == "google.protobuf" {
		return nil
	}
	above[md.FullName()] = true
	defer delete(above, md.FullName())
	join := func(name string) string { return strings.TrimPrefix(at+"."+name, ".") }
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		for _, name := range []string{fd.JSONName(), fd.TextName()} {
			for _, misspelt := range []string{name + "x", strings.ToUpper(name[:1]) + name[1:]} {
				out = append(out, wrong{wrap(fmt.Sprintf(`{%q:null}`, misspelt)), join(misspelt), "FIELD_UNKNOWN"})
			}
		}
		name, before, after, path, single := fd.TextName(), "", "", join(fd.TextName()), fd
		if fd.IsList() {
			before, after, path = "[", "]", path+"[0]"
		} else if fd.IsMap() {
			single = fd.MapValue()
			key := map[bool]string{true: "key", false: "7"}[fd.MapKey().Kind() == protoreflect.StringKind]
			before, after, path = fmt.Sprintf(`{%q:`, key), "}", path+"."+key
		}
		inner := func(value string) string { return wrap(fmt.Sprintf(`{%q:%s%s%s}`, name, before, value, after)) }
		switch single.Kind() { //nolint:exhaustive // of the others no value is like another
		case protoreflect.EnumKind:
			if single.Enum().FullName() == "google.protobuf.NullValue" {
				continue
			}
			lower := strings.ToLower(string(single.Enum().Values().Get(0).Name()))
			for _, value := range []string{`"NOPE"`, `""`, `"` + lower + `"`, "99999", "-1"} {
				out = append(out, wrong{inner(value), path, "FIELD_UNKNOWN"})
			}
		case protoreflect.Int32Kind, protoreflect.Uint32Kind:
			out = append(out, wrong{inner("4294967296"), path, "NUMBER_INEXACT"}, wrong{inner(`"1.5"`), path, "NUMBER_INEXACT"})
		case protoreflect.Int64Kind, protoreflect.Uint64Kind:
			out = append(out, wrong{inner(`"18446744073709551616"`), path, "NUMBER_INEXACT"}, wrong{inner("1e30"), path, "NUMBER_INEXACT"})
		case protoreflect.DoubleKind:
			out = append(out, wrong{inner("0.1234567890123456789"), path, "NUMBER_INEXACT"}, wrong{inner("1e309"), path, "NUMBER_INEXACT"})
		case protoreflect.MessageKind:
			out = append(out, wrongs(single.Message(), above, inner, path)...)
		}
	}
	return out
}

func TestNothingMisspeltPasses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.key(t, "")
	for p, m := range registered() {
		t.Run(strings.TrimPrefix(p, "/holdfast."), func(t *testing.T) {
			t.Parallel()
			all := append(wrongs(m.Input(), map[protoreflect.FullName]bool{}, func(s string) string { return s }, ""),
				wrong{`{"nothing":{"a":[1]}}`, "nothing", "FIELD_UNKNOWN"}, wrong{`{"":1}`, "", "FIELD_UNKNOWN"}, wrong{`{"requestId ":"a"}`, "requestId ", "FIELD_UNKNOWN"})
			for i, w := range all {
				if raceDetector && i%10 != 0 {
					continue
				}
				answers := []reply{b.call(t, m, w.body, key)}
				if getable(m) {
					answers = append(answers, b.get(t, m, w.body, key))
				}
				for _, got := range answers {
					if got.code != "invalid_argument" || got.reason != w.reason || !strings.Contains(got.body, fmt.Sprintf(`"field":%q`, w.path)) && w.path != "" {
						t.Errorf("%s: %s %s %.600s; want %s of %q", w.body, got.code, got.reason, got.body, w.reason, w.path)
					}
				}
			}
		})
	}
}

func TestANewerClientAsksForLeniency(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.key(t, "ada")
	const service = "/holdfast.conversation.v1.ConversationService/"
	send := func(method, body string, headers ...string) reply {
		t.Helper()
		return b.call(t, registered()[service+method], body, append(headers, key)...)
	}
	const lenient = "Holdfast-Lenient: true"
	if got := send("CreateConversation", `{"conversationId":"c1","modalities":["x",{"y":1}],"modality":"MODALITY_TELEPATHY"}`, lenient); got.code != "ok" {
		t.Fatalf("%+v", got)
	}
	const newer = `{"conversationId":"c1","newer":{"a":9007199254740993}}`
	for name, got := range map[string]reply{
		"POST":   send("GetConversation", newer, lenient),
		"GET":    b.get(t, registered()[service+"GetConversation"], newer, lenient, key),
		"stream": b.call(t, registered()[watchRPC], `{"items":[{"itemId":"i","newer":1,"conversation":`+newer+`}]}`, lenient, key),
	} {
		if got.code != "ok" || !strings.Contains(got.body, `"c1"`) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	for body, reason := range map[string]string{
		`{"conversationId":"c1","newer":1,"intents":[{"slots":{"a":9007199254740993}}]}`: "NUMBER_INEXACT", // leniency loses no digits
		`{"conversationId":"c1","newer":1`:                                               "BODY_BROKEN",
		``:                                                                               "BODY_BROKEN",
	} {
		if got := send("Append", body, lenient); got.reason != reason {
			t.Errorf("%s: %+v", body, got)
		}
	}
	for value, reason := range map[string]string{"false": "FIELD_UNKNOWN", "yes": "BODY_BROKEN", "": "FIELD_UNKNOWN"} {
		if got := send("GetConversation", newer, "Holdfast-Lenient: "+value); got.reason != reason {
			t.Errorf("%q: %+v", value, got)
		}
	}
	grpc := b.do(t, http.MethodPost, service+"GetConversation", strings.NewReader(string([]byte{0, 0, 0, 0, byte(len(newer))})+newer), key, lenient, "Content-Type: application/grpc-web+json")
	if !strings.Contains(grpc.body, `"c1"`) {
		t.Errorf("gRPC-web with JSON: %+v", grpc)
	}
}

// What a number is in JSON, it is in the answer, in a google.protobuf.Struct as well.
func TestNumbersComeBackAsTheyWereSent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.key(t, "ada")
	const service = "/holdfast.conversation.v1.ConversationService/"
	b.call(t, registered()[service+"CreateConversation"], `{"conversationId":"c1"}`, key)
	const slots = `{"a":0.1,"b":[9007199254740992,-0.5,1e-7],"c":{"d":123456789012345680000}}`
	if got := b.call(t, registered()[service+"Append"], `{"conversationId":"c1","intents":[{"name":"n","slots":`+slots+`}]}`, key); got.code != "ok" {
		t.Fatalf("%+v", got)
	}
	if got := b.call(t, registered()[service+"ListRecords"], `{"conversationId":"c1"}`, key); !strings.Contains(got.body, slots) {
		t.Errorf("%s", got.body)
	}
}
