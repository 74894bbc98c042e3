package object_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"

	"holdfast/db"
	"holdfast/db/dbtest"
	"holdfast/object"
	"holdfast/object/natshints"
)

// Until they would poll all tests are over: who hears of a change hears of it by a hint.
const never = time.Hour

// hinting is the configuration of a process that gets hints and, as it is, nothing else.
func hinting(c object.Carrier) object.Config {
	return object.Config{Carrier: c, PollInterval: never, HintedPollInterval: never, GreetInterval: 50 * time.Millisecond}
}

// setupOwn has a database of its own: all processes on one hear each other.
func setupOwn(t testing.TB) *testBundle {
	t.Helper()
	return setupWith(t, dbtest.Own(t), object.Config{})
}

func (b *testBundle) notifications(t testing.TB, name string) *db.Notifications {
	t.Helper()
	u, err := url.Parse(b.DirectURL)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("application_name", b.appName(name))
	u.RawQuery = q.Encode()
	n, err := db.NewNotifications(b.ctx, u.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func startNATS(t testing.TB) *natsserver.Server {
	t.Helper()
	s, err := natsserver.NewServer(&natsserver.Options{Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(time.Minute) {
		t.Fatal("NATS does not start")
	}
	return s
}

// await waits for what another goroutine will bring about.
func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: still not so after a minute", what)
		}
	}
}

// acquainted waits until two processes hear themselves and each other.
func acquainted(t testing.TB, rts ...*object.Runtime) {
	t.Helper()
	for _, rt := range rts {
		await(t, "hearing", func() bool { return rt.Hearing() && rt.Peers() == len(rts)-1 })
	}
}

// metric is the sum of a counter or gauge over its labels.
func metric(t testing.TB, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// follow sends an object's versions, as a watcher sees them, to a channel until the test ends.
func follow(t testing.TB, ctx context.Context, k *object.Kind[toy], id object.ID) <-chan object.Version {
	t.Helper()
	versions := make(chan object.Version, 1000)
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		for c, err := range k.Watch(ctx, id, 0, 0) {
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			if !c.Heartbeat {
				versions <- c.Version
			}
		}
	})
	t.Cleanup(func() { cancel(); watching.Wait() })
	return versions
}

// reach waits until a watcher has seen a version.
func reach(t testing.TB, versions <-chan object.Version, want object.Version) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case v := <-versions:
			if v == want {
				return
			}
		case <-deadline:
			t.Fatalf("version %d did not arrive within a minute", want)
		}
	}
}

