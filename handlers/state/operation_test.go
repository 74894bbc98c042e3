package state

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	statev1 "holdfast/gen/holdfast/state/v1"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	"holdfast/handlers/problem"
	"holdfast/identity"
	"holdfast/jsonpb"
)

// inMemory are entries that no transaction has.
type inMemory map[string]*storev1.Entry

func (m inMemory) get(collection, key string) *storev1.Entry { return m[stored(collection, key)] }

func (m inMemory) put(collection, key string, e *storev1.Entry, fresh bool) {
	if fresh && m[stored(collection, key)] != nil {
		panic(key + " is there")
	}
	m[stored(collection, key)] = e
}

func (m inMemory) remove(collection, key string) { delete(m, stored(collection, key)) }

func (m inMemory) scan(collection string, p part, limit int) (out []found, more bool) {
	keys := slices.Sorted(maps.Keys(m))
	if p.backward {
		slices.Reverse(keys)
	}
	for _, k := range keys {
		of, key := spelt(k)
		if of != collection || !p.has(key) {
			continue
		}
		if len(out) == limit {
			return out, true
		}
		out = append(out, found{key, m[k]})
	}
	return out, false
}

// applied makes the operations, in JSON, on an object.
func applied(t *testing.T, s state, m inMemory, version int64, ops string) ([]*statev1.Result, error) {
	t.Helper()
	req := &statev1.ApplyRequest{}
	if _, err := jsonpb.New().Unmarshal([]byte(`{"operations":[`+ops+`]}`), req, 0); err != nil {
		t.Fatal(ops, err)
	}
	c := &change{state: s, entries: m, now: time.Unix(1000+version, 0), version: version}
	return c.apply(req.GetOperations())
}

// holds is what there is, in one text.
func holds(s state, m inMemory) string {
	parts := []string{string(whole(s))}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		e := m[k]
		switch v := e.GetValue().(type) {
		case *storev1.Entry_Json:
			parts = append(parts, k+"="+v.Json)
		case *storev1.Entry_Text:
			parts = append(parts, fmt.Sprintf("%s=%q", k, v.Text))
		case *storev1.Entry_Data:
			parts = append(parts, fmt.Sprintf("%s=%x", k, v.Data))
		}
	}
	return strings.Join(parts, " ")
}

