// Package objecttest is the contract of the object runtime as a test suite: Run it on a kind, and every guarantee that
// the runtime gives is tried on that kind's own states and entries, against a real Postgres.
package objecttest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"holdfast/db/dbtest"
	"holdfast/identity"
	"holdfast/object"
)

// Case tells the suite how to work with a kind. Its functions are pure.
type Case[S proto.Message] struct {
	// Register registers the kind with a runtime. The suite makes many runtimes.
	Register func(*object.Runtime) *object.Kind[S]
	// Set puts a text into a state, and Text reads it. The text of a new state is empty.
	Set  func(S, string)
	Text func(S) string
	// Collection is the kind's Recent collection. Entry makes an entry of it that holds a text, EntryText reads it.
	Collection string
	Entry      func(text string) proto.Message
	EntryText  func(proto.Message) string
	// Tag gives a state one more term to be listed by, which depends on nothing but name, and returns the term.
	Tag func(s S, name string) (term string)
	// Timed registers a kind of the same states and entries under another name, with an OnTimer. nil: the contract of
	// timers is not tried on this kind.
	Timed func(rt *object.Runtime, name string, onTimer func(*object.Tx[S], string) error) *object.Kind[S]
}

// Run tries every guarantee of the runtime on a kind.
func Run[S proto.Message](t *testing.T, c Case[S]) {
	t.Helper()
	for _, g := range []struct {
		name  string
		tests tests[S]
	}{
		{"Write", writeTests[S]()},
		{"Request", requestTests[S]()},
		{"Read", readTests[S]()},
		{"Watch", watchTests[S]()},
		{"Isolation", isolationTests[S]()},
		{"Lifecycle", lifecycleTests[S]()},
		{"Swept", sweptTests[S]()},
		{"Load", loadTests[S]()},
		{"History", historyTests[S]()},
		{"Hibernate", hibernateTests[S]()},
		{"Timer", timerTests[S]()},
	} {
		if g.name == "Timer" && c.Timed == nil {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			for name, test := range g.tests {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					test(newSuite(t, c), t)
				})
			}
		})
	}
}

// tests are the tests of one part of the contract, by name.
type tests[S proto.Message] map[string]func(*suite[S], *testing.T)

// patience is how long a test waits for what should take milliseconds.
const patience = time.Minute

// The users of a test's tenant.
const (
	alice identity.User = "alice"
	bob   identity.User = "bob"
)

// suite is one test's bundle: a tenant, a runtime of its own with the kind, and the calls that tests are made of.
type suite[S proto.Message] struct {
	Case[S]
	*dbtest.Bundle

	rt   *object.Runtime
	kind *object.Kind[S]
	ctx  context.Context // alice's
}

func newSuite[S proto.Message](t *testing.T, c Case[S]) *suite[S] {
	t.Helper()
	s := &suite[S]{Case: c, Bundle: dbtest.New(t)}
	s.ctx = s.as(t, alice)
	s.restart(t, object.Config{})
	return s
}

// restart replaces the runtime by a new one, as a process that starts with nothing in memory.
func (s *suite[S]) restart(t *testing.T, c object.Config) {
	t.Helper()
	s.rt, s.kind = s.another(t, c)
}

// another starts a further runtime on the same database, as another process would be.
func (s *suite[S]) another(t *testing.T, c object.Config) (*object.Runtime, *object.Kind[S]) {
	t.Helper()
	if c.PollInterval == 0 {
		c.PollInterval = time.Hour // who hears of a change only by polling hears of it too late
	}
	rt := object.NewRuntime(s.DB, c)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := rt.Close(ctx); err != nil {
			t.Error("closing the runtime:", err)
		}
	})
	return rt, s.Register(rt)
}

// as is a context of one of the tenant's users that is over before the test would hang.
func (s *suite[S]) as(t *testing.T, u identity.User) context.Context {
	t.Helper()
	return withPatience(t, s.As(t, u))
}

func (s *suite[S]) asService(t *testing.T) context.Context {
	t.Helper()
	return withPatience(t, s.AsService(t))
}

func withPatience(t *testing.T, ctx context.Context) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	t.Cleanup(cancel)
	return ctx
}

// setting is a closure that sets the state's text.
func (s *suite[S]) setting(text string) func(*object.Tx[S]) error {
	return func(tx *object.Tx[S]) error {
		s.Set(tx.State(), text)
		return nil
	}
}

// set changes an object's text, and fails the test where that fails.
func (s *suite[S]) set(t *testing.T, id object.ID, text string, opts ...object.UpdateOption) object.Snapshot[S] {
	t.Helper()
	snap, err := s.kind.Update(s.ctx, id, s.setting(text), opts...)
	if err != nil {
		t.Fatalf("set %s to %q: %v", id, text, err)
	}
	return snap
}

// create creates an object with a text.
func (s *suite[S]) create(t *testing.T, id object.ID, text string) object.Snapshot[S] {
	t.Helper()
	return s.set(t, id, text, object.Create())
}

// put stores an entry; its text is that of its key where none is given.
func (s *suite[S]) put(t *testing.T, id object.ID, keys ...string) {
	t.Helper()
	_, err := s.kind.Update(s.ctx, id, func(tx *object.Tx[S]) error {
		for _, k := range keys {
			tx.Put(s.Collection, k, s.Entry("text of "+k))
		}
		return nil
	})
	if err != nil {
		t.Fatalf("put %v into %s: %v", keys, id, err)
	}
}

