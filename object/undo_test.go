package object_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	exprpb "google.golang.org/genproto/googleapis/api/expr/v1alpha1"
	attributepb "google.golang.org/genproto/googleapis/rpc/context/attribute_context"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/object"
	"holdfast/object/objecttest"
)

// undoable have maps of every sort, messages within them, and within those what has a JSON form of its own.
var undoable = []proto.Message{&exprpb.CheckedExpr{}, &exprpb.SourceInfo{}, &exprpb.ParsedExpr{}, &exprpb.Constant{}}

// Whatever a change does to a state, its note makes of the one after what was before.
func FuzzUndo(f *testing.F) {
	for seed := range uint64(300) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 0))
		all := slices.Concat(undoable, prototypes)
		was := all[r.IntN(len(all))].ProtoReflect().New().Interface()
		objecttest.Fill(r, was)
		is := proto.Clone(was)
		if r.IntN(8) == 0 {
			proto.Reset(is)
			objecttest.Fill(r, is)
		} else {
			objecttest.Disturb(r, is)
		}
		if _, ok := was.(*structpb.Struct); ok {
			t.Skip("no state is one: its JSON is not that of its fields")
		}
		stored, err := object.Encode(is)
		if err == nil {
			err = proto.CheckInitialized(was)
		}
		if err != nil {
			t.Skip(err) // proto2 only
		}
		note, err := object.Undo(was, is)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid([]byte(note)) {
			t.Fatalf("no JSON: %s", note)
		}
		back, err := object.Undone(stored, note)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := object.Decode(was, back); err != nil || !proto.Equal(got, was) {
			t.Fatalf("was  %v\nis   %v\nnote %s\nback %v, %v", was, is, note, got, err)
		}
	})
}

func TestUndo(t *testing.T) {
	t.Parallel()
	reference := func(name string) *exprpb.Reference { return &exprpb.Reference{Name: name} }
	at := func(seconds int64) proto.Message {
		return &attributepb.AttributeContext{Request: &attributepb.AttributeContext_Request{Time: &timestamppb.Timestamp{Seconds: seconds}}}
	}
	for name, tt := range map[string]struct {
		was, is proto.Message
		want    string
	}{
		"nothing": {&exprpb.CheckedExpr{ExprVersion: "1"}, &exprpb.CheckedExpr{ExprVersion: "1"}, `{"state":{}}`},
		"a field": {&exprpb.CheckedExpr{ExprVersion: "1"}, &exprpb.CheckedExpr{ExprVersion: "2"}, `{"state":{"expr_version":"1"}}`},
		"a map that was not there": {
			&exprpb.CheckedExpr{}, &exprpb.CheckedExpr{ReferenceMap: map[int64]*exprpb.Reference{1: reference("a")}}, `{"state":{"reference_map":null}}`,
		},
		"a map that is gone": {
			&exprpb.CheckedExpr{ReferenceMap: map[int64]*exprpb.Reference{1: reference("a")}}, &exprpb.CheckedExpr{},
			`{"state":{"reference_map":{"1":{"name":"a"}}}}`,
		},
		"keys": {
			&exprpb.CheckedExpr{ReferenceMap: map[int64]*exprpb.Reference{1: reference("a"), 2: reference("b")}},
			&exprpb.CheckedExpr{ReferenceMap: map[int64]*exprpb.Reference{2: reference("b"), 3: reference("c")}},
			`{"state":{},"in":{"reference_map":{"set":{"1":{"name":"a"}},"unset":["3"]}}}`,
		},
		"within a key": {
			&exprpb.CheckedExpr{ReferenceMap: map[int64]*exprpb.Reference{1: reference("a"), 2: reference("b")}},
			&exprpb.CheckedExpr{ReferenceMap: map[int64]*exprpb.Reference{1: {Name: "x", OverloadId: []string{"o"}}, 2: reference("b")}},
			`{"state":{},"in":{"reference_map":{"in":{"1":{"set":{"name":"a"},"unset":["overload_id"]}}}}}`,
		},
		"within a message, and a time is a whole": {at(0), at(1), `{"state":{},"in":{"request":{"set":{"time":"1970-01-01T00:00:00Z"}}}}`},
		"made": {nil, &exprpb.CheckedExpr{ExprVersion: "1"}, `{"state":{}}`},
	} {
		if got, err := object.Undo(tt.was, tt.is); err != nil || got != tt.want {
			t.Errorf("%s: %s, %v\nwant %s", name, got, err, tt.want)
		}
	}
	if got, err := object.Undo(&exprpb.CheckedExpr{ExprVersion: "1"}, nil); err != nil || got != `{"state":{"expr_version":"1"}}` {
		t.Errorf("deleted: %s, %v", got, err)
	}
	if _, err := object.Undo(&exprpb.CheckedExpr{ExprVersion: "\xff"}, nil); err == nil || !strings.Contains(err.Error(), "UTF-8") {
		t.Errorf("text that is no UTF-8: %v", err)
	}
}