func TestOperations(t *testing.T) {
	t.Parallel()
	const (
		three = `{"append":{"collection":"l","json":1}},{"append":{"collection":"l","json":2}},{"append":{"collection":"l","json":3}}`
		keys  = `{"put":{"entry":{"collection":"m","key":"a","text":"1"}}},{"put":{"entry":{"collection":"m","key":"ab","text":"2"}}},{"put":{"entry":{"collection":"m","key":"b","text":"3"}}}`
		deep  = `{"setState":{"a":{"b":[1,{"c":2}]},"n":5}}`
	)
	for name, tt := range map[string]struct{ before, ops, want string }{
		"nothing":                             {"", "", `{}`},
		"the state":                           {`{"setState":{"old":1}}`, `{"setState":{"a":[1,"x",null,true]}}`, `{"a":[1,"x",null,true]}`},
		"the state as text":                   {"", `{"setStateJson":"{\"n\": 9007199254740993, \"d\": 1.10, \"e\": 1e2}"}`, `{"d":1.10,"e":1e2,"n":9007199254740993}`},
		"a state that is a list":              {"", `{"setStateJson":"[1]"}`, "FIELD_INVALID operations[0].set_state_json"},
		"a state that is no JSON":             {"", `{"setStateJson":"{"}`, "FIELD_INVALID operations[0].set_state_json"},
		"a field by name":                     {"", `{"setFields":{"fields":{"a":1,"b.c":2}}}`, `{"a":1,"b.c":2}`},
		"a field by path":                     {deep, `{"setFields":{"fields":{"/a/x/y":true}}}`, `{"a":{"b":[1,{"c":2}],"x":{"y":true}},"n":5}`},
		"an element":                          {deep, `{"setFields":{"fields":{"/a/b/0":9,"/a/b/1/c":8}}}`, `{"a":{"b":[9,{"c":8}]},"n":5}`},
		"an element at the end":               {deep, `{"setFields":{"fields":{"/a/b/-":9}}}`, `{"a":{"b":[1,{"c":2},9]},"n":5}`},
		"past the end":                        {deep, `{"setFields":{"fields":{"/a/b/3":9}}}`, `EXPECTATION_FAILED 0 /a/b/3`},
		"into a number":                       {deep, `{"setFields":{"fields":{"/n/x":9}}}`, `EXPECTATION_FAILED 0 /n/x`},
		"a null":                              {deep, `{"setFields":{"fields":{"/a":null}}}`, `{"a":null,"n":5}`},
		"an escaped path":                     {"", `{"setFields":{"fields":{"/a~1b/~0":1}}}`, `{"a/b":{"~":1}}`},
		"removed":                             {deep, `{"setFields":{"remove":["/a/b/0","n","/no/thing"]}}`, `{"a":{"b":[{"c":2}]}}`},
		"the empty path":                      {deep, `{"setFields":{"remove":[""]}}`, "FIELD_INVALID operations[0].set_fields.remove"},
		"a path twice":                        {"", `{"setFields":{"fields":{"a":1,"/a":2}}}`, "FIELD_INVALID operations[0].set_fields.fields"},
		"a path twice, once as text":          {"", `{"setFields":{"fields":{"/a/b":1},"fieldsJson":{"/a/b":"2"}}}`, "FIELD_INVALID operations[0].set_fields.fields_json"},
		"a path set and removed":              {"", `{"setFields":{"fields":{"/a/b":1},"remove":["/a/b"]}}`, "FIELD_INVALID operations[0].set_fields.fields"},
		"two at the end":                      {deep, `{"setFields":{"fields":{"/a/b/-":1},"fieldsJson":{"/a/b/-":"2"}}}`, `{"a":{"b":[1,{"c":2},1,2]},"n":5}`},
		"no pointer":                          {"", `{"setFields":{"fields":{"/~2":1}}}`, "FIELD_INVALID operations[0].set_fields.fields"},
		"no pointer to increment":             {"", `{"increment":{"path":"/a/~"}}`, "FIELD_INVALID operations[0].increment.path"},
		"no pointer to expect":                {"", `{"expect":{"path":"/~~1","absent":true}}`, "FIELD_INVALID operations[0].expect.path"},
		"a name with a tilde":                 {"", `{"setFields":{"fields":{"a~b":1}}}`, `{"a~b":1}`},
		"signs that HTML escapes":             {"", `{"setFields":{"fields":{"/a/b":"<&>"}}}`, `{"a":{"b":"<&>"}}`},
		"an increment of nothing":             {"", `{"increment":{"path":"n"}}`, `{"n":1}`},
		"an increment in depth":               {deep, `{"increment":{"path":"/a/b/1/c","by":-3}}`, `{"a":{"b":[1,{"c":-1}]},"n":5}`},
		"an increment by 0":                   {deep, `{"increment":{"path":"n","by":0}}`, `{"a":{"b":[1,{"c":2}]},"n":5}`},
		"an increment past doubles":           {`{"setStateJson":"{\"n\":9007199254740993}"}`, `{"increment":{"path":"n"}}`, `{"n":9007199254740994}`},
		"decimals":                            {`{"setState":{"n":0.1}}`, `{"increment":{"path":"n","by":0.2}}`, `{"n":0.3}`},
		"a small sum":                         {`{"setState":{"n":-0.25}}`, `{"increment":{"path":"n","by":0.2}}`, `{"n":-0.05}`},
		"a number with an exponent":           {`{"setStateJson":"{\"n\":1.5E+3}"}`, `{"increment":{"path":"n","by":0.5}}`, `{"n":1500.5}`},
		"an increment of a text":              {`{"setState":{"n":"5"}}`, `{"increment":{"path":"n"}}`, `EXPECTATION_FAILED 0 n "5"`},
		"a number without end":                {`{"setStateJson":"{\"n\":1e999999999}"}`, `{"increment":{"path":"n"}}`, `EXPECTATION_FAILED 0 n 1e999999999`},
		"append":                              {"", three, `{} l/000000000001=1 l/000000000002=2 l/000000000003=3`},
		"numbers are not given twice":         {three + `,{"delete":{"collection":"l","last":2}}`, `{"append":{"collection":"l","data":"AP8="}}`, `{} l/000000000001=1 l/000000000004=00ff`},
		"append comes behind a put":           {`{"put":{"entry":{"collection":"l","key":"000000000007","text":"x"}}}`, `{"append":{"collection":"l","text":"y"}}`, `{} l/000000000007="x" l/000000000008="y"`},
		"append with a key":                   {"", `{"append":{"collection":"l","key":"k","text":"y"}}`, "FIELD_INVALID operations[0].append.key"},
		"append nothing":                      {"", `{"append":{"collection":"l"}}`, "FIELD_INVALID operations[0].append"},
		"append what is no JSON":              {"", `{"append":{"collection":"l","jsonText":"{"}}`, "FIELD_INVALID operations[0].append.json_text"},
		"put what is no JSON":                 {"", `{"put":{"entry":{"collection":"m","key":"a","jsonText":"{"}}}`, "FIELD_INVALID operations[0].put.entry.json_text"},
		"expect what is no JSON":              {keys, `{"expect":{"collection":"m","key":"a","jsonText":"{"}}`, "FIELD_INVALID operations[0].expect.json_text"},
		"expect nothing at the end":           {three, `{"expect":{"collection":"l","last":{"entries":[{}]}}}`, "FIELD_INVALID operations[0].expect.last.entries[0]"},
		"a name twice":                        {"", `{"setStateJson":"{\"a\":[{\"x\":1,\"x\":2}]}"}`, "FIELD_INVALID operations[0].set_state_json"},
		"halves of characters in names":       {"", `{"setStateJson":"{\"\\ud800\":1,\"\\ud801\":2}"}`, "FIELD_INVALID operations[0].set_state_json"},
		"half of a character in a text":       {"", `{"setFields":{"fieldsJson":{"a":"\"\\udc00\""}}}`, "FIELD_INVALID operations[0].set_fields.fields_json"},
		"a character in two halves":           {"", `{"setFields":{"fieldsJson":{"a":"\"\\ud83d\\ude00\""}}}`, `{"a":"\ud83d\ude00"}`},
		"something behind the JSON":           {"", `{"setStateJson":"{} {}"}`, "FIELD_INVALID operations[0].set_state_json"},
		"no sum that nothing can be added to": {`{"setState":{"n":1e300}}`, `{"increment":{"path":"n","by":1e-200}}`, `EXPECTATION_FAILED 0 n`},
		"put replaces":                        {keys, `{"put":{"entry":{"collection":"m","key":"a","json":{"x":1}}}}`, `{} m/a={"x":1} m/ab="2" m/b="3"`},
		"put keeps":                           {keys, `{"put":{"entry":{"collection":"m","key":"a","text":"9"},"onExists":"ON_EXISTS_KEEP"}},{"put":{"entry":{"collection":"m","key":"c","text":"9"},"onExists":"ON_EXISTS_KEEP"}}`, `{} m/a="1" m/ab="2" m/b="3" m/c="9"`},
		"put fails":                           {keys, `{"setState":{"x":1}},{"put":{"entry":{"collection":"m","key":"a","text":"9"},"onExists":"ON_EXISTS_FAIL"}}`, `ALREADY_EXISTS operations[1]`},
		"put without a key":                   {"", `{"put":{"entry":{"collection":"m","text":"9"}}}`, "FIELD_INVALID operations[0].put.entry"},
		"a number that JSON text keeps":       {"", `{"put":{"entry":{"collection":"m","key":"a","jsonText":" { \"n\" : 12345678901234567890 } "}}}`, `{} m/a={"n":12345678901234567890}`},
		"delete keys":                         {keys, `{"delete":{"collection":"m","keys":["b","no","a","a"]}}`, `{} m/ab="2"`},
		"delete a prefix":                     {keys, `{"delete":{"collection":"m","prefix":"a"}}`, `{} m/b="3"`},
		"delete after":                        {keys, `{"delete":{"collection":"m","after":"a"}}`, `{} m/a="1"`},
		"delete a range":                      {keys, `{"delete":{"collection":"m","after":"a","before":"b"}}`, `{} m/a="1" m/b="3"`},
		"delete all, but of one collection":   {keys + "," + three, `{"delete":{"collection":"m","all":true}}`, `{} l/000000000001=1 l/000000000002=2 l/000000000003=3`},
		"delete some":                         {keys, `{"delete":{"collection":"m","all":true,"limit":2}}`, `{} m/b="3"`},
		"delete more than there are":          {three, `{"delete":{"collection":"l","last":9}}`, `{}`},
		"delete nothing in particular":        {three, `{"delete":{"collection":"l"}}`, "FIELD_INVALID operations[0].delete"},
		"delete in two ways":                  {three, `{"delete":{"collection":"l","last":1,"all":true}}`, "FIELD_INVALID operations[0].delete"},
		"what is expected":                    {deep + "," + keys, `{"expect":{"path":"/a/b/1","json":{"c":2.0}}},{"expect":{"path":"x","absent":true}},{"expect":{"collection":"m","key":"a","text":"1"}},{"expect":{"collection":"m","key":"z","absent":true}},{"emit":"x"}`, `{"a":{"b":[1,{"c":2}]},"n":5} m/a="1" m/ab="2" m/b="3"`},
		"another number":                      {deep, `{"emit":"x"},{"expect":{"path":"n","json":6}}`, "EXPECTATION_FAILED 1 n 5"},
		"a number as text":                    {`{"setState":{"n":100}}`, `{"expect":{"path":"n","jsonText":"1E2"}}`, `{"n":100}`},
		"something where nothing should be":   {deep, `{"expect":{"path":"n","absent":true}}`, "EXPECTATION_FAILED 0 n 5"},
		"nothing where something should be":   {deep, `{"expect":{"path":"x","absent":false}}`, "EXPECTATION_FAILED 0 x"},
		"a text that is JSON":                 {`{"put":{"entry":{"collection":"m","key":"a","text":"1"}}}`, `{"expect":{"collection":"m","key":"a","json":1}}`, "EXPECTATION_FAILED 0 m/a"},
		"the version of an entry":             {keys, `{"expect":{"collection":"m","key":"a","version":"1"}}`, `{} m/a="1" m/ab="2" m/b="3"`},
		"another version":                     {keys, `{"expect":{"collection":"m","key":"a","version":"2"}}`, "EXPECTATION_FAILED 0 m/a"},
		"the last ones":                       {three, `{"expect":{"collection":"l","last":{"entries":[{"json":2},{"json":3}]}}}`, `{} l/000000000001=1 l/000000000002=2 l/000000000003=3`},
		"other last ones":                     {three, `{"expect":{"collection":"l","last":{"entries":[{"json":3},{"json":2}]}}}`, "EXPECTATION_FAILED 0 l"},
		"more last ones than there are":       {three, `{"expect":{"collection":"l","last":{"entries":[{"json":0},{"json":1},{"json":2},{"json":3}]}}}`, "EXPECTATION_FAILED 0 l"},
		"an empty collection":                 {three, `{"expect":{"collection":"o","last":{}}}`, `{} l/000000000001=1 l/000000000002=2 l/000000000003=3`},
		"a collection that is not empty":      {three, `{"expect":{"collection":"l","last":{}}}`, "EXPECTATION_FAILED 0 l"},
		"an expectation without a word":       {"", `{"expect":{"path":"n"}}`, "FIELD_INVALID operations[0].expect"},
		"a path and a collection":             {"", `{"expect":{"path":"n","collection":"l","absent":true}}`, "FIELD_INVALID operations[0].expect.path"},
		"operations see those before":         {"", `{"setState":{"n":1}},{"increment":{"path":"n"}},{"expect":{"path":"n","json":2}},` + three + `,{"delete":{"collection":"l","last":1}},{"expect":{"collection":"l","last":{"entries":[{"json":2}]}}}`, `{"n":2} l/000000000001=1 l/000000000002=2`},
		"a value that is deeper than others":  {"", `{"setFields":{"fieldsJson":{"a":"` + strings.Repeat("[", 65) + strings.Repeat("]", 65) + `"}}}`, "FIELD_INVALID operations[0].set_fields.fields_json"},
		"a path that is too long":             {"", `{"setFields":{"fields":{"` + strings.Repeat("/a", 65) + `":1}}}`, "FIELD_INVALID operations[0].set_fields.fields"},
		"a state that is too large":           {"", `{"setState":{"a":"` + strings.Repeat("x", maxState) + `"}}`, "SIZE_EXCEEDED"},
		"two names for one change":            {"", `{"emit":"a"},{"emit":"b"}`, "FIELD_INVALID operations[1]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, m := &storev1.ObjectState{}, inMemory{}
			if _, err := applied(t, s, m, 1, tt.before); err != nil {
				t.Fatal(err)
			}
			_, err := applied(t, s, m, 2, tt.ops)
			got := holds(s, m)
			if err != nil {
				got = refusal(t, err)
			}
			if got != tt.want && (err == nil || !strings.HasPrefix(got, tt.want)) {
				t.Errorf("got  %.300s\nwant %s", got, tt.want)
			}
		})
	}
}

