package state

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	errorv1 "holdfast/gen/holdfast/error/v1"
	statev1 "holdfast/gen/holdfast/state/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
)

// watcher is what a client has of one item, by the one rule.
type watcher struct {
	item   string // in JSON, without its id and cursor
	things map[string]*watchv1.Thing
	absent bool
	ended  *errorv1.Problem
	cursor string
	resets int

	stream *connect.ServerStreamForClient[watchv1.WatchResponse]
	cancel context.CancelFunc
}

// connect follows the item from where the watcher is.
func (w *watcher) connect(t *testing.T, c client) *watcher {
	t.Helper()
	w.close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	w.cancel = cancel
	w.stream = must(c.Watch(ctx, from(t, &watchv1.WatchRequest{}, `{'maxBytes':65536,'items':[{'itemId':'i','cursor':'`+w.cursor+`',`+w.item+`}]}`)))(t)
	t.Cleanup(w.close)
	return w
}

func (w *watcher) close() {
	if w.stream != nil {
		w.cancel()
		_ = w.stream.Close()
	}
}

// next merges a message.
func (w *watcher) next(t *testing.T) *watchv1.Changed {
	t.Helper()
	m := &watchv1.WatchResponse{}
	for more := true; more; more = m.GetHeartbeat() != nil {
		if !w.stream.Receive() {
			t.Fatalf("the stream ended with %v", w.stream.Err())
		}
		m = w.stream.Msg()
	}
	w.cursor = cmp.Or(m.GetCursor(), w.cursor)
	w.ended = m.GetEnded().GetProblem()
	change := m.GetChanged()
	if change == nil {
		return nil
	}
	if change.GetReset_() {
		w.things = map[string]*watchv1.Thing{}
		w.resets++
	}
	w.absent = change.GetAbsent()
	for _, thing := range change.GetPut() {
		w.things[thing.GetKey()] = thing
	}
	for _, key := range change.GetRemoved() {
		delete(w.things, key)
	}
	return change
}

// until reads until the watcher has these things.
func (w *watcher) until(t *testing.T, want map[string]*watchv1.Thing) {
	t.Helper()
	equal := func(a, b *watchv1.Thing) bool { return proto.Equal(a, b) }
	for w.things == nil || w.absent != (len(want) == 0) || !maps.EqualFunc(w.things, want, equal) {
		if w.next(t); w.ended != nil {
			t.Fatalf("it ended with %v", w.ended)
		}
	}
}

// keys are those of the things that the watcher has, when the next message is merged as a whole.
func (w *watcher) keys(t *testing.T) string {
	t.Helper()
	for w.next(t).GetMore() {
	}
	return strings.Join(slices.Sorted(maps.Keys(w.things)), " ")
}

// served is what the server has of an object with its collection l, as a watcher has it.
func served(t *testing.T, c client, ref string) map[string]*watchv1.Thing {
	t.Helper()
	o := c.read(t, `{'reads':[{'ref':`+ref+`,'queries':[{'collection':'l','limit':200}]}]}`)[0]
	if o.GetAbsent() {
		return nil
	}
	want := map[string]*watchv1.Thing{}
	for _, e := range o.GetPages()[0].GetEntries() {
		want["entries/l/"+e.GetKey()] = &watchv1.Thing{Key: "entries/l/" + e.GetKey(), Thing: &watchv1.Thing_Entry{Entry: e}}
	}
	o.Pages = nil
	want["object"] = &watchv1.Thing{Key: "object", Thing: &watchv1.Thing_Object{Object: o}}
	return want
}

