package state

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	statev1 "holdfast/gen/holdfast/state/v1"
	"holdfast/object"
)

const cart = `'ref':{'type':'cart','name':'Ada’s 買い物'}`

func TestAnObjectIsMadeChangedReadAndDeleted(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.as(t, ada)
	read := `{'reads':[{` + cart + `,'queries':[{'collection':'items'}]}]}`
	if o := c.read(t, read)[0]; !o.GetAbsent() || o.GetVersion() != 0 {
		t.Errorf("before it was made: %v", o)
	}
	first := c.apply(t, `{`+cart+`,'requestId':'r','labels':{'shop':'books'},'operations':[{'setState':{'n':1}},{'append':{'collection':'items','json':{'sku':'a'}}}]}`)
	if first.GetVersion() != 1 || !first.GetCreated() || first.GetResults()[1].GetKey() != "000000000001" {
		t.Errorf("made: %v", first)
	}
	again := c.apply(t, `{`+cart+`,'requestId':'r','labels':{'shop':'books'},'operations':[{'setState':{'n':1}},{'append':{'collection':'items','json':{'sku':'a'}}}]}`)
	if again.String() != first.String() {
		t.Errorf("a retry: %v", again)
	}
	if r := c.apply(t, `{`+cart+`,'operations':[{'expect':{'path':'n','json':1}}]}`); r.GetVersion() != 1 {
		t.Errorf("what changes nothing makes a version: %v", r)
	}
	o := c.read(t, read)[0]
	if o.GetAbsent() || o.GetState().GetFields()["n"].GetNumberValue() != 1 || o.GetLabels()["shop"] != "books" || o.GetOwner() != "ada" ||
		len(o.GetPages()[0].GetEntries()) != 1 || o.GetExpireTime() != nil || o.GetRef().GetName() != "Ada’s 買い物" {
		t.Errorf("read: %v", o)
	}
	if o := c.read(t, `{'reads':[{`+cart+`,'ifVersionNot':'1'}]}`)[0]; !o.GetNotModified() || o.GetState() != nil {
		t.Errorf("not modified: %v", o)
	}
	_, err := c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{`+cart+`,'ifVersion':'0'}`))
	refused(t, err, "VERSION_MISMATCH")
	_, err = c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{'ref':{'type':'cart','name':'no'},'mustExist':true}`))
	refused(t, err, "NOT_FOUND")
	_, err = c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{`+cart+`,'operations':[{'setState':{}},{'expect':{'path':'n','json':1}}]}`))
	refused(t, err, "EXPECTATION_FAILED")
	if got := must(c.DeleteState(t.Context(), from(t, &statev1.DeleteStateRequest{}, `{`+cart+`}`)))(t); !got.GetExisted() || got.GetVersion() != 2 {
		t.Errorf("deleted: %v", got)
	}
	if got := must(c.DeleteState(t.Context(), from(t, &statev1.DeleteStateRequest{}, `{`+cart+`}`)))(t); got.GetExisted() {
		t.Errorf("deleted again: %v", got)
	}
	if o := c.read(t, read)[0]; !o.GetAbsent() || len(o.GetPages()[0].GetEntries()) != 0 {
		t.Errorf("after it was deleted: %v", o)
	}
	// The next life knows no request ids of the last, and none of its entries.
	if r := c.apply(t, `{`+cart+`,'requestId':'r','operations':[{'append':{'collection':'items','text':'b'}}]}`); r.GetVersion() != 3 || !r.GetCreated() {
		t.Errorf("made again: %v", r)
	}
	if o := c.read(t, read)[0]; len(o.GetPages()[0].GetEntries()) != 1 || o.GetPages()[0].GetEntries()[0].GetText() != "b" {
		t.Errorf("the next life: %v", o)
	}
}

func TestValuesComeBackAsTheyWere(t *testing.T) {
	t.Parallel()
	c := setup(t).as(t, ada)
	large := strings.Repeat(`"<&>é`, maxValue/6)
	req := from(t, &statev1.ApplyRequest{}, `{`+cart+`,'operations':[{'setState':{'a':0.1}}]}`)
	req.Operations[0] = &statev1.Operation{Operation: &statev1.Operation_SetStateJson{SetStateJson: `{"id":12345678901234567890,"s":"\"\u0001\\u0000"}`}}
	for i, e := range []*statev1.Entry{
		{Value: &statev1.Entry_Text{Text: large}},
		{Value: &statev1.Entry_Data{Data: []byte(strings.Repeat("\x00\xff", maxValue/2))}},
		{Value: &statev1.Entry_JsonText{JsonText: `[1.10, 12345678901234567890]`}},
		{Value: &statev1.Entry_Text{}},
		{Value: &statev1.Entry_Data{}},
	} {
		e.Collection, e.Key = "v", fmt.Sprint(i)
		req.Operations = append(req.Operations, &statev1.Operation{Operation: &statev1.Operation_Put{Put: &statev1.Put{Entry: e}}})
	}
	must(c.Apply(t.Context(), req))(t)
	var entries []*statev1.Entry
	after := ""
	for {
		o := c.read(t, `{'reads':[{`+cart+`,'queries':[{'collection':'v','after':'`+after+`'}]}]}`)[0]
		if o.GetStateJson() != `{"id":12345678901234567890,"s":"\"\u0001\\u0000"}` || o.GetState() != nil {
			t.Errorf("the state is %v %s", o.GetState(), o.GetStateJson())
		}
		p := o.GetPages()[0]
		entries = append(entries, p.GetEntries()...)
		if !p.GetMore() {
			break
		}
		after = entries[len(entries)-1].GetKey()
	}
	if len(entries) != 5 || entries[0].GetText() != large || len(entries[1].GetData()) != maxValue || entries[2].GetJsonText() != `[1.10,12345678901234567890]` {
		t.Errorf("%d entries came back, or others", len(entries))
	}
	_, text := entries[3].GetValue().(*statev1.Entry_Text)
	_, data := entries[4].GetValue().(*statev1.Entry_Data)
	if !text || !data {
		t.Errorf("what is empty: %v, %v", entries[3], entries[4])
	}
	_, err := c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{`+cart+`,'operations':[{'setState':{'n':9007199254740992}}]}`))
	if err != nil {
		t.Error(err)
	}
}

// No text has U+0000, however the JSON that it comes in is spelt and sent.
func TestNoJSONHoldsNUL(t *testing.T) {
	t.Parallel()
	c := setup(t).as(t, ada)
	for _, value := range []string{`"\u0000"`, `["a",{"b":"x\u0000"}]`, `{"\u0000":1}`, `{"a":{"b\u0000":[]}}`, `"\\\u0000"`} {
		for _, op := range []*statev1.Operation{
			{Operation: &statev1.Operation_SetStateJson{SetStateJson: `{"a":` + value + `}`}},
			{Operation: &statev1.Operation_SetFields{SetFields: &statev1.SetFields{FieldsJson: map[string]string{"a": value}}}},
			{Operation: &statev1.Operation_Append{Append: &statev1.Entry{Collection: "l", Value: &statev1.Entry_JsonText{JsonText: value}}}},
			{Operation: &statev1.Operation_Expect{Expect: &statev1.Expect{Path: "a", Expected: &statev1.Expect_JsonText{JsonText: value}}}},
		} {
			req := from(t, &statev1.ApplyRequest{}, `{`+cart+`}`)
			req.Operations = []*statev1.Operation{op}
			_, err := c.Apply(t.Context(), req)
			refused(t, err, "FIELD_INVALID")
		}
	}
}

func TestQueries(t *testing.T) {
	t.Parallel()
	c := setup(t).as(t, ada)
	var ops []string
	for _, collection := range []string{"a", "b", "c"} {
		for _, key := range []string{"k", "k/1", "k/2", "k1", "l", "\U0010FFFF"} {
			ops = append(ops, fmt.Sprintf(`{'put':{'entry':{'collection':'%s','key':'%s','text':'%s'}}}`, collection, key, key))
		}
	}
	c.apply(t, `{`+cart+`,'operations':[`+strings.Join(ops, ",")+`]}`)
	for query, want := range map[string]string{
		``:                                      "k k/1 k/2 k1 l \U0010FFFF",
		`'reverse':true`:                        "\U0010FFFF l k1 k/2 k/1 k",
		`'limit':2`:                             "k k/1 …",
		`'limit':6`:                             "k k/1 k/2 k1 l \U0010FFFF",
		`'reverse':true,'limit':2`:              "\U0010FFFF l …",
		`'prefix':'k'`:                          "k k/1 k/2 k1",
		`'prefix':'k/'`:                         "k/1 k/2",
		`'prefix':'k','reverse':true`:           "k1 k/2 k/1 k",
		`'prefix':'k','reverse':true,'limit':3`: "k1 k/2 k/1 …",
		`'prefix':'k','after':'k'`:              "k/1 k/2 k1",
		`'prefix':'k','after':'k/1','before':'k1'`: "k/2",
		`'prefix':'k','before':'k/1'`:              "k",
		`'prefix':'` + "\U0010FFFF" + `'`:          "\U0010FFFF",
		`'after':'l'`:                              "\U0010FFFF",
		`'before':'k/1'`:                           "k",
		`'before':'k'`:                             "",
		`'prefix':'x'`:                             "",
		`'keys':['l','no','k','k']`:                "k l",
		`'keys':['l','k'],'reverse':true`:          "l k",
	} {
		if query != "" {
			query = "," + query
		}
		p := c.read(t, `{'reads':[{`+cart+`,'withoutState':true,'queries':[{'collection':'b'`+query+`}]}]}`)[0].GetPages()[0]
		var got []string
		for _, e := range p.GetEntries() {
			if e.GetCollection() != "b" || e.GetText() != e.GetKey() {
				t.Errorf("%s: %v", query, e)
			}
			got = append(got, e.GetKey())
		}
		if p.GetMore() {
			got = append(got, "…")
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

// Two users have objects of one name, and a service meets those of whom it names.
func TestNamesAreTheUsersOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a, e, s := b.as(t, ada), b.as(t, eve), b.as(t, nobody)
	for i, c := range []client{a, e, s} {
		if r := c.apply(t, fmt.Sprintf(`{'ref':{'type':'note','name':'n'},'operations':[{'setState':{'by':%d}}]}`, i)); !r.GetCreated() {
			t.Errorf("%d meets another's: %v", i, r)
		}
	}
	for text, want := range map[string]float64{
		`{'type':'note','name':'n','owner':'ada'}`: 0, `{'type':'note','name':'n','owner':'eve'}`: 1, `{'type':'note','name':'n'}`: 2, `{'type':'note','name':'n','owner':''}`: 2,
	} {
		if got := s.read(t, `{'reads':[{'ref':`+text+`}]}`)[0].GetState().GetFields()["by"].GetNumberValue(); got != want {
			t.Errorf("a service reads %v of %s", got, text)
		}
	}
	if got := a.read(t, `{'reads':[{'ref':{'type':'note','name':'n','owner':''}}]}`)[0]; got.GetState().GetFields()["by"].GetNumberValue() != 2 {
		t.Errorf("the tenant's: %v", got)
	}
	// What a service makes for a user is the user's.
	s.apply(t, `{'ref':{'type':'note','name':'made','owner':'ada'},'operations':[{'setState':{'by':7}}]}`)
	if got := a.read(t, `{'reads':[{'ref':{'type':'note','name':'made'}}]}`)[0]; got.GetOwner() != "ada" || got.GetState().GetFields()["by"].GetNumberValue() != 7 {
		t.Errorf("made by a service: %v", got)
	}
	for _, err := range []error{
		second(a.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{'ref':{'type':'note','name':'n','owner':'eve'}}`))),
		second(a.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{'ref':{'type':'note','name':'n','owner':''}}`))),
		second(a.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{'ref':{'type':'note','name':'new','owner':''}}`))),
		second(a.Read(t.Context(), from(t, &statev1.ReadRequest{}, `{'reads':[{'ref':{'type':'note','name':'n','owner':'eve'}}]}`))),
		second(a.DeleteState(t.Context(), from(t, &statev1.DeleteStateRequest{}, `{'ref':{'type':'note','name':'n','owner':''}}`))),
		second(a.ListStates(t.Context(), from(t, &statev1.ListStatesRequest{}, `{'filter':{'type':'note','owner':'eve'}}`))),
		second(a.ForkState(t.Context(), from(t, &statev1.ForkStateRequest{}, `{'ref':{'type':'note','name':'n'},'newRef':{'type':'note','name':'n2','owner':'eve'}}`))),
	} {
		refused(t, err, "ROLE_REQUIRED")
	}
}

