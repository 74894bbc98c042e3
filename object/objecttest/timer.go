package objecttest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"

	"holdfast/object"
)

func timerTests[S proto.Message]() tests[S] {
	return tests[S]{
		"Fires":          (*suite[S]).testTimerFires,
		"WithTheState":   (*suite[S]).testTimersWithTheState,
		"EndWithObject":  (*suite[S]).testTimersEndWithTheObject,
		"AnotherProcess": (*suite[S]).testTimerOfAnotherProcess,
		"ExactlyOnce":    (*suite[S]).testTimersExactlyOnce,
		"SetsItself":     (*suite[S]).testTimerSetsItself,
		"Failure":        (*suite[S]).testTimerFailure,
		"LeftAlone":      (*suite[S]).testTimersLeftAlone,
		"Stale":          (*suite[S]).testStaleTimers,
		"Refused":        (*suite[S]).testTimersRefused,
	}
}

// timed registers the kind with an OnTimer, under a name that is the test's own: who runs timers runs those of all
// tenants.
func (s *suite[S]) timed(t *testing.T, c object.Config, onTimer func(*object.Tx[S], string) error) *object.Kind[S] {
	t.Helper()
	if c.PollInterval == 0 {
		c.PollInterval = time.Hour
	}
	rt := object.NewRuntime(s.DB, c)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := rt.Close(ctx); err != nil {
			t.Error("closing the runtime:", err)
		}
	})
	return s.Timed(rt, "timed-"+string(s.Tenant), onTimer)
}

// noting is an OnTimer that adds the timer's name to the text.
func (s *suite[S]) noting(tx *object.Tx[S], name string) error {
	s.Set(tx.State(), s.Text(tx.State())+" "+name)
	tx.Put(s.Collection, object.SeqKey(int64(tx.Version())), s.Entry(name))
	return nil
}

// setTimers creates or changes an object, and sets timers.
func (s *suite[S]) setTimers(t *testing.T, k *object.Kind[S], id object.ID, in map[string]time.Duration) {
	t.Helper()
	_, err := k.Update(s.ctx, id, func(tx *object.Tx[S]) error {
		for name, d := range in {
			tx.SetTimer(name, tx.Now().Add(d))
		}
		return nil
	}, object.Upsert())
	if err != nil {
		t.Fatal(err)
	}
}

// timerRow is a row of the table.
type timerRow struct {
	name      string
	attempts  int
	parked    bool
	lastError string
	leased    bool
	later     bool // to be tried later than it was due
}

func (s *suite[S]) timerRows(t *testing.T, k *object.Kind[S], id object.ID) (rows []timerRow) {
	t.Helper()
	conn, err := pgx.Connect(s.ctx, s.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(s.ctx))
	found, err := conn.Query(s.ctx, `SELECT name, attempts, parked, last_error, lease_time IS NOT NULL, next_time > due_time FROM holdfast.timers
		WHERE tenant_id = $1 AND kind = $2 AND object_id = $3 ORDER BY name`, string(s.Tenant), k.Name(), string(id))
	if err != nil {
		t.Fatal(err)
	}
	rows, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (r timerRow, err error) {
		err = row.Scan(&r.name, &r.attempts, &r.parked, &r.lastError, &r.leased, &r.later)
		return r, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func (s *suite[S]) timerNames(t *testing.T, k *object.Kind[S], id object.ID) []string {
	t.Helper()
	var names []string
	for _, r := range s.timerRows(t, k, id) {
		names = append(names, r.name)
	}
	return names
}

// await waits until an object's timers look as wanted.
func (s *suite[S]) await(t *testing.T, k *object.Kind[S], id object.ID, wanted func([]timerRow) bool) {
	t.Helper()
	var rows []timerRow
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		if rows = s.timerRows(t, k, id); wanted(rows) {
			tick.Stop()
			return
		}
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			t.Fatalf("waited in vain; timers of %s: %+v", id, rows)
		}
	}
}