// Whatever is changed on two servers, and wherever the watcher connects again, it comes to have what the server has.
func TestAWatcherHasWhatTheServerHas(t *testing.T) {
	t.Parallel()
	b := setup(t)
	clients := []client{b.as(t, ada), b.another(t).as(t, ada)}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	const ref = `{'type':'model','name':'a/b'}`
	w := (&watcher{item: `'state':{'ref':` + ref + `,'collections':[{'collection':'l','limit':200}]}`}).connect(t, clients[0])
	w.until(t, nil)
	keys := []string{"a", "b/c", "é", "000000000003"}
	for range 150 {
		c := clients[random.IntN(2)]
		collection := []string{"l", "l", "m"}[random.IntN(3)]
		key := keys[random.IntN(len(keys))]
		op := ""
		switch n := random.IntN(14); n {
		case 0:
			must(c.DeleteState(t.Context(), from(t, &statev1.DeleteStateRequest{}, `{'ref':`+ref+`}`)))(t)
		case 1, 2:
			w.connect(t, c)
		case 3:
			for range random.IntN(3) {
				w.until(t, served(t, c, ref))
			}
		case 4:
			op = `{'increment':{'path':'n'}}`
		case 5:
			op = `{'delete':{'collection':'` + collection + `','last':2}}`
		case 6:
			op = `{'delete':{'collection':'` + collection + `','keys':['` + key + `']}}`
		case 7: // in pieces
			text := strings.Repeat("x", 30_000)
			op = strings.TrimSuffix(strings.Repeat(`{'append':{'collection':'`+collection+`','text':'`+text+`'}},`, 1+random.IntN(4)), ",")
		case 8, 9, 10:
			op = `{'append':{'collection':'` + collection + `','json':{'n':` + fmt.Sprint(random.IntN(9)) + `}}}`
		default:
			op = `{'put':{'entry':{'collection':'` + collection + `','key':'` + key + `','data':'AAE='}}},{'increment':{'path':'n'}}`
		}
		if op != "" {
			c.apply(t, `{'ref':`+ref+`,'operations':[`+op+`]}`)
		}
	}
	w.until(t, served(t, clients[0], ref))
}

