package state

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	statev1 "holdfast/gen/holdfast/state/v1"
)

// Whatever happens to entries, a query by a label has those that have it, in the order of their keys and in pages.
func TestEntriesAreReadByTheirLabels(t *testing.T) {
	t.Parallel()
	b := setup(t)
	clients := []client{b.as(t, ada), b.another(t).as(t, ada)}
	labels := []string{"role", "role/x"}
	values := []string{"user", "user/a", "a%2Fb", "=", "日本"}
	keys := rapid.SampledFrom([]string{"a", "b", "a/b", "user/a", "ab", "000000000002"})
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		name, last := fmt.Sprint(round), 0
		entries := map[string]map[string]string{}
		for range rapid.IntRange(1, 4).Draw(rt, "changes") {
			var ops []string
			for range rapid.IntRange(1, 5).Draw(rt, "operations") {
				has := map[string]string{}
				var said []string
				for _, l := range labels {
					if rapid.Bool().Draw(rt, "labelled") {
						has[l] = rapid.SampledFrom(values).Draw(rt, "value")
						said = append(said, fmt.Sprintf("%q:%q", l, has[l]))
					}
				}
				key := keys.Draw(rt, "key")
				switch rapid.IntRange(0, 7).Draw(rt, "operation") {
				case 0, 1:
					last++
					entries[fmt.Sprintf("%012d", last)] = has
					ops = append(ops, `{"append":{"collection":"l","text":"t","labels":{`+strings.Join(said, ",")+`}}}`)
				case 2, 3, 4:
					if entries[key] = has; key[0] == '0' {
						last = max(last, 2)
					}
					ops = append(ops, fmt.Sprintf(`{"put":{"entry":{"collection":"l","key":%q,"text":"t","labels":{%s}}}}`, key, strings.Join(said, ",")))
				case 5:
					delete(entries, key)
					ops = append(ops, fmt.Sprintf(`{"delete":{"collection":"l","keys":[%q]}}`, key))
				case 6:
					maps.DeleteFunc(entries, func(k string, _ map[string]string) bool { return strings.HasPrefix(k, "a") })
					ops = append(ops, `{"delete":{"collection":"l","prefix":"a"}}`)
				default:
					ops = append(ops, fmt.Sprintf(`{"put":{"entry":{"collection":"other","key":%q,"text":"t","labels":{"role":"user"}}}}`, key))
				}
			}
			clients[rapid.IntRange(0, 1).Draw(rt, "server")].apply(t, `{"ref":{"type":"list","name":"`+name+`"},"operations":[`+strings.Join(ops, ",")+`]}`)
		}
		read := &statev1.ReadOne{Ref: &statev1.Ref{Type: "list", Name: name}}
		var want [][]string
		for _, l := range labels {
			for _, v := range values {
				q := &statev1.Query{Collection: "l", Label: &statev1.Label{Key: l, Value: v}, Limit: 200, Reverse: rapid.Bool().Draw(rt, "reverse")}
				if rapid.Bool().Draw(rt, "bounded") {
					q.Prefix, q.After = rapid.SampledFrom([]string{"", "a", "user/a"}).Draw(rt, "prefix"), rapid.SampledFrom([]string{"", "a", "000000000001"}).Draw(rt, "after")
					q.Before = rapid.SampledFrom([]string{"", "b", "ab"}).Draw(rt, "before")
				}
				var is []string
				for _, key := range slices.Sorted(maps.Keys(entries)) {
					if entries[key][l] == v && (part{prefix: q.GetPrefix(), after: q.GetAfter(), before: q.GetBefore()}).has(key) {
						is = append(is, key)
					}
				}
				if q.GetReverse() {
					slices.Reverse(is)
				}
				if rapid.IntRange(0, 3).Draw(rt, "limited") == 0 {
					q.Limit = 2
					is = append(is[:min(len(is), 2)], fmt.Sprint("more: ", len(is) > 2))
				}
				read.Queries, want = append(read.Queries, q), append(want, is)
			}
		}
		res, err := clients[rapid.IntRange(0, 1).Draw(rt, "reader")].Read(t.Context(), &statev1.ReadRequest{Reads: []*statev1.ReadOne{read}})
		if err != nil {
			rt.Fatal(err)
		}
		for i, page := range res.GetObjects()[0].GetPages() {
			var is []string
			for _, e := range page.GetEntries() {
				is = append(is, e.GetKey())
				if !maps.Equal(e.GetLabels(), entries[e.GetKey()]) {
					rt.Fatalf("%s has the labels %v, want %v", e.GetKey(), e.GetLabels(), entries[e.GetKey()])
				}
			}
			if read.GetQueries()[i].GetLimit() == 2 {
				is = append(is, fmt.Sprint("more: ", page.GetMore()))
			}
			if !slices.Equal(is, want[i]) {
				rt.Fatalf("%v has %q, want %q of %v", read.GetQueries()[i], is, want[i], entries)
			}
		}
	})
}

