package state

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	statev1 "holdfast/gen/holdfast/state/v1"
)

// asked is a call as the checker sees it: an append of a text, a pop of the last entry where there is one, or a read.
type asked struct{ object, kind, text string }

// told is its answer: what there is after it, or what was popped, and the version.
type told struct {
	text    string
	version int64
}

// lists are objects with a list of texts: what a history of calls must be explained by.
func lists() porcupine.Model {
	type list struct {
		entries string // each followed by a blank
		version int64
	}
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) (out [][]porcupine.Operation) {
			by := map[string][]porcupine.Operation{}
			for _, op := range history {
				name := op.Input.(asked).object
				by[name] = append(by[name], op)
			}
			for _, ops := range by {
				out = append(out, ops)
			}
			return out
		},
		Init: func() any { return list{} },
		Step: func(state, input, output any) (bool, any) {
			l, in, out := state.(list), input.(asked), output.(told)
			switch in.kind {
			case "read":
				return out == told{l.entries, l.version}, l
			case "append":
				l = list{l.entries + in.text + " ", l.version + 1}
				return out.version == l.version, l
			}
			rest, last := "", ""
			if all := strings.Fields(l.entries); len(all) > 0 {
				last = all[len(all)-1]
				rest = strings.TrimSuffix(l.entries, last+" ")
				l.version++
			} else if l.version == 0 { // it is made
				l.version++
			}
			l.entries = rest
			return out == told{last, l.version}, l
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
	}
}

// What many clients of two servers are told, of 1 to 8 objects, has one order that explains it.
func TestWhatClientsAreToldHasAnOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	servers := []*bundle{b, b.another(t)}
	const clients, each = 6, 30
	objects := 1 + rand.IntN(8)
	start := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	var working sync.WaitGroup
	for i := range clients {
		c := servers[i%2].as(t, ada)
		working.Go(func() {
			for n := range each {
				in := asked{fmt.Sprint(rand.IntN(objects)), []string{"append", "append", "pop", "read"}[rand.IntN(4)], fmt.Sprintf("%d.%d", i, n)}
				ref := &statev1.Ref{Type: "list", Name: in.object}
				out, from := told{}, int64(time.Since(start))
				if in.kind == "read" {
					res, err := c.Read(t.Context(), &statev1.ReadRequest{Reads: []*statev1.ReadOne{{Ref: ref, Queries: []*statev1.Query{{Collection: "l", Limit: 200}}}}})
					if err != nil {
						t.Errorf("read: %v", err)
						return
					}
					out.version = res.GetObjects()[0].GetVersion()
					for _, page := range res.GetObjects()[0].GetPages() {
						for _, e := range page.GetEntries() {
							out.text += e.GetText() + " "
						}
					}
				} else {
					op := &statev1.Operation{Operation: &statev1.Operation_Append{Append: &statev1.Entry{Collection: "l", Value: &statev1.Entry_Text{Text: in.text}}}}
					if in.kind == "pop" {
						op = &statev1.Operation{Operation: &statev1.Operation_Delete{Delete: &statev1.DeleteEntries{Collection: "l", Last: 1, ReturnDeleted: true}}}
					}
					res, err := c.Apply(t.Context(), &statev1.ApplyRequest{Ref: ref, Operations: []*statev1.Operation{op}})
					if err != nil {
						t.Errorf("%s: %v", in.kind, err)
						return
					}
					out.version = res.GetVersion()
					for _, e := range res.GetResults()[0].GetDeleted() {
						out.text = e.GetText()
					}
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: i, Input: in, Call: from, Output: out, Return: int64(time.Since(start))})
				mu.Unlock()
			}
		})
	}
	working.Wait()
	if got := porcupine.CheckOperationsTimeout(lists(), history, time.Minute); got != porcupine.Ok {
		t.Errorf("of %d calls about %d objects no order explains the answers (%s)", len(history), objects, got)
	}
	// The checker sees a lost update.
	lost := []porcupine.Operation{
		{Input: asked{"a", "append", "x"}, Output: told{"", 1}, Call: 1, Return: 4}, {ClientId: 1, Input: asked{"a", "append", "y"}, Output: told{"", 1}, Call: 2, Return: 3},
	}
	if porcupine.CheckOperations(lists(), lost) {
		t.Error("the checker accepts a lost update")
	}
}
