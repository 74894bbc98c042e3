package object_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	exprpb "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/apipb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/identity"
	"holdfast/object"
	"holdfast/object/objecttest"
)

// prototypes have between them every kind of field: extreme integers, enums open and closed, maps, oneofs, bytes,
// nested messages, and JSON inside.
var prototypes = []proto.Message{
	&typepb.Type{}, &typepb.Field{}, &apipb.Api{}, &structpb.Struct{}, &descriptorpb.DescriptorProto{},
	&descriptorpb.UninterpretedOption{}, &descriptorpb.FileOptions{},
}

func random(seed uint64) proto.Message {
	r := rand.New(rand.NewPCG(seed, 0))
	m := prototypes[r.IntN(len(prototypes))].ProtoReflect().New().Interface()
	objecttest.Fill(r, m)
	return m
}

func parsed(t *testing.T, text string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

// Texts and times are written as protojson does.
func TestEncoded(t *testing.T) {
	t.Parallel()
	var control strings.Builder
	for c := range rune(0x30) {
		control.WriteRune(c)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, m := range []proto.Message{
		&typepb.EnumValue{Name: control.String() + "\x7f\u2028é😀<&>\\\""},
		timestamppb.New(at), timestamppb.New(at.Add(120 * time.Millisecond)), timestamppb.New(at.Add(1200 * time.Microsecond)),
		timestamppb.New(at.Add(10)), &timestamppb.Timestamp{}, timestamppb.New(time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC)),
		timestamppb.New(time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC)),
		&typepb.Type{Name: "", Syntax: typepb.Syntax(77)}, &typepb.Type{},
	} {
		stored, err := object.Encode(m)
		if err != nil {
			t.Error(err)
			continue
		}
		standard, err := protojson.Marshal(m)
		if err != nil {
			t.Error(err)
			continue
		}
		if diff := cmp.Diff(parsed(t, string(standard)), parsed(t, stored)); diff != "" {
			t.Errorf("%s differs from protojson (-want +got):\n%s", stored, diff)
		}
	}
	for _, bad := range []proto.Message{
		&timestamppb.Timestamp{Seconds: -1 << 40}, &timestamppb.Timestamp{Nanos: -1}, &typepb.EnumValue{Name: "\xff"},
		&exprpb.SourceInfo{MacroCalls: map[int64]*exprpb.Expr{1: {ExprKind: &exprpb.Expr_IdentExpr{IdentExpr: &exprpb.Expr_Ident{Name: "\xc3"}}}}},
		&structpb.Struct{Fields: map[string]*structpb.Value{"\xff": structpb.NewNullValue()}},
	} {
		if stored, err := object.Encode(bad); !errors.Is(err, object.ErrInvalid) {
			t.Errorf("%v is stored as %s, %v", bad, stored, err)
		}
	}
}

// What is encoded decodes to the same message. The seed makes the message, so what the fuzzer finds can be run again.
func FuzzCodec(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		m := random(seed)
		stored, err := object.Encode(m)
		if err != nil {
			if uninitialized := proto.CheckInitialized(m); uninitialized != nil {
				t.Skip(uninitialized) // proto2 only
			}
			t.Fatalf("encode %v: %v", m, err)
		}
		back, err := object.Decode(m, stored)
		if err != nil {
			t.Fatalf("decode %s: %v", stored, err)
		}
		standard, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(parsed(t, string(standard)), parsed(t, stored)); diff != "" {
			t.Fatalf("%s differs from protojson (-want +got):\n%s", stored, diff)
		}
		if !proto.Equal(m, back) {
			t.Fatalf("stored %v\nas %s\nread %v", m, stored, back)
		}
	})
}