// What is on disk is read for ever: notes that have whole fields, which all had once, and such that go into them.
func TestNotesOnDisk(t *testing.T) {
	t.Parallel()
	const is = `{"name":"n","calls":{"a":{"n":"1"},"b":{"n":"2"}},"one":{"x":"1"}}`
	for note, want := range map[string]string{
		`{"state":{}}`:                          is,
		`{"state":{"name":null,"edition":"e"}}`: `{"calls":{"a":{"n":"1"},"b":{"n":"2"}},"edition":"e","one":{"x":"1"}}`,
		`{"state":{"calls":{"c":{"n":"3"}}}}`:   `{"calls":{"c":{"n":"3"}},"name":"n","one":{"x":"1"}}`,
		`{"state":{"calls":null}}`:              `{"name":"n","one":{"x":"1"}}`,
		`{"state":{},"in":{"calls":{"set":{"a":{"n":"0"},"c":{}},"unset":["b","z"]}}}`: `{"calls":{"a":{"n":"0"},"c":{}},"name":"n","one":{"x":"1"}}`,
		`{"state":{"name":null},"in":{"calls":{"in":{"b":{"unset":["n"]}}}}}`:          `{"calls":{"a":{"n":"1"},"b":{}},"one":{"x":"1"}}`,
		`{"state":{"name":null},"nulls":["one"]}`:                                      `{"calls":{"a":{"n":"1"},"b":{"n":"2"}},"one":null}`,
		`{"state":{},"in":{"one":{"set":{"x":null,"y":[1]}}}}`:                         `{"calls":{"a":{"n":"1"},"b":{"n":"2"}},"name":"n","one":{"x":null,"y":[1]}}`,
		`{"state":{},"in":{"one":{"unset":["x"]},"calls":{"in":{"a":{"set":{}}}}}}`:    `{"calls":{"a":{"n":"1"},"b":{"n":"2"}},"name":"n","one":{}}`,
		`{"state":{},"in":{"one":{"in":{"deep":{"set":{"k":"v"}}}}},"created":false}`:  `{"calls":{"a":{"n":"1"},"b":{"n":"2"}},"name":"n","one":{"deep":{"k":"v"},"x":"1"}}`,
	} {
		got, err := object.Undone(is, note)
		if err != nil || !sameJSON(t, got, want) {
			t.Errorf("%s\nmade %s, %v\nwant %s", note, got, err, want)
		}
	}
	if _, err := object.Undone(`{"calls":"text"}`, `{"in":{"calls":{"unset":["a"]}}}`); err == nil {
		t.Error("a state that the note is not of was undone")
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := errors.Join(json.Unmarshal([]byte(a), &x), json.Unmarshal([]byte(b), &y)); err != nil {
		t.Fatal(err)
	}
	return cmp.Equal(x, y)
}

// A user is taken out of notes, keys of maps included. What the erasing change itself noted stays right: of the key and its
// pseudonym only one is set.
func TestErasedNotes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ note, want string }{
		{
			`{"state":{"fields":null},"in":{"fields":{"set":{"ada":{"name":"ada"}},"unset":["erased"],"in":{"ada":{"set":{"name":"ada","number":1}},"eve":{}}}}}`,
			`{"state":{"fields":null},"in":{"fields":{"set":{"erased":{"name":"erased"}},"unset":["erased"],"in":{"erased":{"set":{"name":"erased","number":1}},"eve":{}}}}}`,
		},
		{`{"state":{},"in":{"gone":{"set":{"x":"ada"}}}}`, `{"state":{},"in":{"gone":{"set":{"x":"erased"}}}}`},
	} {
		got, err := object.EraseNote(&attributepb.AttributeContext{}, "ada", tt.note)
		if err != nil || !sameJSON(t, got, tt.want) {
			t.Errorf("erased %s, %v\nwant %s", got, err, tt.want)
		}
	}
	const labels = `{"state":{},"in":{"resource":{"set":{"name":"ada"},"in":{"labels":{"set":{"ada":"ada"},"unset":["ada","x"]}}}}}`
	got, err := object.EraseNote(&attributepb.AttributeContext{}, "ada", labels)
	if want := strings.ReplaceAll(labels, `ada`, `erased`); err != nil || !sameJSON(t, got, want) {
		t.Errorf("erased %s, %v\nwant %s", got, err, want)
	}
	// Keys and values that are no text are left alone.
	const types = `{"state":{},"in":{"reference_map":{"set":{"7":{"name":"7"}},"unset":["7"],"in":{"7":{"set":{"name":"7"}}}}}}`
	got, err = object.EraseNote(&exprpb.CheckedExpr{}, "7", types)
	if want := strings.ReplaceAll(types, `"name":"7"`, `"name":"erased"`); err != nil || !sameJSON(t, got, want) {
		t.Errorf("erased %s, %v\nwant %s", got, err, want)
	}
}