func (s *suite[S]) testTimerFires(t *testing.T) {
	var due time.Time
	k := s.timed(t, object.Config{Timers: true}, func(tx *object.Tx[S], name string) error {
		if tx.Now().Before(due) || !tx.Caller().Service || tx.Caller().User != "" || tx.Caller().Tenant != s.Tenant {
			t.Errorf("due %v, now %v, caller %+v", due, tx.Now(), tx.Caller())
		}
		if _, ok := tx.Timer(name); ok {
			t.Error("the timer that fires is still set")
		}
		tx.Emit("something else")
		tx.Unchanged() // the timer is gone, so this is not so
		return s.noting(tx, name)
	})
	snap, err := k.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		due = tx.Now().Add(20 * time.Millisecond)
		tx.SetTimer("soon", due)
		tx.SetTimer("later", tx.Now().Add(time.Hour))
		return nil
	}, object.Create())
	if err != nil || snap.Version != 1 {
		t.Fatal(snap.Version, err)
	}
	w := s.watch(t, k, "a", 1, 0)
	c := w.change(t)
	s.wantChange(t, &c, 2, false, " soon", object.SeqKey(1)+"=soon")
	if c.Owner != alice || c.UpdateTime.Before(due) {
		t.Errorf("%+v, due %v", c.Info, due)
	}
	if got := s.timerNames(t, k, "a"); !slices.Equal(got, []string{"later"}) {
		t.Errorf("timers %v", got)
	}
	if got := s.journalOf(t, k, "a"); !slices.Equal(got, []string{"created", "timer:soon"}) {
		t.Errorf("journal %v", got)
	}
	// One that is set for the past is due at once.
	s.setTimers(t, k, "a", map[string]time.Duration{"past": -time.Hour})
	c = w.change(t)
	c = w.change(t)
	s.wantChange(t, &c, 4, false, " soon past", object.SeqKey(3)+"=past")
}

// Timers are set, moved and cleared with the change that does so, or not at all.
func (s *suite[S]) testTimersWithTheState(t *testing.T) {
	k := s.timed(t, object.Config{}, s.noting)
	refused := errors.New("refused")
	_, err := k.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		tx.SetTimer("none", tx.Now())
		return refused
	}, object.Create())
	wantError(t, err, refused)
	if got := s.timerNames(t, k, "a"); got != nil {
		t.Errorf("a change that failed left the timers %v", got)
	}
	hour := time.Hour
	s.setTimers(t, k, "a", map[string]time.Duration{"a": hour, "b": hour, "c": hour})
	for _, fresh := range []bool{false, true} {
		if fresh {
			k = s.timed(t, object.Config{}, s.noting) // with nothing in memory
		}
		var at time.Time
		_, err = k.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
			at = tx.Now().Add(2 * hour)
			tx.SetTimer("d", at)
			tx.SetTimer("b", at.Add(time.Nanosecond)) // kept in microseconds, and never early
			tx.ClearTimer("c")
			tx.ClearTimer("never set")
			_, ok := tx.Timer("c")
			got, _ := tx.Timer("b")
			if ok || got.Before(at) || got.Sub(at) > time.Microsecond {
				t.Errorf("set for %v, is at %v; cleared and there: %t", at, got, ok)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.timerNames(t, k, "a"); !slices.Equal(got, []string{"a", "b", "d"}) {
			t.Errorf("timers %v", got)
		}
		// Both places say the same, and both tell when.
		differ := s.count(t, `SELECT count(*) FROM holdfast.timers t JOIN holdfast.objects o USING (tenant_id, kind, object_id)
			WHERE t.tenant_id = $1 AND (o.timers ->> t.name)::timestamptz IS DISTINCT FROM t.due_time OR t.tenant_id = $1 AND t.next_time <> t.due_time`)
		if differ != 0 {
			t.Errorf("%d timers differ between the object and the table", differ)
		}
		_, err = k.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
			got, ok := tx.Timer("d")
			if _, c := tx.Timer("c"); !ok || !got.Equal(at) || c {
				t.Errorf("set for %v, read %v, %t", at, got, ok)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		s.setTimers(t, k, "a", map[string]time.Duration{"c": hour})
	}
}

func (s *suite[S]) count(t *testing.T, sql string) (n int) {
	t.Helper()
	conn, err := pgx.Connect(s.ctx, s.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(s.ctx))
	if err := conn.QueryRow(s.ctx, sql, string(s.Tenant)).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// Deleting or remaking an object clears its timers.
func (s *suite[S]) testTimersEndWithTheObject(t *testing.T) {
	k := s.timed(t, object.Config{}, s.noting)
	s.setTimers(t, k, "a", map[string]time.Duration{"first life": time.Hour})
	if err := Delete(s.ctx, k, "a"); err != nil {
		t.Fatal(err)
	}
	if got := s.timerNames(t, k, "a"); got != nil {
		t.Errorf("a deleted object has the timers %v", got)
	}
	s.setTimers(t, k, "a", map[string]time.Duration{"second life": time.Hour})
	s.exec(t, `UPDATE holdfast.objects SET expire_time = clock_timestamp() - interval '1 second' WHERE tenant_id = $1`, string(s.Tenant))
	k = s.timed(t, object.Config{}, s.noting)
	_, err := k.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		if _, ok := tx.Timer("second life"); ok {
			t.Error("a timer has outlived its object")
		}
		tx.SetTimer("third life", tx.Now().Add(time.Hour))
		return nil
	}, object.Create())
	if err != nil {
		t.Fatal(err)
	}
	if got := s.timerNames(t, k, "a"); !slices.Equal(got, []string{"third life"}) {
		t.Errorf("made anew it has the timers %v", got)
	}
}

