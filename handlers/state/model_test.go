package state

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	statev1 "holdfast/gen/holdfast/state/v1"
)

// model is what an object is, in the simplest form.
type model struct {
	version int
	there   bool
	n       int
	counted bool              // n is there
	entries map[string]string // of the collection l
	last    int               // the number of the last appended entry
}

func (m *model) clone() *model {
	c := *m
	c.entries = maps.Clone(m.entries)
	return &c
}

func (m *model) keys() []string { return slices.Sorted(maps.Keys(m.entries)) }

// step makes one operation on the model. It returns the operation in JSON, what its result says, and whether the change is refused.
func (m *model) step(t *rapid.T) (op, result string, refused bool) {
	key := rapid.SampledFrom([]string{"a", "b", "ab", "000000000002", "000000000009"})
	value := fmt.Sprint(rapid.IntRange(0, 9).Draw(t, "value"))
	switch rapid.IntRange(0, 9).Draw(t, "operation") {
	case 0:
		by := rapid.IntRange(-3, 3).Draw(t, "by")
		m.n, m.counted = m.n+by, true
		return fmt.Sprintf(`{"increment":{"path":"n","by":%d}}`, by), fmt.Sprintf("number %d", m.n), false
	case 1, 2, 3:
		m.last++
		k := fmt.Sprintf("%012d", m.last)
		m.entries[k] = value
		return `{"append":{"collection":"l","text":"` + value + `"}}`, "key " + k, false
	case 4:
		k := key.Draw(t, "key")
		on := rapid.SampledFrom([]string{"REPLACE", "KEEP", "FAIL"}).Draw(t, "on")
		_, there := m.entries[k]
		op = `{"put":{"entry":{"collection":"l","key":"` + k + `","text":"` + value + `"},"onExists":"ON_EXISTS_` + on + `"}}`
		if there && on != "REPLACE" {
			return op, "put false", on == "FAIL"
		}
		m.entries[k] = value
		if k[0] == '0' {
			m.last = max(m.last, int(k[11]-'0'))
		}
		return op, "put true", false
	case 5:
		n := rapid.IntRange(1, 3).Draw(t, "last")
		keys := m.keys()
		return fmt.Sprintf(`{"delete":{"collection":"l","last":%d,"returnDeleted":true}}`, n), m.drop(keys[max(0, len(keys)-n):]), false
	case 6:
		prefix := rapid.SampledFrom([]string{"a", "0", "00000000000", "x"}).Draw(t, "prefix")
		return `{"delete":{"collection":"l","prefix":"` + prefix + `","returnDeleted":true}}`,
			m.drop(slices.DeleteFunc(m.keys(), func(k string) bool { return !strings.HasPrefix(k, prefix) })), false
	case 7:
		k := key.Draw(t, "key")
		return `{"delete":{"collection":"l","after":"` + k + `","returnDeleted":true}}`,
			m.drop(slices.DeleteFunc(m.keys(), func(other string) bool { return other <= k })), false
	case 8:
		want := rapid.IntRange(-1, 1).Draw(t, "want")
		return fmt.Sprintf(`{"expect":{"path":"n","json":%d}}`, want), "", !m.counted || m.n != want
	default:
		keys := m.keys()
		n := min(len(keys), rapid.IntRange(0, 2).Draw(t, "last"))
		if rapid.Bool().Draw(t, "right") {
			var last []string
			for _, k := range keys[len(keys)-n:] {
				last = append(last, `{"key":"`+k+`","text":"`+m.entries[k]+`"}`)
			}
			return `{"expect":{"collection":"l","last":{"entries":[` + strings.Join(last, ",") + `]}}}`, "", n == 0 && len(keys) > 0
		}
		return `{"expect":{"collection":"l","key":"a","text":"` + value + `"}}`, "", m.entries["a"] != value
	}
}

func (m *model) drop(keys []string) string {
	var gone []string
	for _, k := range keys {
		gone = append(gone, k+"="+m.entries[k])
		delete(m.entries, k)
	}
	return fmt.Sprint("deleted ", gone)
}

// said is a result in the model's words, which show whose it is.
func said(want string, r *statev1.Result) string {
	kind, _, _ := strings.Cut(want, " ")
	switch kind {
	case "number":
		return fmt.Sprintf("number %v", r.GetNumber())
	case "key":
		return "key " + r.GetKey()
	case "put":
		return fmt.Sprintf("put %t", r.GetPut())
	case "deleted":
		var gone []string
		for _, e := range r.GetDeleted() {
			gone = append(gone, e.GetKey()+"="+e.GetText())
		}
		return fmt.Sprint("deleted ", gone)
	}
	return ""
}

