package state

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	statev1 "holdfast/gen/holdfast/state/v1"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	"holdfast/handlers/problem"
)

// migrations are patches, each a list of operations in JSON.
func migrations(t testing.TB, patches ...[]string) (out []*storev1.Migration) {
	t.Helper()
	for _, operations := range patches {
		m := &storev1.Migration{}
		for _, text := range operations {
			m.Patch = append(m.Patch, schemaOf(t, text))
		}
		out = append(out, m)
	}
	return out
}

func TestAMigrationChangesAStateOnceOrNotAtAll(t *testing.T) {
	t.Parallel()
	d, err := declare(&storev1.TypeState{Migrations: migrations(t,
		[]string{`{"op":"move","from":"/sum","path":"/total"}`},
		[]string{`{"op":"test","path":"/kind","value":"old"}`, `{"op":"replace","path":"/kind","value":"new"}`, `{"op":"add","path":"/tags/-","value":{"x":1}}`},
		[]string{`{"op":"replace","path":"","value":[]}`},
		[]string{`{"op":"copy","from":"/big","path":"/b1"}`, `{"op":"copy","from":"/big","path":"/b2"}`},
	)})
	if err != nil {
		t.Fatal(err)
	}
	big := `"` + strings.Repeat("b", maxState/2) + `"`
	for _, tt := range []struct {
		migrated    int32
		state, want string
	}{
		{0, `{"sum":9007199254740993.10}`, `{"total":9007199254740993.10}`},
		{1, `{"sum":1}`, `{"sum":1}`}, // it has had it
		{0, `{"a":1}`, `{"a":1}`},     // it has nothing to move
		{0, `{"sum":1,"kind":"old","tags":[]}`, `{"kind":"new","tags":[{"x":1}],"total":1}`},
		{0, `{"sum":1,"kind":"other","tags":[]}`, `{"kind":"other","tags":[],"total":1}`},
		{0, `{"kind":"old"}`, `{"kind":"old"}`}, // no half of one: there are no tags
		{0, `{"big":"a"}`, `{"b1":"a","b2":"a","big":"a"}`},
		{0, `{"big":` + big + `}`, `{"big":` + big + `}`}, // it would be too large
		{9, `{"sum":1}`, `{"sum":1}`},
	} {
		s := &storev1.ObjectState{Migrated: tt.migrated}
		setWhole(s, []byte(tt.state))
		d.migrate(s)
		if got := string(whole(s)); got != tt.want || s.GetMigrated() != max(tt.migrated, 4) {
			t.Errorf("%.100s with %d becomes %.100s with %d, want %.100s", tt.state, tt.migrated, got, s.GetMigrated(), tt.want)
		}
	}
	for _, text := range []string{
		`{"path":"/a"}`, `{"op":"delete","path":"/a"}`, `{"op":"add","path":"/a"}`, `{"op":"move","path":"/a"}`,
		`{"op":"copy","path":"/a","from":{}}`, `{"op":"remove"}`, `{"op":"remove","path":1}`, `{"op":1,"path":"/a"}`,
	} {
		_, err := declare(&storev1.TypeState{Migrations: migrations(t, []string{`{"op":"remove","path":"/a"}`, text})})
		if p, ok := errors.AsType[*problem.Error](err); !ok || !strings.HasPrefix(p.Message, "type.migrations[0].patch[1]: is no operation") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// Whatever is declared and stored, a migration ends, and leaves a state.
func FuzzMigration(f *testing.F) {
	f.Add(`{"op":"add","path":"/a/-","value":null}`, `{"op":"test","path":"/a/0","value":null}`, `{"a":[]}`)
	f.Add(`{"op":"move","from":"/a","path":"/a/b"}`, `{"op":"remove","path":"/a/-1"}`, `{"a":{"b":null}}`)
	f.Add(`{"op":"copy","from":"","path":"/a"}`, `{"op":"replace","path":"","value":null}`, `{"~":{"/":1e400}}`)
	f.Add(`{"op":"add","path":"","value":null}`, `{"op":"add","path":"/a","value":1}`, `{}`)
	f.Fuzz(func(t *testing.T, first, second, state string) {
		value, said := parse(state)
		s := &storev1.ObjectState{}
		if said != "" || !setWhole(s, value) {
			t.Skip("no state")
		}
		is := &storev1.TypeState{}
		for _, text := range []string{first, second} {
			operation := &structpb.Struct{}
			if operation.UnmarshalJSON([]byte(text)) != nil {
				t.Skip("no operation")
			}
			is.Migrations = append(is.Migrations, &storev1.Migration{Patch: []*structpb.Struct{operation}})
		}
		d, err := declare(is)
		if err != nil {
			t.Skip("no migrations")
		}
		d.migrate(s)
		if _, said := parse(string(whole(s))); said != "" {
			t.Errorf("%s is left, which %s", whole(s), said)
		}
	})
}

// States are read as their type's migrations make them, and stored so by their next change.
func TestStatesAreReadAsTheirTypeIsNow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service, c, far := b.as(t, nobody), b.as(t, ada), b.another(t).as(t, ada)
	for _, name := range []string{"a", "b", "c"} {
		c.apply(t, `{'ref':{'type':'inv','name':'`+name+`'},'operations':[{'setState':{'sum':1}}]}`)
	}
	w := (&watcher{item: `'state':{'ref':{'type':'inv','name':'a'}}`}).connect(t, c)
	w.next(t)
	put := func(text string) error {
		_, err := service.PutType(t.Context(), from(t, &statev1.PutTypeRequest{}, `{'type':{'type':'inv','migrations':[`+text+`]}}`))
		return err
	}
	const first = `{'patch':[{'op':'move','from':'/sum','path':'/total'}]}`
	must(struct{}{}, put(first))(t)
	const all = `{'reads':[{'ref':{'type':'inv','name':'a'}},{'ref':{'type':'inv','name':'b'}}]}`
	for total(c.read(t, all)[0]) != 1 || total(far.read(t, all)[1]) != 1 { // the other server trusts what it knew for a moment
		if t.Context().Err() != nil {
			t.Fatal("the states are never what they are to be")
		}
	}
	if o := c.read(t, `{'reads':[{'ref':{'type':'inv','name':'a'}}]}`)[0]; total(o) != 1 || o.GetVersion() != 1 {
		t.Errorf("read alone: %v", o)
	}
	list := must(far.ListStates(t.Context(), from(t, &statev1.ListStatesRequest{}, `{'filter':{'type':'inv'},'withState':true}`)))(t)
	for _, o := range list.GetObjects() {
		if total(o) != 1 {
			t.Errorf("listed: %v", o)
		}
	}
	c.apply(t, `{'ref':{'type':'inv','name':'a'},'operations':[{'increment':{'path':'total'}}]}`)
	w.next(t)
	if o := w.things["object"].GetObject(); total(o) != 2 || o.GetState().GetFields()["sum"] != nil {
		t.Errorf("watched: %v", o)
	}
	fork := must(c.ForkState(t.Context(), from(t, &statev1.ForkStateRequest{}, `{'ref':{'type':'inv','name':'b'},'newRef':{'type':'plain','name':'b'}}`)))(t)
	if total(fork.GetObject()) != 1 {
		t.Errorf("forked into a type that has none: %v", fork)
	}
	// What states may have had stays.
	for _, text := range []string{"", `{'patch':[{'op':'remove','path':'/sum'}]}`} {
		refused(t, put(text), "FIELD_INVALID")
	}
	must(struct{}{}, put(first+`,{'patch':[{'op':'add','path':'/currency','value':'EUR'}]}`))(t)
	c.apply(t, `{'ref':{'type':'inv','name':'new'},'operations':[{'setState':{'sum':1}}]}`)
	objects := c.read(t, `{'reads':[{'ref':{'type':'inv','name':'new'}},{'ref':{'type':'inv','name':'a'}},{'ref':{'type':'inv','name':'b'}}]}`)
	for i, want := range []string{"map[sum:1]", "map[currency:EUR total:2]", "map[currency:EUR total:1]"} {
		if got := fmt.Sprint(objects[i].GetState().AsMap()); got != want {
			t.Errorf("%s is %s, want %s", objects[i].GetRef().GetName(), got, want)
		}
	}
	must(struct{}{}, put(first+`,{'patch':[{'op':'add','path':'/currency','value':'EUR'}]}`))(t)
	// A change that changes nothing is none, whatever is still to be done.
	if v := c.apply(t, `{'ref':{'type':'inv','name':'c'}}`).GetVersion(); v != 1 {
		t.Errorf("version %d", v)
	}
}

func total(o *statev1.Object) float64 { return o.GetState().GetFields()["total"].GetNumberValue() }