// And so it does after Postgres has made jsonb of it and text again: other order, other spaces, other numbers.
func TestCodecThroughPostgres(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var messages []proto.Message
	var stored, back []string
	for seed := range uint64(1000) {
		m := random(seed)
		s, err := object.Encode(m)
		if err != nil {
			continue // a required field of proto2 is missing
		}
		messages, stored = append(messages, m), append(stored, s)
	}
	err := b.owner(t).QueryRow(b.ctx, `SELECT array_agg(j::jsonb::text ORDER BY i) FROM unnest($1::text[]) WITH ORDINALITY AS x (j, i)`,
		stored).Scan(&back)
	if err != nil {
		t.Fatal(err)
	}
	if len(back) != len(stored) || len(stored) < 500 {
		t.Fatalf("%d of %d messages came back", len(back), len(stored))
	}
	for i, m := range messages {
		got, err := object.Decode(m, back[i])
		if err != nil || !proto.Equal(m, got) {
			t.Fatalf("stored %v\nas %s\nwhich Postgres made %s\nread %v, %v", m, stored[i], back[i], got, err)
		}
	}
}

// A newer release's fields and enum values are passed over.
func TestDecodeIsLenient(t *testing.T) {
	t.Parallel()
	m, err := object.Decode(&typepb.Type{}, `{"name": "n", "newer": {"a": [1]}, "syntax": "SYNTAX_NEWER", "fields": [{"number": 3, "newer": 1}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if want := (&typepb.Type{Name: "n", Fields: []*typepb.Field{{Number: 3}}}); !proto.Equal(m, want) {
		t.Errorf("read %v, want %v", m, want)
	}
	for _, bad := range []string{``, `[]`, `{"name": 1}`, `{"name": "n"`} {
		if _, err := object.Decode(&typepb.Type{}, bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if _, err := object.Encode(&typepb.Type{Name: "\xff"}); !errors.Is(err, object.ErrInvalid) {
		t.Errorf("text that is no UTF-8: %v", err)
	}
}

// Two releases that run side by side lock the same objects and find the same requests, so none of these may change.
func TestKeysNeverChange(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		tenant  identity.Tenant
		kind    string
		id      object.ID
		lock    int64
		request string
	}{
		{"acme", "conversation", "c1", -9169069253737123274, "3ff6761b5ef60da88d5ae26d4c32e3f5"},
		{"acme", "conversation", "c2", 5131258809215365017, "d961e7f950dece40a0451127f37ae504"},
		{"acme", "project", "c1", -5601486128676014590, "601be8c731a0f34307952cea9aaa1fe2"},
		{"emca", "conversation", "c1", 4121267978343151056, "3ff6761b5ef60da88d5ae26d4c32e3f5"},
		{"a", "b", "0190b7a2-7c1e-7cc3-98c4-dc0c0c07398f", -3359450696665905152, "20dca33fd4765def28f9e82543089bf3"},
		{"a", "b", object.ID(strings.Repeat("z", 128)), 6534500189009749389, "047a40eda1574edcc59bfb1477abc234"},
	} {
		if got := object.LockKey(c.tenant, c.kind, c.id); got != c.lock {
			t.Errorf("the lock key of %s %s %s is %d, not %d", c.tenant, c.kind, c.id, got, c.lock)
		}
		if got := hex.EncodeToString(object.RequestKey(c.tenant, c.kind, c.id, "request-1")); got != c.request {
			t.Errorf("the request key of %s %s %s is %s, not %s", c.tenant, c.kind, c.id, got, c.request)
		}
	}
}

// What is on disk is read for ever: rows that this release writes look like this.
func TestStoredFormNeverChanges(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := toyConfig()
	c.OnTimer = func(*object.Tx[toy], string) error { return nil }
	b.toys = object.Register(b.rt, c)
	steps := []struct {
		fn    func(*object.Tx[toy]) error
		state string
		undo  string
	}{
		{func(tx *object.Tx[toy]) error {
			proto.Merge(tx.State(), &typepb.Type{
				Name: "a \"name\"", Oneofs: []string{"t1", "t2"}, Syntax: typepb.Syntax_SYNTAX_PROTO3,
				SourceContext: nil, Fields: []*typepb.Field{{Number: 1, JsonName: "j", Packed: true}},
			})
			return nil
		}, `{"name": "a \"name\"", "fields": [{"number": 1, "packed": true, "json_name": "j"}], "oneofs": ["t1", "t2"], "syntax": "SYNTAX_PROTO3"}`, `{"state": {}, "created": true}`},
		{func(tx *object.Tx[toy]) error {
			tx.State().Name, tx.State().Edition, tx.State().Syntax = "b", "e", typepb.Syntax_SYNTAX_PROTO2
			tx.Put(toyEntries, "k\"1", &typepb.EnumValue{Name: "one", Number: 1})
			tx.Put(toyOther, "k2", &typepb.Field{OneofIndex: -1})
			tx.SetTimer("t\"1", time.Date(2100, 1, 2, 3, 4, 5, 678_901_000, time.UTC))
			return nil
		}, `{"name": "b", "fields": [{"number": 1, "packed": true, "json_name": "j"}], "oneofs": ["t1", "t2"], "edition": "e"}`, `{"state": {"name": "a \"name\"", "syntax": "SYNTAX_PROTO3", "edition": null}, "timers": {"t\"1": null}, "entries": [["values", "k\"1", null], ["others", "k2", null]]}`},
		{func(tx *object.Tx[toy]) error {
			tx.State().Fields = nil
			tx.Put(toyEntries, "k\"1", &typepb.EnumValue{Name: "eins"})
			tx.DeleteEntry(toyOther, "k2")
			return nil
		}, `{"name": "b", "oneofs": ["t1", "t2"], "edition": "e"}`, `{"state": {"fields": [{"number": 1, "packed": true, "json_name": "j"}]}, "entries": [["values", "k\"1", {"name": "one", "number": 1}], ["others", "k2", {"oneof_index": -1}]]}`},
		{func(tx *object.Tx[toy]) error { tx.DeleteObject(); return nil }, "", `{"state": {"name": "b", "oneofs": ["t1", "t2"], "edition": "e"}, "timers": {"t\"1": "2100-01-02T03:04:05.678901Z"}}`},
	}
	conn := b.owner(t)
	for i, s := range steps {
		b.update(t, "a", s.fn, object.Upsert(), object.Request("r"+string(rune('1'+i)), &structpb.Value{}))
		var state, undo, timers string
		err := conn.QueryRow(b.ctx, `SELECT coalesce(o.state::text, ''), e.undo::text, coalesce(o.timers::text, '') FROM holdfast.objects o
			JOIN holdfast.events e USING (tenant_id, kind, object_id, version) WHERE tenant_id = $1`, string(b.Tenant)).Scan(&state, &undo, &timers)
		if err != nil {
			t.Fatal(err)
		}
		if state != s.state {
			t.Errorf("version %d: state\n%s\nwant\n%s", i+1, state, s.state)
		}
		if want := map[int]string{1: `{"t\"1": "2100-01-02T03:04:05.678901Z"}`, 2: `{"t\"1": "2100-01-02T03:04:05.678901Z"}`}[i]; timers != want {
			t.Errorf("version %d: timers\n%s\nwant\n%s", i+1, timers, want)
		}
		if undo != s.undo {
			t.Errorf("version %d: undo\n%s\nwant\n%s", i+1, undo, s.undo)
		}
	}
	var entries, terms string
	err := conn.QueryRow(b.ctx, `SELECT
		(SELECT string_agg(concat_ws(' ', collection, key, version, body), E'\n' ORDER BY collection, key) FROM holdfast.entries WHERE tenant_id = $1),
		(SELECT coalesce(string_agg(term, E'\n' ORDER BY term), '') FROM holdfast.terms WHERE tenant_id = $1)`, string(b.Tenant)).Scan(&entries, &terms)
	if err != nil {
		t.Fatal(err)
	}
	if want := `values k"1 3 {"name": "eins"}`; entries != want {
		t.Errorf("entries\n%s\nwant\n%s", entries, want)
	}
	if terms != "" {
		t.Errorf("a deleted object left terms: %s", terms)
	}
	b.update(t, "b", steps[0].fn, object.Create())
	if err := conn.QueryRow(b.ctx, "SELECT string_agg(term, ' ' ORDER BY term) FROM holdfast.terms WHERE tenant_id = $1", string(b.Tenant)).Scan(&terms); err != nil {
		t.Fatal(err)
	}
	if want := string(b.Tenant) + "/toy/t1 " + string(b.Tenant) + "/toy/t2"; terms != want {
		t.Errorf("terms %q, want %q", terms, want)
	}
}