// What one process sets another runs, and at once what came due while none did.
func (s *suite[S]) testTimerOfAnotherProcess(t *testing.T) {
	idle := s.timed(t, object.Config{}, s.noting)
	s.setTimers(t, idle, "a", map[string]time.Duration{"overdue": -time.Hour})
	k := s.timed(t, object.Config{Timers: true, TimerPoll: 10 * time.Millisecond}, s.noting)
	s.await(t, k, "a", func(rows []timerRow) bool { return len(rows) == 0 })
	s.setTimers(t, idle, "a", map[string]time.Duration{"next": 0})
	s.await(t, k, "a", func(rows []timerRow) bool { return len(rows) == 0 })
	if snap, err := idle.View(s.ctx, "a"); err != nil || s.Text(snap.State) != " overdue next" || snap.Version != 4 {
		t.Errorf("version %d, %q, %v", snap.Version, s.Text(snap.State), err)
	}
}

// Whatever number of processes run timers, each happens once: also those that a process claimed and lost.
func (s *suite[S]) testTimersExactlyOnce(t *testing.T) {
	const objects, each = 40, 5
	kinds := make([]*object.Kind[S], 3)
	for i := range kinds {
		kinds[i] = s.timed(t, object.Config{Timers: true, TimerPoll: time.Millisecond}, s.noting)
	}
	stop := make(chan struct{})
	robbed := make(chan error, 1)
	go func() { // leases come to nothing, so that several processes run the same timers
		conn, err := pgx.Connect(s.ctx, s.SuperuserURL)
		if err != nil {
			robbed <- err
			return
		}
		defer conn.Close(context.WithoutCancel(s.ctx))
		for {
			select {
			case <-stop:
				robbed <- nil
				return
			default:
			}
			if _, err := conn.Exec(s.ctx, `UPDATE holdfast.timers SET lease_time = NULL WHERE tenant_id = $1
				AND (kind, object_id, name) IN (SELECT kind, object_id, name FROM holdfast.timers WHERE tenant_id = $1 FOR UPDATE SKIP LOCKED)`,
				string(s.Tenant)); err != nil {
				robbed <- err
				return
			}
		}
	}()
	for i := range objects {
		in := map[string]time.Duration{}
		for j := range each {
			in[fmt.Sprint("t", j)] = time.Duration(j) * 10 * time.Millisecond
		}
		s.setTimers(t, kinds[i%len(kinds)], object.ID(fmt.Sprint("o", i)), in)
	}
	for i := range objects {
		id := object.ID(fmt.Sprint("o", i))
		s.await(t, kinds[0], id, func(rows []timerRow) bool { return len(rows) == 0 })
		snap, err := kinds[0].View(s.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		names := strings.Fields(s.Text(snap.State))
		slices.Sort(names)
		if snap.Version != each+1 || !slices.Equal(names, []string{"t0", "t1", "t2", "t3", "t4"}) {
			t.Errorf("%s: version %d, ran %v", id, snap.Version, names)
		}
	}
	close(stop)
	if err := receive(t, robbed, "the robber"); err != nil {
		t.Fatal(err)
	}
}

func (s *suite[S]) testTimerSetsItself(t *testing.T) {
	const rounds = 10
	k := s.timed(t, object.Config{Timers: true}, func(tx *object.Tx[S], name string) error {
		if tx.Version() < rounds {
			tx.SetTimer(name, tx.Now().Add(time.Millisecond))
		}
		return s.noting(tx, name)
	})
	s.setTimers(t, k, "a", map[string]time.Duration{"tick": 0})
	s.await(t, k, "a", func(rows []timerRow) bool { return len(rows) == 0 })
	if snap, err := k.View(s.ctx, "a"); err != nil || snap.Version != rounds+1 || s.Text(snap.State) != strings.Repeat(" tick", rounds) {
		t.Errorf("version %d, %q, %v", snap.Version, s.Text(snap.State), err)
	}
}

// A timer that fails leaves no trace but its count, is tried again later, and is parked in the end.
func (s *suite[S]) testTimerFailure(t *testing.T) {
	k := s.timed(t, object.Config{Timers: true, TimerPoll: 5 * time.Millisecond}, func(tx *object.Tx[S], name string) error {
		s.Set(tx.State(), "half done")
		tx.SetTimer("of a change that failed", tx.Now())
		switch name {
		case "fine":
			tx.ClearTimer("of a change that failed")
			return nil
		case "panics":
			panic("a bug")
		default:
			return errors.New("not now")
		}
	})
	s.setTimers(t, k, "a", map[string]time.Duration{"panics": 0, "refuses": 0})
	s.await(t, k, "a", func(rows []timerRow) bool {
		return len(rows) == 2 && rows[0] == timerRow{name: "panics", attempts: 1, lastError: "panic", later: true} &&
			rows[1] == timerRow{name: "refuses", attempts: 1, lastError: "refused", later: true}
	})
	s.want1(t, k, "a", 1, "")
	s.exec(t, `UPDATE holdfast.timers SET attempts = $2, next_time = due_time + interval '1 microsecond' WHERE tenant_id = $1`, string(s.Tenant), object.MaxTimerTries-1)
	s.await(t, k, "a", func(rows []timerRow) bool {
		return len(rows) == 2 && rows[0].parked && rows[1].parked && rows[0].attempts == object.MaxTimerTries
	})
	// Others are not kept from running, and one that is set anew starts anew.
	s.setTimers(t, k, "a", map[string]time.Duration{"fine": 0, "panics": time.Hour})
	s.await(t, k, "a", func(rows []timerRow) bool {
		return len(rows) == 2 && rows[0] == timerRow{name: "panics"} && rows[1].parked
	})
	s.want1(t, k, "a", 3, "half done")
}

func (s *suite[S]) want1(t *testing.T, k *object.Kind[S], id object.ID, version object.Version, text string) {
	t.Helper()
	if snap, err := k.View(s.ctx, id); err != nil || snap.Version != version || s.Text(snap.State) != text {
		t.Errorf("%s is at version %d with %q, %v; want version %d with %q", id, snap.Version, s.Text(snap.State), err, version, text)
	}
}

// A process touches no timer of a kind that it does not know, nor of an object that a newer release has written.
func (s *suite[S]) testTimersLeftAlone(t *testing.T) {
	idle := s.timed(t, object.Config{}, s.noting)
	s.setTimers(t, idle, "newer", map[string]time.Duration{"x": 0})
	s.exec(t, `UPDATE holdfast.objects SET schema_version = 1000 WHERE tenant_id = $1`, string(s.Tenant))
	rt, _ := s.another(t, object.Config{Timers: true, TimerPoll: time.Millisecond})
	other := s.Timed(rt, "another-"+string(s.Tenant), s.noting)
	s.setTimers(t, other, "a", map[string]time.Duration{"x": 0})
	s.await(t, other, "a", func(rows []timerRow) bool { return len(rows) == 0 }) // it has looked
	if rows := s.timerRows(t, idle, "newer"); len(rows) != 1 || rows[0] != (timerRow{name: "x"}) {
		t.Errorf("a timer of a kind that it does not know: %+v", rows)
	}
	k := s.timed(t, object.Config{Timers: true, TimerPoll: time.Millisecond}, s.noting)
	s.await(t, k, "newer", func(rows []timerRow) bool { return len(rows) == 1 && rows[0].later && !rows[0].leased })
	if rows := s.timerRows(t, k, "newer"); rows[0].attempts != 0 || rows[0].parked {
		t.Errorf("a timer of a newer release's object: %+v", rows)
	}
}

// Rows that no object vouches for go away, and do nothing.
func (s *suite[S]) testStaleTimers(t *testing.T) {
	k := s.timed(t, object.Config{Timers: true, TimerPoll: time.Millisecond}, s.noting)
	s.setTimers(t, k, "cleared", nil)
	for _, id := range []object.ID{"cleared", "never-there"} {
		s.exec(t, `INSERT INTO holdfast.timers (tenant_id, kind, object_id, name, owner_id, due_time, next_time)
			VALUES ($1, $2, $3, 'x', '', now(), now())`, string(s.Tenant), k.Name(), string(id))
		s.await(t, k, id, func(rows []timerRow) bool { return len(rows) == 0 })
	}
	s.want1(t, k, "cleared", 1, "")
}

func (s *suite[S]) testTimersRefused(t *testing.T) {
	k := s.timed(t, object.Config{}, s.noting)
	for _, name := range []string{"", strings.Repeat("x", 129), "\xff"} {
		_, err := k.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
			tx.SetTimer(name, tx.Now())
			return nil
		}, object.Create())
		if _, ok := errors.AsType[*object.PanicError](err); !ok {
			t.Errorf("a timer named %q: %v", name, err)
		}
	}
	_, err := k.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
		for i := range 1001 {
			tx.SetTimer(fmt.Sprint(i), tx.Now())
		}
		return nil
	}, object.Create())
	wantError(t, err, object.ErrInvalid)
}