func second[R any](_ R, err error) error { return err }

func TestLists(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a, s := b.as(t, ada), b.as(t, nobody)
	long := strings.Repeat("long", 12)
	for i, name := range []string{"b", "a", "a/2", "a/1", "ä", long + "1", long + "2"} {
		a.apply(t, fmt.Sprintf(`{'ref':{'type':'note','name':'%s'},'labels':{'odd':'%d'}}`, name, i%2))
	}
	a.apply(t, `{'ref':{'type':'notes','name':'other'}}`)
	b.as(t, eve).apply(t, `{'ref':{'type':'note','name':'hers'}}`)
	s.apply(t, `{'ref':{'type':'note','name':'shared'}}`)
	for _, tt := range []struct {
		by           client
		filter, want string
		byName       bool
	}{
		{a, `'type':'note'`, "a a/1 a/2 b " + long + "1 " + long + "2 shared ä", false},
		{a, `'type':'note'`, "a a/1 a/2 b " + long + "1 " + long + "2 ä", true},
		{a, `'type':'note','owner':'ada','labels':{'odd':'1'}`, "a a/1 " + long + "1", false},
		{a, `'type':'note','labels':{'odd':'1'}`, "a a/1 " + long + "1", true},
		{a, `'type':'note','namePrefix':'a/'`, "a/1 a/2", true},
		{a, `'type':'note','namePrefix':'a/'`, "a/1 a/2", false},
		{a, `'type':'note','namePrefix':'` + long + `2'`, long + "2", true},
		{a, `'type':'note','namePrefix':'` + long + `'`, long + "1 " + long + "2", false},
		{a, `'type':'note','owner':''`, "shared", true},
		{a, `'type':'note','owner':''`, "shared", false},
		{a, `'type':'no'`, "", false},
		{s, `'type':'note'`, "shared", true},
		{s, `'type':'note','namePrefix':'h'`, "hers", false},
		{s, `'type':'note','owner':'eve'`, "hers", true},
		{s, `'type':'note','owner':'eve'`, "hers", false},
	} {
		var got []string
		token := ""
		for pages := 0; ; pages++ {
			res := must(tt.by.ListStates(t.Context(), from(t, &statev1.ListStatesRequest{},
				fmt.Sprintf(`{'filter':{%s},'byName':%t,'pageSize':2,'pageToken':'%s'}`, tt.filter, tt.byName, token))))(t)
			for _, o := range res.GetObjects() {
				got = append(got, o.GetRef().GetName())
			}
			if token = res.GetNextPageToken(); token == "" || pages > 20 {
				break
			}
		}
		if tt.byName {
			for i := 1; i < len(got); i++ {
				if x, y := got[i-1], got[i]; x[:min(len(x), nameBytes)] > y[:min(len(y), nameBytes)] {
					t.Errorf("%s by name: %q", tt.filter, got)
				}
			}
		}
		if slices.Sort(got); strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %q, want %q", tt.filter, got, tt.want)
		}
	}
}