// Random changes of up to 8 objects, by way of two servers, come to what a map in memory comes to.
func TestObjectsAreWhatTheirChangesComeTo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	clients := []client{b.as(t, ada), b.another(t).as(t, ada)}
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		models := make([]*model, rapid.IntRange(1, 8).Draw(rt, "objects"))
		for i := range models {
			models[i] = &model{entries: map[string]string{}}
		}
		for i := range rapid.IntRange(1, 15).Draw(rt, "changes") {
			n := rapid.IntRange(0, len(models)-1).Draw(rt, "object")
			c := clients[rapid.IntRange(0, 1).Draw(rt, "server")]
			ref := fmt.Sprintf(`"ref":{"type":"model","name":"%d/%d"}`, round, n)
			m := models[n].clone()
			if rapid.IntRange(0, 9).Draw(rt, "delete") == 0 {
				got, err := c.DeleteState(t.Context(), from(t, &statev1.DeleteStateRequest{}, `{`+ref+`}`))
				if err != nil || got.GetExisted() != m.there {
					rt.Fatalf("delete: %v, %v", got, err)
				}
				if m.there {
					models[n] = &model{version: m.version + 1, entries: map[string]string{}}
				}
				continue
			}
			was := fmt.Sprint(m.counted, m.n, m.entries, m.last)
			var ops, want []string
			refused, writes := false, false
			for range rapid.IntRange(0, 4).Draw(rt, "operations") {
				op, result, no := m.step(rt)
				ops, want = append(ops, op), append(want, result)
				writes = writes || strings.HasPrefix(result, "put true") || strings.HasPrefix(result, "key") || strings.HasPrefix(result, "deleted [0") ||
					strings.HasPrefix(result, "deleted [a") || strings.HasPrefix(result, "deleted [b") || strings.HasPrefix(result, "number")
				if refused = no; refused {
					break
				}
			}
			request := ""
			if rapid.Bool().Draw(rt, "request id") {
				request = fmt.Sprintf(`"requestId":"%d-%d",`, round, i)
			}
			body := `{` + request + ref + `,"operations":[` + strings.Join(ops, ",") + `]}`
			got, err := c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, body))
			if refused {
				if r := reason(err); r != "EXPECTATION_FAILED" && r != "ALREADY_EXISTS" {
					rt.Fatalf("%s is not refused: %v, %v", body, got, err)
				}
				continue
			}
			if err != nil {
				rt.Fatalf("%s: %v", body, err)
			}
			if got.GetCreated() == m.there {
				rt.Fatalf("%s: created is %t", body, got.GetCreated())
			}
			if quiet := m.there && request == "" && !writes && was == fmt.Sprint(m.counted, m.n, m.entries, m.last); !quiet {
				m.version++
			} else if int(got.GetVersion()) != m.version {
				rt.Fatalf("%s changes nothing, and makes version %d", body, got.GetVersion())
			}
			// An increment by 0 of what is there changes nothing either; the server says which version there is.
			if v := int(got.GetVersion()); v != m.version && v != m.version-1 {
				rt.Fatalf("%s: version %d, want %d", body, v, m.version)
			}
			m.version, m.there = int(got.GetVersion()), true
			for j, w := range want {
				if is := said(w, got.GetResults()[j]); is != w {
					rt.Fatalf("%s: result %d is %s, want %s", body, j, is, w)
				}
			}
			models[n] = m
			if request != "" {
				if again, err := clients[i%2].Apply(t.Context(), from(t, &statev1.ApplyRequest{}, body)); err != nil || again.String() != got.String() {
					rt.Fatalf("a retry of %s: %v, %v", body, again, err)
				}
			}
		}
		var reads []string
		for n := range models {
			reads = append(reads, fmt.Sprintf(`{"ref":{"type":"model","name":"%d/%d"},"queries":[{"collection":"l","limit":200}]}`, round, n))
		}
		for _, c := range clients {
			for n, o := range c.read(t, `{"reads":[`+strings.Join(reads, ",")+`]}`) {
				m := models[n]
				is := map[string]string{}
				for _, e := range o.GetPages()[0].GetEntries() {
					is[e.GetKey()] = e.GetText()
				}
				if o.GetAbsent() == m.there || m.there && int(o.GetVersion()) != m.version || int(o.GetState().GetFields()["n"].GetNumberValue()) != m.n || !maps.Equal(is, m.entries) {
					text, _ := json.Marshal(is)
					rt.Fatalf("object %d is %v %s, want %+v", n, o, text, m)
				}
			}
		}
	})
}
