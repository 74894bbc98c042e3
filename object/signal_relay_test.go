package object_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/identity"
	"holdfast/object"
	"holdfast/object/natshints"
	"holdfast/seal"
)

func newBox(t testing.TB) *seal.Box {
	t.Helper()
	box, err := seal.NewBox(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	return box
}

// heard is what a watcher is given: "v3" for a version, "word" for a signal.
func heard(t testing.TB, ctx context.Context, k *object.Kind[toy], id object.ID) <-chan string {
	t.Helper()
	out := make(chan string, 1000)
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for c, err := range k.Watch(ctx, id, 0, 0) {
			switch {
			case err != nil:
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			case c.Signal != nil:
				out <- c.Signal.(*typepb.EnumValue).GetName()
			case !c.Heartbeat:
				out <- fmt.Sprint("v", c.Version)
			}
		}
	})
	t.Cleanup(func() { cancel(); watching.Wait() })
	return out
}

// hear waits for what a watcher is to be given next, passing over some.
func hear(t testing.TB, from <-chan string, want string, over ...string) {
	t.Helper()
	for {
		select {
		case got := <-from:
			if got == want {
				return
			}
			if !strings.Contains(strings.Join(over, " "), got) {
				t.Fatalf("%q was told, not %q", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%q was not told within a minute", want)
		}
	}
}

func word(w string) *typepb.EnumValue { return &typepb.EnumValue{Name: w} }

func (b *testBundle) signal(t testing.TB, k *object.Kind[toy], w string) {
	t.Helper()
	snap, err := k.View(b.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Signal(b.ctx, snap.Info, word(w)); err != nil {
		t.Fatal(err)
	}
}

// Signals reach watchers at other processes, in order with changes, by both carriers; not those of another tenant.
func TestSignalsOfOtherProcesses(t *testing.T) {
	t.Parallel()
	nats := startNATS(t)
	for name, carrier := range map[string]func(*testBundle) object.Carrier{
		"postgres": func(b *testBundle) object.Carrier { return b.notifications(t, "signals") },
		"nats": func(b *testBundle) object.Carrier {
			return natshints.New(natshints.Config{URL: nats.ClientURL(), Subject: string(b.Tenant)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupOwn(t)
			box, reg := newBox(t), prometheus.NewRegistry()
			var kinds []*object.Kind[toy]
			var rts []*object.Runtime
			for i := range 2 {
				c := hinting(carrier(b))
				c.Sealer = box
				if i == 1 {
					c.Metrics = reg
				}
				rts = append(rts, newRuntime(t, b.DB, c))
				kinds = append(kinds, toyKind(rts[i]))
			}
			acquainted(t, rts...)
			other := identity.With(t.Context(), identity.Identity{Tenant: b.Tenant + "-other", User: "alice"})
			for _, ctx := range []context.Context{b.ctx, other} {
				if _, err := kinds[0].Update(ctx, "a", naming("1"), object.Create()); err != nil {
					t.Fatal(err)
				}
			}
			here, there, stranger := heard(t, b.ctx, kinds[0], "a"), heard(t, b.ctx, kinds[1], "a"), heard(t, other, kinds[1], "a")
			hear(t, here, "v1")
			hear(t, there, "v1")
			hear(t, stranger, "v1")
			for v := 2; v < 6; v++ {
				w, last := fmt.Sprint("word", v), fmt.Sprint("word", v-1)
				b.signal(t, kinds[0], w)
				hear(t, here, w)
				hear(t, there, w)
				if _, err := kinds[v%2].Update(b.ctx, "a", naming(w)); err != nil {
					t.Fatal(err)
				}
				hear(t, here, fmt.Sprint("v", v), last)
				hear(t, there, fmt.Sprint("v", v), last)
			}
			if _, err := kinds[0].Update(other, "a", naming("2")); err != nil {
				t.Fatal(err)
			}
			hear(t, stranger, "v2") // and no word before
			if n := metric(t, reg, "holdfast_signals_received_total"); n != 4 {
				t.Errorf("%v signals were received", n)
			}
		})
	}
}

// recorder remembers what it carries.
type recorder struct {
	*faulty

	mu   sync.Mutex // guards sent
	sent []string
}

func (r *recorder) Send(ctx context.Context, messages []string) error {
	r.mu.Lock()
	r.sent = append(r.sent, messages...)
	r.mu.Unlock()
	return r.faulty.Send(ctx, messages)
}

func isSignal(message string) bool { return strings.Contains(message, "\nsignals\n") }

func (r *recorder) signals() (messages []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.sent {
		if isSignal(m) {
			messages = append(messages, m)
		}
	}
	return messages
}

// Who only listens to the carrier reads nothing of what is told, and who has another key neither understands nor is understood. What
// is told again later, or of another object, is not believed.
func TestSignalsAreSealed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	carrier := &recorder{faulty: newFaulty()}
	process := func(box object.Sealer) (*object.Runtime, *object.Kind[toy]) {
		c := hinting(carrier)
		c.Sealer = box
		rt := newRuntime(t, b.DB, c)
		return rt, toyKind(rt)
	}
	box := newBox(t)
	telling, tells := process(box)
	friend, befriended := process(box)
	stranger, estranged := process(newBox(t))
	without, keyless := process(nil)
	acquainted(t, telling, friend, stranger, without)
	for _, id := range []object.ID{"a", "b"} {
		if _, err := tells.Update(b.ctx, id, naming("1"), object.Create()); err != nil {
			t.Fatal(err)
		}
	}
	var all []<-chan string
	for _, k := range []*object.Kind[toy]{befriended, estranged, keyless} {
		all = append(all, heard(t, b.ctx, k, "a"))
		hear(t, all[len(all)-1], "v1")
	}
	another := heard(t, b.ctx, befriended, "b")
	hear(t, another, "v1")
	b.signal(t, tells, "whisper")
	hear(t, all[0], "whisper")
	messages := carrier.signals()
	if len(messages) != 1 || strings.Contains(messages[0], "whisper") || !strings.Contains(messages[0], string(b.Tenant)) {
		t.Fatalf("sent %q", messages)
	}
	moved := strings.Replace(messages[0], "\ta\t", "\tb\t", 1)
	if err := carrier.faulty.Send(b.ctx, []string{moved, "x\nsignals\nt\tk\nt\ttoy\ta\t1\t!\n" + string(b.Tenant) + "\ttoy\ta\tx\ty"}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []object.ID{"a", "b"} {
		if _, err := tells.Update(b.ctx, id, naming("2")); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range append(all, another) {
		hear(t, w, "v2")
	}
	// What was told of version 1 is older than what they have seen.
	if err := carrier.faulty.Send(b.ctx, messages); err != nil {
		t.Fatal(err)
	}
	b.signal(t, tells, "louder")
	hear(t, all[0], "louder")
}

// However often and however much is told, little is sent, and hints go on.
func TestSignalsAreBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	carrier, box, reg := &recorder{faulty: newFaulty()}, newBox(t), prometheus.NewRegistry()
	var kinds []*object.Kind[toy]
	var rts []*object.Runtime
	for i := range 2 {
		c := hinting(carrier)
		c.Sealer = box
		if i == 0 {
			c.Metrics = reg
		}
		rts = append(rts, newRuntime(t, b.DB, c))
		kinds = append(kinds, toyKind(rts[i]))
	}
	acquainted(t, rts...)
	if _, err := kinds[0].Update(b.ctx, "a", naming("1"), object.Create()); err != nil {
		t.Fatal(err)
	}
	there := heard(t, b.ctx, kinds[1], "a")
	hear(t, there, "v1")
	b.signal(t, kinds[0], strings.Repeat("x", object.MaxMessage))
	await(t, "what is too long is lost", func() bool { return metric(t, reg, "holdfast_signals_lost_total") == 1 })
	began, told := time.Now(), 0
	for ; told < 5000 || len(carrier.signals()) == 0; told++ {
		b.signal(t, kinds[0], "again")
	}
	b.signal(t, kinds[0], "last")
	hear(t, there, "last", "again")
	if most := 3 + int(time.Since(began)/(50*time.Millisecond)); len(carrier.signals()) > most {
		t.Errorf("%d messages of %d signals in %v, at most %d are right", len(carrier.signals()), told, time.Since(began), most)
	}
	if n := metric(t, reg, "holdfast_signals_lost_total"); n != 1 {
		t.Errorf("%v signals were lost", n)
	}
	if _, err := kinds[0].Update(b.ctx, "a", naming("2")); err != nil {
		t.Fatal(err)
	}
	hear(t, there, "v2")
}