func TestFanout(t *testing.T) {
	t.Parallel()
	nats := startNATS(t)
	for name, carrier := range map[string]func(*testBundle) object.Carrier{
		"postgres": func(b *testBundle) object.Carrier { return b.notifications(t, "fanout") },
		"nats": func(b *testBundle) object.Carrier {
			return natshints.New(natshints.Config{URL: nats.ClientURL(), Subject: string(b.Tenant)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setupOwn(t)
			regs := []*prometheus.Registry{prometheus.NewRegistry(), prometheus.NewRegistry()}
			var rts []*object.Runtime
			for _, reg := range regs {
				c := hinting(carrier(b))
				c.Metrics = reg
				rts = append(rts, newRuntime(t, b.DB, c))
			}
			acquainted(t, rts...)
			writing, watching := toyKind(rts[0]), toyKind(rts[1])
			for i := range 20 { // more than one watched object and writer
				id := object.ID(fmt.Sprint("o", i))
				if _, err := writing.Update(b.ctx, id, naming("1"), object.Create()); err != nil {
					t.Fatal(err)
				}
				versions := follow(t, b.ctx, watching, id)
				reach(t, versions, 1)
				if _, err := writing.Update(b.ctx, id, naming("2")); err != nil {
					t.Fatal(err)
				}
				reach(t, versions, 2)
			}
			if n := metric(t, regs[1], "holdfast_hints_received_total"); n < 20 {
				t.Errorf("%v hints were received", n)
			}
			// Nothing is written there, so nothing is told from there.
			if n := metric(t, regs[1], "holdfast_hints_sent_total"); n != 0 {
				t.Errorf("%v hints were sent by a process that wrote nothing", n)
			}
		})
	}
}

// A process that is alone tells nobody, and one that has gone is forgotten.
func TestFanoutAlone(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	reg := prometheus.NewRegistry()
	c := hinting(b.notifications(t, "alone"))
	c.Metrics = reg
	rt := newRuntime(t, b.DB, c)
	acquainted(t, rt)
	toys := toyKind(rt)
	if _, err := toys.Update(b.ctx, "a", naming("1"), object.Create()); err != nil {
		t.Fatal(err)
	}
	other := object.NewRuntime(b.DB, hinting(b.notifications(t, "other")))
	await(t, "company", func() bool { return rt.Peers() == 1 })
	if err := other.Close(b.ctx); err != nil {
		t.Fatal(err)
	}
	await(t, "solitude", func() bool { return rt.Peers() == 0 })
	if n := metric(t, reg, "holdfast_hints_sent_total"); n != 0 {
		t.Errorf("%v hints were sent to nobody", n)
	}
}

// faulty is a carrier between processes of one test that can be made to lose what it carries.
type faulty struct {
	mu        sync.Mutex // guards all
	receivers map[int]func(string)
	next      int
	loses     func(message string) bool
	breaks    chan struct{} // closed: connections are lost
}

func newFaulty() *faulty {
	return &faulty{receivers: map[int]func(string){}, breaks: make(chan struct{}), loses: func(string) bool { return false }}
}

func (f *faulty) Receive(ctx context.Context, connected func(), on func(string)) error {
	f.mu.Lock()
	n, breaks := f.next, f.breaks
	f.next++
	f.receivers[n] = on
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.receivers, n)
	}()
	connected()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-breaks:
		return errors.New("the connection broke")
	}
}

func (f *faulty) Send(_ context.Context, messages []string) error {
	for _, m := range messages {
		f.mu.Lock()
		lost, receivers := f.loses(m), slices.Collect(maps.Values(f.receivers))
		f.mu.Unlock()
		for _, on := range receivers {
			if !lost {
				on(m)
			}
		}
	}
	return nil
}