// refusal is a problem in one line.
func refusal(t *testing.T, err error) string {
	t.Helper()
	p, ok := err.(*problem.Error) //nolint:errorlint // returned as it is
	if !ok {
		t.Fatalf("%v is no problem", err)
	}
	said := problem.Name(p.Reason)
	if v := p.Problem().GetViolations(); v != nil {
		isField(t, v.GetFields()[0].GetField())
		return said + " " + v.GetFields()[0].GetField()
	}
	if e := p.Problem().GetExpectation(); e != nil {
		return strings.TrimSpace(fmt.Sprintf("%s %d %s %s", said, e.GetOperation(), e.GetPath(), e.GetActualJson()))
	}
	return said + " " + p.Message
}

// isField fails where a path leads to no field of a request.
func isField(t *testing.T, path string) {
	t.Helper()
	of := (&statev1.ApplyRequest{}).ProtoReflect().Descriptor()
	for step := range strings.SplitSeq(path, ".") {
		name, _, _ := strings.Cut(step, "[")
		if of == nil || of.Fields().ByName(protoreflect.Name(name)) == nil {
			t.Errorf("%s: there is no such field", path)
			return
		}
		of = of.Fields().ByName(protoreflect.Name(name)).Message()
	}
}

func TestResults(t *testing.T) {
	t.Parallel()
	s, m := &storev1.ObjectState{}, inMemory{}
	got, err := applied(t, s, m, 7, `{"increment":{"path":"n","by":2}},{"increment":{"path":"big","by":9007199254740992}},{"increment":{"path":"big"}},
		{"append":{"collection":"l","text":"a"}},{"append":{"collection":"l","jsonText":"9007199254740993"}},
		{"put":{"entry":{"collection":"l","key":"k","json":{"a":null}}}},{"put":{"entry":{"collection":"l","key":"k","json":1},"onExists":"ON_EXISTS_KEEP"}},
		{"delete":{"collection":"l","last":2,"returnDeleted":true}},{"delete":{"collection":"l","all":true,"limit":1,"returnDeleted":true}},
		{"lease":{"name":"w","holder":"me","duration":"30s"}}`)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`{"number":2}`, `{"number":9007199254740992}`, `{"numberText":"9007199254740993"}`, `{"key":"000000000001"}`, `{"key":"000000000002"}`, `{"put":true}`, `{}`,
		`{"deletedCount":2,"deleted":[{"collection":"l","key":"000000000002","jsonText":"9007199254740993","version":"7"},{"collection":"l","key":"k","json":{"a":null},"version":"7"}]}`,
		`{"deletedCount":1,"deleted":[{"collection":"l","key":"000000000001","text":"a","version":"7"}]}`,
		`{"lease":{"fencingToken":7,"holder":"me","expireTime":"1970-01-01T00:17:17Z","expiresIn":"30s"}}`,
	}
	for i, r := range got {
		is := &statev1.Result{}
		if err := protojson.Unmarshal([]byte(want[i]), is); err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(r, is) {
			t.Errorf("%d: %v, want %s", i, r, want[i])
		}
	}
}

