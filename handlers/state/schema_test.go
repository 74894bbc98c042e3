package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	statev1 "holdfast/gen/holdfast/state/v1"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	"holdfast/handlers/problem"
)

func schemaOf(t testing.TB, text string) *structpb.Struct {
	t.Helper()
	s := &structpb.Struct{}
	if err := s.UnmarshalJSON([]byte(text)); err != nil {
		t.Fatal(text, err)
	}
	return s
}

// A schema reaches nothing but itself, and checks each value in bounded time, whatever it says.
func TestASchemaThatCannotBeChecked(t *testing.T) {
	t.Parallel()
	doubling := `{"$defs":{"a0":{}`
	for i := 1; i <= 40; i++ {
		doubling += fmt.Sprintf(`,"a%d":{"allOf":[{"$ref":"#/$defs/a%d"},{"$ref":"#/$defs/a%d"}]}`, i, i-1, i-1)
	}
	for name, schema := range map[string]string{
		"another file":           `{"$ref":"file:///etc/passwd"}`,
		"another host":           `{"$ref":"https://example.com/schema"}`,
		"a relative address":     `{"$ref":"other.json"}`,
		"an id of its own":       `{"$id":"https://example.com/a","$ref":"b"}`,
		"an unknown draft":       `{"$schema":"https://example.com/draft"}`,
		"nothing there":          `{"$ref":"#/$defs/a"}`,
		"no type":                `{"type":"text"}`,
		"no schema":              `{"properties":{"a":1}}`,
		"no regular expression":  `{"pattern":"("}`,
		"a backtracking one":     `{"pattern":"(a)\\1"}`,
		"itself":                 `{"$ref":"#"}`,
		"itself, by way of":      `{"$defs":{"a":{"anyOf":[{"$ref":"#/$defs/b"}]},"b":{"not":{"$ref":"#/$defs/a"}}},"$ref":"#/$defs/a"}`,
		"doubling":               doubling + `},"$ref":"#/$defs/a40"}`,
		"doubling at each level": `{"properties":{"a":{"allOf":[{"$ref":"#"},{"$ref":"#"}]}}}`,
		"doubling, by patterns":  `{"patternProperties":{"a":{"$ref":"#"},"b":{"$ref":"#"}}}`,
		"the draft itself":       `{"$ref":"https://json-schema.org/draft/2020-12/schema"}`,
		"dynamic":                `{"$dynamicAnchor":"a","items":{"$dynamicRef":"#a"}}`,
	} {
		_, err := declare(&storev1.TypeState{StateSchema: schemaOf(t, schema)})
		if p, ok := errors.AsType[*problem.Error](err); !ok || p.Reason != errorv1.Reason_REASON_FIELD_INVALID || !strings.HasPrefix(p.Message, "type.state_schema: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, schema := range map[string]string{
		"a tree":       `{"$defs":{"t":{"properties":{"left":{"$ref":"#/$defs/t"},"right":{"$ref":"#/$defs/t"}}}},"$ref":"#/$defs/t"}`,
		"a list of it": `{"properties":{"children":{"items":{"$ref":"#"}}}}`,
		"draft 7":      `{"$schema":"http://json-schema.org/draft-07/schema#","definitions":{"a":{"type":"string"}},"properties":{"a":{"$ref":"#/definitions/a"}}}`,
		"an anchor":    `{"$defs":{"a":{"$anchor":"x"}},"properties":{"a":{"$ref":"#x"}}}`,
		"choices":      `{"oneOf":[{"required":["a"]},{"required":["b"]}],"if":{"required":["a"]},"then":{"required":["c"]}}`,
	} {
		if _, err := declare(&storev1.TypeState{StateSchema: schemaOf(t, schema)}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a check says names the place, and numbers are checked as they are spelt.
func TestACheckNamesThePlace(t *testing.T) {
	t.Parallel()
	d, err := declare(&storev1.TypeState{
		StateSchema: schemaOf(t, `{"required":["a"],"additionalProperties":false,"properties":{"a":{"type":"integer","minimum":9007199254740993},
			"m":{"items":{"properties":{"x/y":{"type":"string"}}}},"f":{"multipleOf":0.1}}}`),
		CollectionSchemas: map[string]*structpb.Struct{"l": schemaOf(t, `{"type":["object","string"],"required":["sku"]}`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for value, want := range map[string]string{
		`{"a":9007199254740993}`:        "",
		`{"a":9007199254740992}`:        "", // the schema's own number is a double
		`{"a":9007199254740991}`:        "state/a",
		`{"a":9007199254740993.0}`:      "",
		`{"a":9007199254740993.5}`:      "state/a",
		`{"a":1e300}`:                   "",
		`{"a":1e999999999}`:             "state",
		`{"a":9e99,"f":0.3}`:            "",
		`{"a":9e99,"f":0.35}`:           "state/f",
		`{}`:                            "state",
		`{"a":9e99,"b":1}`:              "state",
		`{"a":9e99,"m":[{},{"x/y":1}]}`: "state/m/1/x~1y",
		`{"a":null,"m":[{"x/y":1}]}`:    "state/a state/m/0/x~1y",
		`{"a":9e99,"m":[` + strings.Repeat("[", 60) + strings.Repeat("]", 60) + `]}`: "",
	} {
		s := &storev1.ObjectState{Fields: map[string]string{}}
		var members map[string]json.RawMessage
		if err := json.Unmarshal([]byte(value), &members); err != nil {
			t.Fatal(err)
		}
		for k, v := range members {
			s.Fields[k] = string(v)
		}
		if got := wrongFields(d.checkState(s)); !sameFields(got, want) {
			t.Errorf("%s is wrong at %q, want %q", value, got, want)
		}
	}
	for _, tt := range []struct {
		entry *storev1.Entry
		want  string
	}{
		{&storev1.Entry{Value: &storev1.Entry_Json{Json: `{"sku":1}`}}, ""},
		{&storev1.Entry{Value: &storev1.Entry_Json{Json: `"text"`}}, ""},
		{&storev1.Entry{Value: &storev1.Entry_Json{Json: `{}`}}, "entries/l/k"},
		{&storev1.Entry{Value: &storev1.Entry_Text{Text: "text"}}, "entries/l/k"},
		{&storev1.Entry{Value: &storev1.Entry_Data{}}, "entries/l/k"},
	} {
		if got := wrongFields(d.checkEntry("l", "k", tt.entry)); got != tt.want {
			t.Errorf("%v is wrong at %q, want %q", tt.entry, got, tt.want)
		}
		if err := d.checkEntry("other", "k", tt.entry); err != nil {
			t.Errorf("another collection: %v", err)
		}
	}
}

func wrongFields(err error) string {
	var out []string
	if p, ok := errors.AsType[*problem.Error](err); ok {
		v, _ := p.Detail.(*errorv1.Violations)
		for _, f := range v.GetFields() {
			out = append(out, f.GetField())
		}
	}
	return strings.Join(out, " ")
}

// sameFields compares without the order, which is that of maps.
func sameFields(got, want string) bool {
	a, b := strings.Fields(got), strings.Fields(want)
	for _, f := range b {
		if !strings.Contains(" "+got+" ", " "+f+" ") {
			return false
		}
	}
	return len(a) == len(b)
}

// A declaration holds on all servers within moments, for what is written from then on, and its end ends it.
func TestWhatIsDeclaredHolds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service, c, far := b.as(t, nobody), b.as(t, ada), b.another(t).as(t, ada)
	apply := func(c client, ops string) error {
		t.Helper()
		_, err := c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{'ref':{'type':'inv','name':'i'},'operations':[`+ops+`]}`))
		return err
	}
	must(struct{}{}, apply(far, `{'setState':{'total':'free'}},{'append':{'collection':'lines','text':'free'}}`))(t)
	put := func(text string) *statev1.Type {
		t.Helper()
		return must(service.PutType(t.Context(), from(t, &statev1.PutTypeRequest{}, `{'type':{'type':'inv',`+text+`}}`)))(t).GetType()
	}
	const declared = `'stateSchema':{'required':['total'],'properties':{'total':{'type':'number'}}},'collectionSchemas':{'lines':{'required':['sku']}},'ttl':'90000s'`
	if got := put(declared); got.GetVersion() != 1 || got.GetTtl().GetSeconds() != 90000 {
		t.Fatalf("declared: %v", got)
	}
	if got := put(declared); got.GetVersion() != 1 {
		t.Errorf("the same again: %v", got)
	}
	for i := 0; apply(far, fmt.Sprintf(`{'setState':{'total':'%d'}}`, i)) == nil; i++ {
		must(struct{}{}, apply(far, `{'emit':'same'}`))(t) // what is there is not checked
	}
	for ops, want := range map[string]string{
		`{'setState':{'total':'other'}}`:                                      "FIELD_INVALID",
		`{'setFields':{'remove':['total']}}`:                                  "FIELD_INVALID",
		`{'append':{'collection':'lines','json':{}}}`:                         "FIELD_INVALID",
		`{'put':{'entry':{'collection':'lines','key':'k','text':'a'}}}`:       "FIELD_INVALID",
		`{'append':{'collection':'lines','json':{'sku':1}}}`:                  "",
		`{'append':{'collection':'others','text':'free'}}`:                    "",
		`{'setState':{'total':'other'}},{'setFields':{'fields':{'total':1}}}`: "", // as it is in the end
	} {
		for _, c := range []client{c, far} {
			if got := reason(apply(c, ops)); got != want {
				t.Errorf("%s is answered with %q, want %q", ops, got, want)
			}
		}
	}
	if _, err := c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{'ref':{'type':'inv','name':'new'}}`)); reason(err) != "FIELD_INVALID" {
		t.Errorf("an object without a total is made: %v", err)
	}
	c.apply(t, `{'ref':{'type':'inv','name':'new'},'operations':[{'setState':{'total':1}}]}`)
	if o := c.read(t, `{'reads':[{'ref':{'type':'inv','name':'new'}}]}`)[0]; o.GetExpireTime() == nil {
		t.Errorf("it has no ttl: %v", o)
	}
	// The tenant's objects are changed by users where the type says so.
	const shared = `{'ref':{'type':'inv','name':'all','owner':''},'operations':[{'setFields':{'fields':{'total':1}}}]}`
	_, err := c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, shared))
	refused(t, err, "ROLE_REQUIRED")
	put(`'usersChangeShared':true`)
	c.apply(t, shared)
	c.apply(t, `{'ref':{'type':'inv','name':'i'},'operations':[{'setState':{'total':'free'}}]}`)
	_, err = c.PutType(t.Context(), from(t, &statev1.PutTypeRequest{}, `{'type':{'type':'inv'}}`))
	refused(t, err, "ROLE_REQUIRED")
	must(service.DeleteType(t.Context(), from(t, &statev1.DeleteTypeRequest{}, `{'type':'inv'}`)))(t)
	_, err = c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, shared))
	refused(t, err, "ROLE_REQUIRED")
}
