package state

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/anishathalye/porcupine"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	errorv1 "holdfast/gen/holdfast/error/v1"
	statev1 "holdfast/gen/holdfast/state/v1"
)

// Random changes of 1 to 8 objects at once, by way of two servers, come to what maps in memory come to: all of a set or none.
func TestChangesTogetherAreAllOrNone(t *testing.T) {
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
		numbers := make([]int, len(models))
		for i := range numbers {
			numbers[i] = i
		}
		for i := range rapid.IntRange(1, 8).Draw(rt, "calls") {
			set := rapid.Permutation(numbers).Draw(rt, "order")[:rapid.IntRange(1, len(models)).Draw(rt, "objects of the call")]
			c := clients[rapid.IntRange(0, 1).Draw(rt, "server")]
			after, want := map[int]*model{}, map[int][]string{}
			var changes []string
			refused := -1
			for at, n := range set {
				m := models[n].clone()
				condition := ""
				switch rapid.IntRange(0, 19).Draw(rt, "if_version") {
				case 0:
					condition = `"ifVersion":"99",`
				case 1, 2, 3:
					condition = fmt.Sprintf(`"ifVersion":"%d",`, m.version)
				}
				no := strings.Contains(condition, "99")
				ops := []string{`{"emit":"changed"}`} // it is a version, whatever else it does
				want[n] = []string{""}
				for range rapid.IntRange(0, 2).Draw(rt, "operations") {
					op, result, stop := m.step(rt)
					ops, want[n], no = append(ops, op), append(want[n], result), no || stop
					if stop {
						break
					}
				}
				if no && refused < 0 {
					refused = at
				}
				m.version, m.there, after[n] = m.version+1, true, m
				changes = append(changes, fmt.Sprintf(`{%s"ref":{"type":"model","name":"%d/%d"},"operations":[%s]}`, condition, round, n, strings.Join(ops, ",")))
			}
			body := `{"changes":[` + strings.Join(changes, ",") + `]`
			if rapid.Bool().Draw(rt, "request id") {
				body += fmt.Sprintf(`,"requestId":"%d-%d"`, round, i)
			}
			body += "}"
			got, err := c.ApplyTogether(t.Context(), from(t, &statev1.ApplyTogetherRequest{}, body))
			if refused >= 0 {
				if r := reason(err); r != "EXPECTATION_FAILED" && r != "ALREADY_EXISTS" && r != "VERSION_MISMATCH" {
					rt.Fatalf("%s is not refused: %v, %v", body, got, err)
				}
				if r := reason(err); r != "VERSION_MISMATCH" && !strings.Contains(err.Error(), fmt.Sprintf("changes[%d]", refused)) {
					rt.Fatalf("%s does not say which change it refuses, %d: %v", body, refused, err)
				}
				continue
			}
			if err != nil {
				rt.Fatalf("%s: %v", body, err)
			}
			for at, n := range set {
				res := got.GetChanges()[at]
				if res.GetCreated() == models[n].there || int(res.GetVersion()) != after[n].version {
					rt.Fatalf("%s: change %d came to %v, want version %d", body, at, res, after[n].version)
				}
				for j, w := range want[n] {
					if is := said(w, res.GetResults()[j]); is != w {
						rt.Fatalf("%s: result %d of change %d is %s, want %s", body, j, at, is, w)
					}
				}
				models[n] = after[n]
			}
			if strings.Contains(body, "requestId") {
				if again, err := clients[i%2].ApplyTogether(t.Context(), from(t, &statev1.ApplyTogetherRequest{}, body)); err != nil || !proto.Equal(again, got) {
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
				m, is := models[n], map[string]string{}
				for _, e := range o.GetPages()[0].GetEntries() {
					is[e.GetKey()] = e.GetText()
				}
				if o.GetAbsent() == m.there || int(o.GetVersion()) != m.version || int(o.GetState().GetFields()["n"].GetNumberValue()) != m.n || !maps.Equal(is, m.entries) {
					rt.Fatalf("object %d is %v, want %+v", n, o, m)
				}
			}
		}
	})
}

// versions are those of up to 8 objects; each call changes a set of them, or reads all.
type versions [8]int64

// counters are what a history of calls on sets of objects must be explained by: one order for all of them together.
func counters() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return versions{} },
		Step: func(state, input, output any) (bool, any) {
			is, out := state.(versions), output.(versions)
			set, changes := input.([]int)
			if !changes {
				return out == is, is
			}
			told := versions{}
			for _, n := range set {
				is[n]++
				told[n] = is[n]
			}
			return out == told, is
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprint(input, " -> ", output) },
	}
}