// A worker that has lost its lease changes nothing any more, and no token is given twice.
func TestLeases(t *testing.T) {
	t.Parallel()
	s, m := &storev1.ObjectState{}, inMemory{}
	for i, tt := range []struct {
		version   int64 // and time, in seconds
		ops, want string
	}{
		{1, `{"lease":{"name":"w"}}`, "FIELD_INVALID"},
		{1, `{"lease":{"name":"w","duration":"10s"}}`, "1"},
		{2, `{"lease":{"name":"w","duration":"10s"}}`, "LEASE_HELD"},
		{3, `{"lease":{"name":"w","fencingToken":1}},{"append":{"collection":"l","text":"x"}}`, "1"},
		{4, `{"lease":{"name":"w","fencingToken":9,"duration":"10s"}}`, "FENCED"},
		{5, `{"lease":{"name":"w","fencingToken":1,"duration":"20s"}}`, "1"},
		{24, `{"lease":{"name":"w","duration":"10s"}}`, "LEASE_HELD"},
		{25, `{"lease":{"name":"w","duration":"10s"}}`, "25"},
		{26, `{"lease":{"name":"w","fencingToken":1}},{"append":{"collection":"l","text":"x"}}`, "FENCED"},
		{40, `{"lease":{"name":"w","fencingToken":25,"duration":"10s"}}`, "25"}, // nobody has taken it
		{41, `{"lease":{"name":"w","fencingToken":25,"release":true}}`, ""},
		{42, `{"lease":{"name":"w","fencingToken":25,"duration":"10s"}}`, "FENCED"},
		{43, `{"lease":{"name":"w","duration":"10s"}}`, "43"},
		{44, `{"lease":{"name":"other","duration":"10s"}}`, "44"},
		{45, `{"lease":{"name":"w","fencingToken":44,"duration":"10s"}}`, "FENCED"},
		{46, `{"lease":{"name":"q","duration":"10s"}},{"lease":{"name":"q","duration":"10s"}}`, "LEASE_HELD"},
	} {
		was, had := proto.CloneOf(s), maps.Clone(m)
		r, err := applied(t, s, m, tt.version, tt.ops)
		got := ""
		if err != nil {
			got, _, _ = strings.Cut(refusal(t, err), " ")
			s, m = was, had // as a transaction does
		} else if l := r[0].GetLease(); l != nil {
			got = fmt.Sprint(l.GetFencingToken())
		}
		if got != tt.want {
			t.Errorf("%d: %s: %q, want %q", i, tt.ops, got, tt.want)
		}
	}
	if n := len(m); n != 1 {
		t.Errorf("%d entries were written", n)
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	names := []string{
		"a", "a\x01", "aa", "ab", "b", "ä", "日本", "a/b", "a b", strings.Repeat("n", 39), strings.Repeat("n", 40), strings.Repeat("n", 511) + "x", strings.Repeat("n", 511) + "y",
	}
	slices.Sort(names)
	seen := map[string]string{}
	for _, kind := range []string{"t", "ta"} {
		for _, owner := range []string{"", "a", "t"} {
			last := ""
			for _, name := range names {
				id := string(address{kind, name, identity.User(owner)}.id())
				at := fmt.Sprintf("%q %q %q", kind, owner, name)
				if len(id) > 128 || seen[id] != "" {
					t.Errorf("%s has the id %s, as has %s", at, id, seen[id])
				}
				if seen[id] = at; len(name) < nameBytes && id < last {
					t.Errorf("%s comes before the name before it", at)
				}
				last = id
				for _, prefix := range names {
					if from := (address{kind, prefix, identity.User(owner)}).prefix(); len(prefix) <= nameBytes && strings.HasPrefix(name, prefix) != strings.HasPrefix(id, from) {
						t.Errorf("%s is not found by the prefix %q", at, prefix)
					}
				}
			}
		}
	}
}

func FuzzParts(f *testing.F) {
	f.Add("a", "", "", "ab", false)
	f.Fuzz(func(t *testing.T, prefix, after, before, key string, backward bool) {
		key = strings.ToValidUTF8(key, "")
		p := part{strings.ToValidUTF8(prefix, ""), strings.ToValidUTF8(after, ""), strings.ToValidUTF8(before, ""), backward}
		if key == "" {
			return
		}
		exact, r := p.stored("c")
		k := stored("c", key)
		in := k > r.After && k < r.Before || k == exact
		if in != p.has(key) || exact != "" && !p.has(p.prefix) {
			t.Errorf("%+v has %q: %t; stored as %q %+v: %t", p, key, p.has(key), exact, r, in)
		}
		for _, other := range []string{"b/" + key, "d/" + key, "c0/" + key} {
			if other > r.After && other < r.Before {
				t.Errorf("%+v has %q of another collection", r, other)
			}
		}
	})
}

func TestJSONIsExact(t *testing.T) {
	t.Parallel()
	for text, exact := range map[string]bool{
		`{"a":[1,2.5,"x",null,true]}`: true, `9007199254740992`: true, `9007199254740993`: false, `0.1`: true, `0.10000000000000000001`: false,
		`1e400`: false, `"\ud83d\ude00"`: true, `"😀"`: true, `"\\ud800"`: true,
	} {
		v := valueOf(json.RawMessage(text))
		if (v != nil) != exact {
			t.Errorf("%s: %v", text, v)
		}
	}
}