func TestForks(t *testing.T) {
	t.Parallel()
	c := setup(t).as(t, ada)
	for i := range 4 {
		c.apply(t, fmt.Sprintf(`{`+cart+`,'labels':{'a':'b'},'operations':[{'setState':{'n':%d}},{'append':{'collection':'items','json':%d}},{'append':{'collection':'other','json':1}},
			{'lease':{'name':'w%d','duration':'60s'}}]}`, i, i, i))
	}
	fork := func(text string) *statev1.Object {
		return must(c.ForkState(t.Context(), from(t, &statev1.ForkStateRequest{}, `{`+cart+`,`+text+`}`)))(t).GetObject()
	}
	o := fork(`'newRef':{'type':'cart','name':'1'},'atVersion':'2','labels':{'a':'','x':'y'}`)
	if o.GetVersion() != 1 || o.GetState().GetFields()["n"].GetNumberValue() != 1 || len(o.GetLabels()) != 1 || len(o.GetLeases()) != 0 || o.GetRef().GetName() != "1" {
		t.Errorf("at a version: %v", o)
	}
	fork(`'newRef':{'type':'cart','name':'2'},'through':{'collection':'items','key':'000000000003'},'requestId':'f'`)
	fork(`'newRef':{'type':'cart','name':'2'},'through':{'collection':'items','key':'000000000003'},'requestId':'f'`)
	c.apply(t, `{'ref':{'type':'cart','name':'2'},'operations':[{'append':{'collection':'items','json':9}}]}`)
	for i, want := range []string{"1:2,2", "2:4,4"} {
		name, sizes, _ := strings.Cut(want, ":")
		o := c.read(t, `{'reads':[{'ref':{'type':'cart','name':'`+name+`'},'queries':[{'collection':'items'},{'collection':'other'}]}]}`)[0]
		if got := fmt.Sprintf("%d,%d", len(o.GetPages()[0].GetEntries()), len(o.GetPages()[1].GetEntries())); got != sizes {
			t.Errorf("%d: %s entries, want %s", i, got, sizes)
		}
	}
	_, err := c.ForkState(t.Context(), from(t, &statev1.ForkStateRequest{}, `{`+cart+`,'newRef':{'type':'cart','name':'2'}}`))
	refused(t, err, "ALREADY_EXISTS")
	_, err = c.ForkState(t.Context(), from(t, &statev1.ForkStateRequest{}, `{'ref':{'type':'cart','name':'no'},'newRef':{'type':'cart','name':'3'}}`))
	refused(t, err, "NOT_FOUND")
	_, err = c.ForkState(t.Context(), from(t, &statev1.ForkStateRequest{}, `{`+cart+`,'atVersion':'99','newRef':{'type':'cart','name':'3'}}`))
	refused(t, err, "FIELD_INVALID")
}