// A fork that ends after a key, and a restored version, have the labels of their entries and no others; nobody is told of the index.
func TestLabelsFollowTheirEntries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.as(t, ada)
	const byRole = `'queries':[{'collection':'l','label':{'key':'role','value':'user'}},{'collection':'l'}]`
	keysOf := func(name string) (out []string) {
		t.Helper()
		for _, page := range c.read(t, `{'reads':[{'ref':{'type':'list','name':'`+name+`'},`+byRole+`}]}`)[0].GetPages() {
			out = append(out, "|")
			for _, e := range page.GetEntries() {
				out = append(out, e.GetKey()[len(e.GetKey())-1:])
			}
		}
		return out
	}
	const add = `{'append':{'collection':'l','text':'t','labels':{'role':'user'}}},{'append':{'collection':'l','text':'t'}}`
	c.apply(t, `{'ref':{'type':'list','name':'1'},'operations':[`+add+`,`+add+`]}`)
	c.apply(t, `{'ref':{'type':'list','name':'1'},'operations':[{'delete':{'collection':'l','all':true}}]}`)
	for name, fork := range map[string]string{"2": `'atVersion':'1'`, "3": `'atVersion':'1','through':{'collection':'l','key':'000000000002'}`, "4": `'atVersion':'2'`} {
		must(c.ForkState(t.Context(), from(t, &statev1.ForkStateRequest{}, `{'ref':{'type':'list','name':'1'},'newRef':{'type':'list','name':'`+name+`'},`+fork+`}`)))(t)
	}
	for name, want := range map[string]string{"1": "[| |]", "2": "[| 1 3 | 1 2 3 4]", "3": "[| 1 | 1 2]", "4": "[| |]"} {
		if got := fmt.Sprint(keysOf(name)); got != want {
			t.Errorf("%s has %s, want %s", name, got, want)
		}
	}
	for name, entry := range map[string]string{
		"an empty value": `'labels':{'a':''}`, "a key with an equals sign": `'labels':{'a=b':'c'}`, "nine": `'labels':{'1':'a','2':'a','3':'a','4':'a','5':'a','6':'a','7':'a','8':'a','9':'a'}`,
	} {
		_, err := c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, `{'ref':{'type':'list','name':'1'},'operations':[{'append':{'collection':'l','text':'t',`+entry+`}}]}`))
		if reason(err) != "FIELD_INVALID" {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := c.Read(t.Context(), from(t, &statev1.ReadRequest{}, `{'reads':[{'ref':{'type':'list','name':'1'},'queries':[{'collection':'l','keys':['a'],'label':{'key':'a','value':'b'}}]}]}`))
	refused(t, err, "FIELD_INVALID")
}

// The last entries of a collection are the same whether what is at hand has them, has some of them, or has those of other collections.
func TestTheLastEntriesAreThoseOfTheirCollection(t *testing.T) {
	t.Parallel()
	b := setup(t)
	warm, cold := b.as(t, ada), b.another(t).as(t, ada)
	entries := map[string]int{}
	for round, add := range []map[string]int{{"m": 3}, {"m": 30}, {"z": 1}, {"z": 30}, {"a": 5}, {"m": 1}} {
		for collection, n := range add {
			entries[collection] += n
			op := `{'append':{'collection':'` + collection + `','text':'t'}}`
			warm.apply(t, `{'ref':{'type':'list','name':'1'},'operations':[`+op+strings.Repeat(`,`+op, n-1)+`]}`)
		}
		for _, collection := range []string{"a", "m", "z", "zz"} {
			for _, limit := range []int{1, 3, 5, 20, 21} {
				for _, c := range []client{warm, cold, cold} {
					page := c.read(t, fmt.Sprintf(`{'reads':[{'ref':{'type':'list','name':'1'},'queries':[{'collection':'%s','reverse':true,'limit':%d}]}]}`, collection, limit))[0].GetPages()[0]
					var is, want []string
					for _, e := range page.GetEntries() {
						is = append(is, e.GetKey())
					}
					for n := entries[collection]; n > max(0, entries[collection]-limit); n-- {
						want = append(want, fmt.Sprintf("%012d", n))
					}
					if more := entries[collection] > limit; !slices.Equal(is, want) || page.GetMore() != more {
						t.Errorf("round %d: the last %d of %s are %v, more: %t; want %v, %t", round, limit, collection, is, page.GetMore(), want, more)
					}
				}
			}
		}
	}
	if page := warm.read(t, `{'reads':[{'ref':{'type':'list','name':'none'},'queries':[{'collection':'m','reverse':true,'limit':2}]}]}`)[0]; !page.GetAbsent() || len(page.GetPages()) != 1 {
		t.Errorf("an absent object is %v", page)
	}
}