// want fails the test unless a view by ctx finds the object at this version with this text.
func (s *suite[S]) want(t *testing.T, ctx context.Context, id object.ID, version object.Version, text string) {
	t.Helper()
	snap, err := s.kind.View(ctx, id)
	if err != nil {
		t.Fatalf("view of %s: %v", id, err)
	}
	if got := s.Text(snap.State); snap.Version != version || got != text {
		t.Fatalf("%s is at version %d with %q, want version %d with %q", id, snap.Version, got, version, text)
	}
}

// texts are the object's entries, all of which fit in one page, as "key=text".
func (s *suite[S]) texts(t *testing.T, id object.ID) []string {
	t.Helper()
	page, err := s.kind.Entries(s.ctx, id, s.Collection, object.EntriesOptions{PageSize: object.MaxPageSize})
	if err != nil {
		t.Fatalf("entries of %s: %v", id, err)
	}
	return s.render(page.Entries)
}

func (s *suite[S]) render(entries []object.Entry) []string {
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = e.Key + "=deleted"
		if e.Value != nil {
			out[i] = e.Key + "=" + s.EntryText(e.Value)
		}
	}
	return out
}

func (s *suite[S]) renderChanges(changes []object.EntryChange) []string {
	entries := make([]object.Entry, len(changes))
	for i, c := range changes {
		entries[i] = c.Entry
	}
	return s.render(entries)
}

// wantError fails the test unless err is target.
func wantError(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got error %v, want %v", err, target)
	}
}

// exec runs SQL as the owner of the database, whom row-level security does not bind.
func (s *suite[S]) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(s.ctx, s.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(s.ctx))
	if _, err := conn.Exec(s.ctx, sql, args...); err != nil {
		t.Fatal(err)
	}
}

// journal is the event types of an object's journal, and fails the test unless its versions are 1, 2, 3, … and the
// last is the object's.
func (s *suite[S]) journal(t *testing.T, id object.ID) []string {
	t.Helper()
	return s.journalOf(t, s.kind, id)
}

func (s *suite[S]) journalOf(t *testing.T, k *object.Kind[S], id object.ID) []string {
	t.Helper()
	conn, err := pgx.Connect(s.ctx, s.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(s.ctx))
	var last int64
	err = conn.QueryRow(s.ctx, "SELECT version FROM holdfast.objects WHERE tenant_id = $1 AND kind = $2 AND object_id = $3",
		string(s.Tenant), k.Name(), string(id)).Scan(&last)
	if err != nil {
		t.Fatalf("version of %s: %v", id, err)
	}
	rows, err := conn.Query(s.ctx, `SELECT version, event_type FROM holdfast.events
		WHERE tenant_id = $1 AND kind = $2 AND object_id = $3 ORDER BY version`, string(s.Tenant), k.Name(), string(id))
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var types []string
	for rows.Next() {
		var version int64
		var eventType string
		if err := rows.Scan(&version, &eventType); err != nil {
			t.Fatal(err)
		}
		if types = append(types, eventType); version != int64(len(types)) {
			t.Fatalf("the journal of %s has version %d in place %d", id, version, len(types))
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if int64(len(types)) != last {
		t.Fatalf("%s is at version %d and has %d events", id, last, len(types))
	}
	return types
}

// outcome is what an Update that runs beside the test came to.
type outcome[S proto.Message] struct {
	object.Snapshot[S]
	err error
}

// start runs an Update beside the test and returns once it waits in its mailbox.
func (s *suite[S]) start(
	ctx context.Context, id object.ID, fn func(*object.Tx[S]) error, opts ...object.UpdateOption,
) <-chan outcome[S] {
	done := make(chan outcome[S], 1)
	ctx, queued := signalled(ctx)
	go func() {
		snap, err := s.kind.Update(ctx, id, fn, opts...)
		done <- outcome[S]{snap, err}
		queued.signal() // where it was refused at once
	}()
	<-queued.c
	return done
}

// signalled returns a context that signals when somebody first waits for its end. The runtime does so after it has put
// the call in its queue, and not before.
func signalled(ctx context.Context) (context.Context, *signal) {
	s := &signal{c: make(chan struct{})}
	return &signalContext{ctx, s}, s
}

type signal struct {
	once sync.Once
	c    chan struct{}
}

func (s *signal) signal() { s.once.Do(func() { close(s.c) }) }

type signalContext struct {
	context.Context
	asked *signal
}

func (c *signalContext) Done() <-chan struct{} {
	c.asked.signal()
	return c.Context.Done()
}

// stall occupies all of the tenant's batches in flight, so that what is queued meanwhile meets in one batch, and
// returns what lets them go.
func (s *suite[S]) stall(t *testing.T) (release func()) {
	t.Helper()
	const batches = 2 // of one tenant in flight; more would do no harm
	gate := make(chan struct{})
	var done []<-chan outcome[S]
	for i := range batches {
		running := make(chan struct{})
		var once sync.Once
		done = append(done, s.start(s.ctx, object.ID(fmt.Sprintf("stall-%d", i)), func(*object.Tx[S]) error {
			once.Do(func() { close(running) })
			<-gate
			return nil
		}, object.Upsert()))
		receive(t, running, "the closure that stalls a batch")
	}
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open) // where the test fails before
	return func() {
		t.Helper()
		open()
		for _, d := range done {
			if o := receive(t, d, "a stalled batch"); o.err != nil {
				t.Error("a stalled batch:", o.err)
			}
		}
	}
}

// receive waits for a value that should come at once, or for a channel's end.
func receive[V any](t *testing.T, c <-chan V, what string) V {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("not reached")
	}
}