// What clients of two servers are told of overlapping sets, in any order, has one order for all objects: no set is seen in part.
func TestSetsOfObjectsHaveOneOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	servers := []*bundle{b, b.another(t)}
	const clients, each = 6, 20
	objects := 2 + rand.IntN(7)
	ref := func(n int) *statev1.Ref { return &statev1.Ref{Type: "counter", Name: fmt.Sprint(n)} }
	all := &statev1.ReadRequest{}
	for n := range objects {
		all.Reads = append(all.Reads, &statev1.ReadOne{Ref: ref(n)})
	}
	start := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	var working sync.WaitGroup
	for i := range clients {
		c := servers[i%2].as(t, ada)
		working.Go(func() {
			for range each {
				var in any
				var out versions
				begun := int64(time.Since(start))
				if rand.IntN(3) == 0 {
					res, err := c.Read(t.Context(), all)
					if err != nil {
						t.Error(err)
						return
					}
					for n, o := range res.GetObjects() {
						out[n] = o.GetVersion()
					}
				} else {
					set := rand.Perm(objects)[:1+rand.IntN(objects)]
					req := &statev1.ApplyTogetherRequest{}
					for _, n := range set {
						op := &statev1.Operation{Operation: &statev1.Operation_Increment{Increment: &statev1.Increment{Path: "n"}}}
						req.Changes = append(req.Changes, &statev1.ApplyRequest{Ref: ref(n), Operations: []*statev1.Operation{op}})
					}
					res, err := c.ApplyTogether(t.Context(), req)
					if err != nil {
						t.Error(err)
						return
					}
					for at, n := range set {
						out[n] = res.GetChanges()[at].GetVersion()
					}
					in = set
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: i, Input: in, Call: begun, Output: out, Return: int64(time.Since(start))})
				mu.Unlock()
			}
		})
	}
	working.Wait()
	if got := porcupine.CheckOperationsTimeout(counters(), history, time.Minute); got != porcupine.Ok {
		t.Errorf("of %d calls about %d objects no order explains the answers (%s)", len(history), objects, got)
	}
	// The checker sees a set that was read in part.
	part := []porcupine.Operation{
		{Input: []int{0, 1}, Output: versions{1, 1}, Call: 1, Return: 4}, {ClientId: 1, Input: nil, Output: versions{1, 0}, Call: 2, Return: 3},
	}
	if porcupine.CheckOperations(counters(), part) {
		t.Error("the checker accepts a part of a set")
	}
}

func TestARefusalNamesTheChange(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, service := b.as(t, ada), b.as(t, nobody)
	c.apply(t, `{'ref':{'type':'a','name':'1'},'operations':[{'setState':{'n':1}}]}`)
	must(service.PutType(t.Context(), from(t, &statev1.PutTypeRequest{}, `{'type':{'type':'strict','stateSchema':{'required':['x']}}}`)))(t)
	const fine = `{'ref':{'type':'a','name':'1'},'operations':[{'increment':{'path':'n'}}]},`
	for name, tt := range map[string]struct{ change, reason, in string }{
		"an operation":            {`{'ref':{'type':'a','name':'2'},'operations':[{'emit':'x'},{'expect':{'path':'n','json':7}}]}`, "EXPECTATION_FAILED", "changes[1]: operations[1]"},
		"a field":                 {`{'ref':{'type':'a','name':'2'},'operations':[{'append':{'collection':'l','key':'k','text':'t'}}]}`, "FIELD_INVALID", "changes[1].operations[0].append.key"},
		"a schema":                {`{'ref':{'type':'strict','name':'2'},'operations':[{'setState':{'y':1}}]}`, "FIELD_INVALID", "changes[1].state"},
		"what is not there":       {`{'ref':{'type':'a','name':'none'},'mustExist':true}`, "NOT_FOUND", "changes[1]"},
		"a version":               {`{'ref':{'type':'a','name':'2'},'ifVersion':'3'}`, "VERSION_MISMATCH", "a/2"},
		"the same object":         {`{'ref':{'type':'a','name':'1','owner':'ada'}}`, "FIELD_INVALID", "changes[1].ref"},
		"a request id of its own": {`{'requestId':'r','ref':{'type':'a','name':'2'}}`, "FIELD_INVALID", "changes[1].request_id"},
		"the whole tenant's":      {`{'ref':{'type':'a','name':'2','owner':''}}`, "ROLE_REQUIRED", "changes[1]"},
		"another user's":          {`{'ref':{'type':'a','name':'2','owner':'eve'}}`, "ROLE_REQUIRED", ""},
		"two ways to be kept":     {`{'ref':{'type':'a','name':'2'},'ttl':'90000s','keepForever':true}`, "FIELD_INVALID", "changes[1].ttl"},
	} {
		_, err := c.ApplyTogether(t.Context(), from(t, &statev1.ApplyTogetherRequest{}, `{'changes':[`+fine+tt.change+`]}`))
		refused(t, err, tt.reason)
		e, ok := errors.AsType[*connect.Error](err)
		if !ok {
			continue
		}
		first, _ := e.Details()[0].Value()
		p, _ := first.(*errorv1.Problem)
		if where := append(p.GetViolations().GetFields(), &errorv1.Violation{Field: e.Message()})[0].GetField(); !strings.HasPrefix(where, tt.in) {
			t.Errorf("%s: %q does not begin with %s", name, where, tt.in)
		}
		if tt.reason == "EXPECTATION_FAILED" && !proto.Equal(p.GetExpectation(), &errorv1.Expectation{Change: 1, Operation: 1, Path: "n"}) {
			t.Errorf("%s: %v", name, p)
		}
	}
	o := c.read(t, `{'reads':[{'ref':{'type':'a','name':'1'}},{'ref':{'type':'a','name':'2'}}]}`)
	if o[0].GetVersion() != 1 || !o[1].GetAbsent() {
		t.Errorf("what was refused has changed something: %v", o)
	}
	for name, body := range map[string]string{"none": `{}`, "nine": `{'changes':[` + strings.Repeat(`{'ref':{'type':'a','name':'1'}},`, 8) + `{'ref':{'type':'a','name':'1'}}]}`} {
		if _, err := c.ApplyTogether(t.Context(), from(t, &statev1.ApplyTogetherRequest{}, body)); reason(err) != "FIELD_INVALID" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