// However many take the last entry at once, each gets another.
func TestEveryEntryIsPoppedOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	clients := []client{b.as(t, ada), b.another(t).as(t, ada)}
	var ops []string
	for i := range 20 {
		ops = append(ops, fmt.Sprintf(`{'append':{'collection':'items','json':%d}}`, i))
	}
	clients[0].apply(t, `{`+cart+`,'operations':[`+strings.Join(ops, ",")+`]}`)
	var wait sync.WaitGroup
	var mu sync.Mutex
	seen, none := map[string]bool{}, 0
	for i := range 25 {
		wait.Go(func() {
			r, err := clients[i%2].Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{`+cart+`,'operations':[{'delete':{'collection':'items','last':1,'returnDeleted':true}}]}`))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				t.Error(err)
			case len(r.GetResults()[0].GetDeleted()) == 0:
				none++
			default:
				seen[r.GetResults()[0].GetDeleted()[0].GetKey()] = true
			}
		})
	}
	wait.Wait()
	if len(seen) != 20 || none != 5 {
		t.Errorf("%d entries were popped, and %d pops found none", len(seen), none)
	}
}

// A token of an earlier life, and of what was restored since, is no longer good.
func TestALeaseOfAnEarlierLifeIsWorthNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.as(t, ada)
	take := func() int32 {
		t.Helper()
		return c.apply(t, `{`+cart+`,'operations':[{'lease':{'name':'w','duration':'600s'}}]}`).GetResults()[0].GetLease().GetFencingToken()
	}
	id := address{"cart", "Ada’s 買い物", ada}.id()
	tokens := []int32{take()}
	for _, next := range []func(){
		func() { must(c.DeleteState(t.Context(), from(t, &statev1.DeleteStateRequest{}, `{`+cart+`}`)))(t) },
		func() {
			c.apply(t, `{`+cart+`,'operations':[{'setState':{'a':1}}]}`)
			ctx := b.As(t, ada)
			if err := b.kind.Restore(ctx, id, object.Moment{Version: 3}, func(p *object.Past, opts ...object.UpdateOption) error {
				_, err := b.kind.Update(ctx, id, func(tx *object.Tx[state]) error { return tx.Become(p) }, opts...)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		next()
		for _, old := range tokens {
			_, err := c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, fmt.Sprintf(`{`+cart+`,'operations':[{'lease':{'name':'w','fencingToken':%d}}]}`, old)))
			refused(t, err, "FENCED")
		}
		token := take()
		if token <= tokens[len(tokens)-1] {
			t.Errorf("the token %d follows %v", token, tokens)
		}
		tokens = append(tokens, token)
	}
}

// An object that is at another version is named as the caller named it.
func TestAMismatchNamesTheObject(t *testing.T) {
	t.Parallel()
	c := setup(t).as(t, ada)
	c.apply(t, `{`+cart+`}`)
	_, applied := c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{`+cart+`,'ifVersion':'7'}`))
	_, deleted := c.DeleteState(t.Context(), from(t, &statev1.DeleteStateRequest{}, `{`+cart+`,'ifVersion':'7'}`))
	_, forked := c.ForkState(t.Context(), from(t, &statev1.ForkStateRequest{}, `{`+cart+`,'newRef':{'type':'cart','name':'Ada’s 買い物 2'},'ifVersion':'7'}`))
	for rpc, err := range map[string]error{"Apply": applied, "DeleteState": deleted, "ForkState": forked} {
		refused(t, err, "VERSION_MISMATCH")
		if !strings.Contains(err.Error(), " cart/Ada’s 買い物") {
			t.Errorf("%s: %v", rpc, err)
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	c := setup(t).as(t, ada)
	ops := func(n int, of string) string { return strings.TrimSuffix(strings.Repeat(of+",", n), ",") }
	c.apply(t, `{`+cart+`,'operations':[`+ops(1000, `{'append':{'collection':'items','json':1}}`)+`]}`)
	c.apply(t, `{`+cart+`,'operations':[`+ops(1, `{'append':{'collection':'items','json':1}}`)+`]}`)
	for text, want := range map[string]string{
		ops(1001, `{'emit':'x'}`):                                                                         "FIELD_INVALID",
		`{'delete':{'collection':'items','all':true}}`:                                                    "SIZE_EXCEEDED",
		`{'put':{'entry':{'collection':'Items','key':'k','text':''}}}`:                                    "FIELD_INVALID",
		`{'put':{'entry':{'collection':'i','key':'` + strings.Repeat("k", 513) + `','text':''}}}`:         "FIELD_INVALID",
		`{'put':{'entry':{'collection':'i','key':'k','text':'` + strings.Repeat("x", maxValue+1) + `'}}}`: "FIELD_INVALID",
		`{'setFields':{'fields':{'a':'` + strings.Repeat("x", maxState) + `'}}}`:                          "SIZE_EXCEEDED",
		`{}`: "FIELD_INVALID",
	} {
		_, err := c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{`+cart+`,'operations':[`+text+`]}`))
		if reason(err) != want {
			t.Errorf("%.100s: %v, want %s", text, err, want)
		}
	}
	left := 1001
	for more := true; more; {
		r := c.apply(t, `{`+cart+`,'operations':[{'delete':{'collection':'items','all':true,'limit':400}}]}`).GetResults()[0]
		more = r.GetMore()
		left -= int(r.GetDeletedCount())
	}
	if left != 0 {
		t.Errorf("%d entries are left", left)
	}
	r := c.apply(t, `{`+cart+`,'ttl':'86400s'}`)
	o := c.read(t, `{'reads':[{`+cart+`}]}`)[0]
	if d := o.GetExpireTime().AsTime().Sub(o.GetUpdateTime().AsTime()); d < 24*time.Hour || d > 26*time.Hour || r.GetVersion() != o.GetVersion() {
		t.Errorf("it is kept for %v", d)
	}
	c.apply(t, `{`+cart+`,'keepForever':true}`)
	if o := c.read(t, `{'reads':[{`+cart+`}]}`)[0]; o.GetExpireTime() != nil {
		t.Errorf("it expires at %v", o.GetExpireTime())
	}
	_, err := c.Apply(t.Context(), &statev1.ApplyRequest{Ref: &statev1.Ref{Type: "cart", Name: "c"}, Ttl: durationpb.New(time.Second)})
	refused(t, err, "FIELD_INVALID")
}