func (f *faulty) lose(which func(message string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.loses = which
}

func isHint(message string) bool { return strings.Contains(message, "\n") }

// Hints that are lost are made up for by polling, and counted.
func TestLostHints(t *testing.T) {
	t.Parallel()
	b := setup(t)
	carrier := newFaulty()
	carrier.lose(isHint)
	reg := prometheus.NewRegistry()
	c := hinting(carrier)
	c.HintedPollInterval, c.Metrics = 10*time.Millisecond, reg
	writer, watcher := newRuntime(t, b.DB, hinting(carrier)), newRuntime(t, b.DB, c)
	acquainted(t, writer, watcher)
	writing := toyKind(writer)
	if _, err := writing.Update(b.ctx, "a", naming("1"), object.Create()); err != nil {
		t.Fatal(err)
	}
	versions := follow(t, b.ctx, toyKind(watcher), "a")
	reach(t, versions, 1)
	if _, err := writing.Update(b.ctx, "a", naming("2")); err != nil {
		t.Fatal(err)
	}
	reach(t, versions, 2)
	if n := metric(t, reg, "holdfast_hints_missed_total"); n == 0 {
		t.Error("no hint is missed")
	}
}

// What changed while nobody could be told is found when the connection is there again.
func TestFanoutReconnects(t *testing.T) {
	t.Parallel()
	b := setupOwn(t)
	rts := []*object.Runtime{
		newRuntime(t, b.DB, hinting(b.notifications(t, "writer"))), newRuntime(t, b.DB, hinting(b.notifications(t, "watcher"))),
	}
	acquainted(t, rts...)
	writing, watching := toyKind(rts[0]), toyKind(rts[1])
	if _, err := writing.Update(b.ctx, "a", naming("1"), object.Create()); err != nil {
		t.Fatal(err)
	}
	versions := follow(t, b.ctx, watching, "a")
	reach(t, versions, 1)
	owner := b.owner(t)
	for v := object.Version(2); v < 6; v++ {
		var killed int
		err := owner.QueryRow(b.ctx, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = ANY ($1)",
			[]string{b.appName("watcher"), b.appName("writer")}).Scan(&killed)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := writing.Update(b.ctx, "a", naming("2")); err != nil {
			t.Fatal(err)
		}
		if reach(t, versions, v); killed == 0 {
			t.Error("no connection was killed")
		}
		acquainted(t, rts...)
	}
}

// A connection on which nothing arrives, such as one that listens through a pooler, is found out, and watchers poll as if
// there were none.
func TestDeafFanout(t *testing.T) {
	t.Parallel()
	b := setup(t)
	carrier := newFaulty()
	carrier.lose(func(string) bool { return true })
	c := hinting(carrier)
	c.PollInterval, c.GreetInterval = 10*time.Millisecond, 5*time.Millisecond
	watcher := newRuntime(t, b.DB, c)
	if _, err := b.toys.Update(b.ctx, "a", naming("1"), object.Create()); err != nil {
		t.Fatal(err)
	}
	versions := follow(t, b.ctx, toyKind(watcher), "a")
	reach(t, versions, 1)
	b.update(t, "a", naming("2"))
	reach(t, versions, 2)
	await(t, "another connection", func() bool {
		carrier.mu.Lock()
		defer carrier.mu.Unlock()
		return carrier.next > 2
	})
	if watcher.Hearing() {
		t.Error("it hears nothing and does not know")
	}
	carrier.lose(func(string) bool { return false })
	await(t, "hearing again", watcher.Hearing)
}

// hardOfHearing is a process's way to a carrier, on which nothing arrives while it is deaf.
type hardOfHearing struct {
	object.Carrier
	deaf     atomic.Bool
	attempts atomic.Int64
}

func (h *hardOfHearing) Receive(ctx context.Context, connected func(), on func(string)) error {
	h.attempts.Add(1)
	return h.Carrier.Receive(ctx, connected, func(message string) {
		if !h.deaf.Load() {
			on(message)
		}
	})
}

// A process that hears nothing still has listeners: they are told what it writes, while it is deaf and once it hears again.
func TestADeafProcessStillTells(t *testing.T) {
	t.Parallel()
	b := setup(t)
	carrier := newFaulty()
	ear := &hardOfHearing{Carrier: carrier}
	c := hinting(ear)
	c.GreetInterval = 5 * time.Millisecond
	listener := hinting(carrier)
	listener.GreetInterval = c.GreetInterval
	writer, watcher := newRuntime(t, b.DB, c), newRuntime(t, b.DB, listener)
	acquainted(t, writer, watcher)
	writing := toyKind(writer)
	if _, err := writing.Update(b.ctx, "a", naming("1"), object.Create()); err != nil {
		t.Fatal(err)
	}
	versions := follow(t, b.ctx, toyKind(watcher), "a")
	reach(t, versions, 1)
	for v := object.Version(2); v < 6; v += 2 {
		ear.deaf.Store(true)
		// Its connections are given up after some greetings that it does not hear, so it is deaf for longer than it takes to miss a peer.
		begun := ear.attempts.Load()
		await(t, "more connections", func() bool { return ear.attempts.Load() >= begun+3 })
		if _, err := writing.Update(b.ctx, "a", naming("2")); err != nil {
			t.Fatal(err)
		}
		reach(t, versions, v)
		ear.deaf.Store(false)
		await(t, "hearing again", writer.Hearing)
		if _, err := writing.Update(b.ctx, "a", naming("3")); err != nil {
			t.Fatal(err)
		}
		reach(t, versions, v+1)
	}
}

// What a process tells in its last moments arrives: Close sends what waits.
func TestCloseSendsHints(t *testing.T) {
	t.Parallel()
	b := setup(t)
	carrier := newFaulty()
	watcher := newRuntime(t, b.DB, hinting(carrier))
	b.update(t, "a", naming("1"), object.Create())
	versions := follow(t, b.ctx, toyKind(watcher), "a")
	reach(t, versions, 1)
	writer := newRuntime(t, b.DB, hinting(carrier))
	acquainted(t, watcher, writer)
	if _, err := toyKind(writer).Update(b.ctx, "a", naming("2")); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(b.ctx); err != nil {
		t.Fatal(err)
	}
	reach(t, versions, 2)
}