// What one Apply changes comes in one piece, also while the watcher begins.
func TestAWatcherSeesTogetherWhatWasChangedTogether(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c, other := b.as(t, ada), b.another(t).as(t, ada)
	const changes = 120
	done := make(chan error, 1)
	go func() {
		for range changes {
			_, err := other.Apply(t.Context(), &statev1.ApplyRequest{Ref: &statev1.Ref{Type: "model", Name: "a"}, Operations: []*statev1.Operation{
				{Operation: &statev1.Operation_Increment{Increment: &statev1.Increment{Path: "n"}}},
				{Operation: &statev1.Operation_Append{Append: &statev1.Entry{Collection: "l", Value: &statev1.Entry_Text{Text: "x"}}}},
			}})
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	const item = `'state':{'ref':{'type':'model','name':'a'},'collections':[{'collection':'l','limit':200}]}`
	w := (&watcher{item: item}).connect(t, c)
	version := int64(0)
	for n, i := 0, 0; n < changes; i++ {
		change := w.next(t)
		if change == nil || change.GetMore() || change.GetAbsent() {
			continue
		}
		if n = int(w.things["object"].GetObject().GetState().GetFields()["n"].GetNumberValue()); n != len(w.things)-1 {
			t.Fatalf("%d entries come with a count of %d", len(w.things)-1, n)
		}
		if change.GetVersion() <= version && !change.GetReset_() {
			t.Fatalf("version %d comes after %d", change.GetVersion(), version)
		}
		version = change.GetVersion()
		switch i % 5 {
		case 4:
			version = 0
			w.close()
			w = (&watcher{item: item}).connect(t, []client{c, other}[i%2])
		case 2:
			w.connect(t, []client{c, other}[i%2])
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestAWatcherBeginsWithTheEntriesThatItAskedFor(t *testing.T) {
	t.Parallel()
	c := setup(t).as(t, ada)
	c.apply(t, `{'ref':{'type':'t','name':'a'},'operations':[{'append':{'collection':'l','json':1}},{'append':{'collection':'l','json':2}},
		{'append':{'collection':'l','json':3}},{'append':{'collection':'la','json':1}}]}`)
	// The newest of all are of another collection, and more than the runtime keeps at hand.
	var more []string
	for range 60 {
		more = append(more, `{'append':{'collection':'z','json':1}}`)
	}
	c.apply(t, `{'ref':{'type':'t','name':'a'},'operations':[`+strings.Join(more, ",")+`]}`)
	of := func(collections string) *watcher {
		return (&watcher{item: `'state':{'ref':{'type':'t','name':'a'},'collections':[` + collections + `]}`}).connect(t, c)
	}
	for collections, want := range map[string]string{
		``:                                "object",
		`{'collection':'l'}`:              "object",
		`{'collection':'none','limit':5}`: "object",
		`{'collection':'l','limit':2}`:    "entries/l/000000000002 entries/l/000000000003 object",
		`{'collection':'l','limit':1},{'collection':'la','limit':9},{'collection':'z','limit':2}`: "entries/l/000000000003 entries/la/000000000001 " +
			"entries/z/000000000059 entries/z/000000000060 object",
	} {
		if got := of(collections).keys(t); got != want {
			t.Errorf("with %s it begins with %s", collections, got)
		}
	}
	w := of(`{'collection':'l'}`)
	w.keys(t)
	c.apply(t, `{'ref':{'type':'t','name':'a'},'operations':[{'append':{'collection':'l','json':4}},{'append':{'collection':'z','json':4}},{'delete':{'collection':'l','keys':['000000000001']}}]}`)
	change := w.next(t)
	if len(change.GetPut()) != 2 || change.GetPut()[1].GetKey() != "entries/l/000000000004" || !slices.Equal(change.GetRemoved(), []string{"entries/l/000000000001"}) {
		t.Errorf("a change of more than it follows is %v", change)
	}
}

func TestAWatcherSeesItsOwnNames(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a, e, service := b.as(t, ada), b.as(t, eve), b.as(t, nobody)
	a.apply(t, `{'ref':{'type':'t','name':'a'},'operations':[{'append':{'collection':'l','json':1}}]}`)
	const collections = `,'collections':[{'collection':'l','limit':9}]}`
	of := func(c client, owner string) *watcher {
		return (&watcher{item: `'state':{'ref':{'type':'t','name':'a'` + owner + `}` + collections}).connect(t, c)
	}
	hers, eves, tenants, seen := of(a, ""), of(e, ""), of(e, `,'owner':''`), of(service, `,'owner':'ada'`)
	for name, w := range map[string]*watcher{"eve": eves, "of the tenant's, eve": tenants} {
		if got := w.keys(t); !w.absent || got != "" {
			t.Errorf("%s sees %s", name, got)
		}
	}
	for name, w := range map[string]*watcher{"ada": hers, "a service": seen} {
		if got := w.keys(t); got != "entries/l/000000000001 object" {
			t.Errorf("%s sees %q", name, got)
		}
	}
	denied := of(e, `,'owner':'ada'`)
	if denied.next(t); denied.ended.GetReason() != "ROLE_REQUIRED" {
		t.Errorf("of another user's it sees %v", denied)
	}
	// Each object of the name comes to the one that watches it.
	e.apply(t, `{'ref':{'type':'t','name':'a'},'operations':[{'append':{'collection':'l','json':2}},{'append':{'collection':'l','json':2}}]}`)
	service.apply(t, `{'ref':{'type':'t','name':'a'},'operations':[{'setState':{}}]}`)
	if got := eves.keys(t); got != "entries/l/000000000001 entries/l/000000000002 object" {
		t.Errorf("eve sees %q", got)
	}
	if got := tenants.keys(t); got != "object" {
		t.Errorf("of the tenant's eve sees %q", got)
	}
}

// A list has each object by its owner and name, and follows what comes, changes and goes.
func TestAListOfObjectsIsFollowed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	a, service := b.as(t, ada), b.as(t, nobody)
	w := (&watcher{item: `'list':{'states':{'type':'t','namePrefix':'a','labels':{'k':'v'}}}`}).connect(t, a)
	listed := func() map[string]*watchv1.Thing {
		want := map[string]*watchv1.Thing{}
		req := from(t, &statev1.ListStatesRequest{}, `{'filter':{'type':'t','namePrefix':'a','labels':{'k':'v'}}}`)
		for _, o := range must(a.ListStates(t.Context(), req))(t).GetObjects() {
			key := "objects/" + string(address{"t", o.GetRef().GetName(), ada}.id())
			if o.GetOwner() == "" {
				key = "objects/" + string(address{"t", o.GetRef().GetName(), nobody}.id())
			}
			want[key] = &watchv1.Thing{Key: key, Thing: &watchv1.Thing_Object{Object: o}}
		}
		return want
	}
	until := func(n int) {
		t.Helper()
		want := listed()
		if len(want) != n {
			t.Fatalf("the list has %v", want)
		}
		for w.absent = n == 0; w.things == nil || len(w.things) != n; {
			w.next(t)
		}
		if n > 0 {
			w.until(t, want)
		}
	}
	until(0)
	a.apply(t, `{'ref':{'type':'t','name':'a1'},'labels':{'k':'v'}}`)
	service.apply(t, `{'ref':{'type':'t','name':'a1'},'labels':{'k':'v'}}`)
	a.apply(t, `{'ref':{'type':'t','name':'a2'},'labels':{'k':'w'}}`)
	a.apply(t, `{'ref':{'type':'t','name':'b'},'labels':{'k':'v'}}`)
	until(2)
	a.apply(t, `{'ref':{'type':'t','name':'a1'},'operations':[{'setState':{'n':1}}]}`)
	until(2)
	must(a.DeleteState(t.Context(), from(t, &statev1.DeleteStateRequest{}, `{'ref':{'type':'t','name':'a1'}}`)))(t)
	until(1)
}
