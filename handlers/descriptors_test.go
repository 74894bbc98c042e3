package handlers_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// ownIdempotency are the changing RPCs without a request_id, and what makes them safe to repeat.
var ownIdempotency = map[protoreflect.Name]string{ //nolint:gochecknoglobals // never changed
	"IngestLive": "client_index", "RefreshSession": "the refresh token", "Acquire": "grant_id", "Release": "grant_id", "TakeTimers": "the lease, which ends",
	"EraseUser": "what is erased already is counted as nothing", "ApplyTogether": "request_id; each change has an if_version of its own",
}

// reading are the RPCs that change nothing and cannot be called by GET, because an answer depends on the clock or holds a secret.
var reading = regexp.MustCompile(`^(Get|List|Watch|Read)`)

// small are the names of what stays below 2^31, except those in unbounded.
var small = regexp.MustCompile(`(^|_)(seq|epoch|count|fencing_token|attempts|attempt|index|ms|number|through)$`)

var unbounded = map[protoreflect.FullName]string{ //nolint:gochecknoglobals // never changed
	"holdfast.conversation.v1.Conversation.token_count":              "grows with all that was ever said",
	"holdfast.conversation.v1.Summary.replaced_token_count":          "is a sum over messages",
	"holdfast.conversation.v1.ProposeCompactionResponse.token_count": "is a sum over messages",
	"holdfast.coordination.v1.Call.seq":                              "a busy API has more calls, and the next API of its name counts on from its time",
}

// The API has one form. Whoever knows one service knows them all.
func TestTheAPIHasOneForm(t *testing.T) {
	t.Parallel()
	var packages int
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		pkg := f.Package()
		if !strings.HasPrefix(string(pkg), "holdfast.") || strings.HasPrefix(string(pkg), "holdfast.store.") {
			return true
		}
		packages++
		for i := range f.Imports().Len() {
			if of := f.Imports().Get(i).Package(); strings.HasPrefix(string(of), "holdfast.store.") {
				t.Errorf("%s imports %s: what is stored is not what is asked", f.Path(), of)
			}
		}
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				hasForm(t, methods.Get(j))
			}
		}
		for i := range f.Messages().Len() {
			fieldsHaveForm(t, f.Messages().Get(i))
		}
		return true
	})
	if packages < 3 {
		t.Errorf("only %d packages have been looked at", packages)
	}
}

// numbered reports whether a message has a field of that name in that place.
func numbered(m protoreflect.MessageDescriptor, name protoreflect.Name, number protoreflect.FieldNumber) bool {
	f := m.Fields().ByName(name)
	return f != nil && f.Number() == number
}

func hasForm(t *testing.T, m protoreflect.MethodDescriptor) {
	t.Helper()
	in, out := m.Input(), m.Output()
	pages := in.Fields().ByName("page_token") != nil
	switch {
	case pages != (out.Fields().ByName("next_page_token") != nil), pages && !(numbered(in, "page_size", 1) && numbered(in, "page_token", 2) && numbered(out, "next_page_token", 1)):
		t.Errorf("%s: pages are asked for by page_size = 1 and page_token = 2, and answered with next_page_token = 1", m.FullName())
	case strings.HasPrefix(string(m.Name()), "List") && !pages:
		t.Errorf("%s is a list without pages", m.FullName())
	}
	if pages {
		size, _ := proto.GetExtension(in.Fields().ByName("page_size").Options(), validate.E_Field).(*validate.FieldRules)
		if size.GetInt32().GetLte() != 200 {
			t.Errorf("%s: a page has up to 200", m.FullName())
		}
	}
	if m.IsStreamingServer() || reading.MatchString(string(m.Name())) || getable(m) {
		return
	}
	if ownIdempotency[m.Name()] != "" {
		return
	}
	if !numbered(in, "request_id", 1) || !numbered(in, "if_version", 2) || !in.Fields().ByName("if_version").HasPresence() {
		t.Errorf("%s: a change begins with string request_id = 1 and optional int64 if_version = 2", m.FullName())
	}
}

// heads are the first fields of a resource, which is what has an owner and a version.
var heads = []protoreflect.Name{"owner", "version", "create_time", "update_time", "expire_time"} //nolint:gochecknoglobals // never changed

func fieldsHaveForm(t *testing.T, m protoreflect.MessageDescriptor) {
	t.Helper()
	if o, _ := m.Options().(*descriptorpb.MessageOptions); o.GetMapEntry() {
		return
	}
	last := protoreflect.FieldNumber(0)
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		if f.Number() != last+1 {
			t.Errorf("%s has the number %d: numbers follow each other, in the order of the fields", f.FullName(), f.Number())
		}
		last = f.Number()
		rules, _ := proto.GetExtension(f.Options(), validate.E_Field).(*validate.FieldRules)
		switch {
		case f.Name() == "request_id" && rules.GetString().GetMaxBytes() != 128 && strings.HasSuffix(string(m.Name()), "Request"):
			t.Errorf("%s: a request id has up to 128 bytes", f.FullName())
		case f.Kind() == protoreflect.Int64Kind && unbounded[f.FullName()] == "" && small.MatchString(string(f.Name())):
			t.Errorf("%s is an int64, which JSON shows as text: what stays below 2^31 is an int32", f.FullName())
		case f.Message() != nil && f.Message().FullName() == "google.protobuf.FieldMask" && f.Name() != "update_mask":
			t.Errorf("%s: a mask is called update_mask", f.FullName())
		case slices.Contains([]protoreflect.Name{"has_more", "next_key", "after_key"}, f.Name()):
			t.Errorf("%s: lists go on by page tokens", f.FullName())
		case strings.HasSuffix(string(f.Name()), "_at") || strings.HasSuffix(string(f.Name()), "_timestamp"):
			t.Errorf("%s: a time is called ..._time", f.FullName())
		}
	}
	if m.Fields().ByName("owner") != nil && m.Fields().ByName("version") != nil && m.Fields().ByName("create_time") != nil {
		for i, name := range heads {
			if !numbered(m, name, protoreflect.FieldNumber(i+2)) {
				t.Errorf("%s: a resource begins with its id, %v, and its labels where it has some", m.FullName(), heads)
				break
			}
		}
		if f := m.Fields().ByName("labels"); f != nil && f.Number() != 7 {
			t.Errorf("%s: labels are field 7 of a resource", m.FullName())
		}
	}
	for i := range m.Messages().Len() {
		fieldsHaveForm(t, m.Messages().Get(i))
	}
}
