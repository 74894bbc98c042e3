package objecttest

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db/dbtest"
	"holdfast/identity"
	"holdfast/object"
)

func isolationTests[S proto.Message]() tests[S] {
	return tests[S]{
		"Nobody":       (*suite[S]).testNobody,
		"Tenants":      (*suite[S]).testTenants,
		"Owners":       (*suite[S]).testOwners,
		"OwnersBatch":  (*suite[S]).testOwnersInOneBatch,
		"OddNames":     (*suite[S]).testOddNames,
		"OwnerChanges": (*suite[S]).testOwnerChanges,
	}
}

// calls are all that can be done to an object that is there.
func (s *suite[S]) calls(k *object.Kind[S], id object.ID) map[string]func(context.Context) error {
	untouchable := func(*object.Tx[S]) error { panic("the closure ran") }
	r := newRequest("x")
	return map[string]func(context.Context) error{
		"View":   func(ctx context.Context) error { _, err := k.View(ctx, id, object.WithRecent(1)); return err },
		"Update": func(ctx context.Context) error { _, err := k.Update(ctx, id, untouchable); return err },
		"Create": func(ctx context.Context) error {
			_, err := k.Update(ctx, id, s.setting("stolen"), object.Create())
			return err
		},
		"Upsert": func(ctx context.Context) error {
			_, err := k.Update(ctx, id, s.setting("stolen"), object.Upsert())
			return err
		},
		"Do":     func(ctx context.Context) error { _, err := s.do(ctx, k, id, r); return err },
		"Delete": func(ctx context.Context) error { return Delete(ctx, k, id) },
		"Entries": func(ctx context.Context) error {
			_, err := k.Entries(ctx, id, s.Collection, object.EntriesOptions{})
			return err
		},
		"Watch": func(ctx context.Context) error {
			for _, err := range k.Watch(ctx, id, 0, 1) {
				return err
			}
			return nil
		},
		"WatchFrom": func(ctx context.Context) error {
			for _, err := range k.Watch(ctx, id, 1, 1) {
				return err
			}
			return nil
		},
	}
}

func (s *suite[S]) testNobody(t *testing.T) {
	s.create(t, "a", "x")
	nobody := withPatience(t, t.Context())
	for name, call := range s.calls(s.kind, "a") {
		if err := call(nobody); err == nil {
			t.Errorf("%s by nobody succeeded", name)
		} else {
			wantError(t, err, identity.ErrAbsent)
		}
	}
	_, err := s.kind.List(nobody, object.ListOptions{})
	wantError(t, err, identity.ErrAbsent)
}

func (s *suite[S]) testTenants(t *testing.T) {
	s.create(t, "a", "ours")
	s.put(t, "a", "k1")
	other := dbtest.New(t)
	for name, ctx := range map[string]context.Context{
		"the same name": withPatience(t, other.As(t, alice)), "a service": withPatience(t, other.AsService(t)),
	} {
		for call, do := range s.calls(s.kind, "a") {
			if call == "Create" || call == "Upsert" {
				continue // the id is free in the other tenant
			}
			if err := do(ctx); err == nil {
				t.Errorf("%s of another tenant: %s succeeded", name, call)
			} else {
				wantError(t, err, object.ErrNotFound)
			}
		}
		if page, err := s.kind.List(ctx, object.ListOptions{}); err != nil || len(page.Items) != 0 {
			t.Errorf("%s of another tenant lists %d, %v", name, len(page.Items), err)
		}
	}
	theirs := withPatience(t, other.As(t, alice))
	if _, err := s.kind.Update(theirs, "a", s.setting("theirs"), object.Create()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.want(t, s.ctx, "a", 2, "ours")
		s.want(t, theirs, "a", 1, "theirs")
		s.restart(t, object.Config{})
	}
	if got := s.texts(t, "a"); !slices.Equal(got, []string{"k1=text of k1"}) {
		t.Errorf("entries: %v", got)
	}
	if err := Delete(theirs, s.kind, "a"); err != nil {
		t.Fatal(err)
	}
	s.want(t, s.ctx, "a", 2, "ours")
}

func (s *suite[S]) testOwners(t *testing.T) {
	bobs, service := s.as(t, bob), s.asService(t)
	s.create(t, "alices", "hers")
	s.put(t, "alices", "k1")
	if snap, err := s.kind.Update(service, "shared", s.setting("everybody's"), object.Create()); err != nil || snap.Owner != "" {
		t.Fatal(snap.Owner, err)
	}
	for _, warm := range []bool{true, false} {
		if !warm {
			s.restart(t, object.Config{})
		}
		for name, call := range s.calls(s.kind, "alices") {
			if err := call(bobs); err == nil {
				t.Errorf("in memory %t: %s of another's object succeeded", warm, name)
			} else {
				wantError(t, err, refusalOf(name))
			}
		}
	}
	s.want(t, s.ctx, "alices", 2, "hers")
	s.want(t, service, "alices", 2, "hers")
	if _, err := s.kind.Update(service, "alices", s.setting("by a service")); err != nil {
		t.Fatal(err)
	}
	s.want(t, s.ctx, "alices", 3, "by a service")
	if snap, err := s.kind.View(s.ctx, "alices"); err != nil || snap.Owner != alice {
		t.Errorf("a service's change left the owner %q, %v", snap.Owner, err)
	}

	for i, ctx := range []context.Context{s.ctx, bobs, service} {
		text := fmt.Sprint(i)
		snap, err := s.kind.Update(ctx, "shared", s.setting(text))
		if err != nil || snap.Owner != "" {
			t.Fatalf("caller %d of a shared object: owner %q, %v", i, snap.Owner, err)
		}
		s.want(t, bobs, "shared", object.Version(i+2), text)
	}
	for who, want := range map[string]struct {
		ctx context.Context
		ids []object.ID
	}{
		"alice": {s.ctx, []object.ID{"alices", "shared"}}, "bob": {bobs, []object.ID{"shared"}}, "service": {service, []object.ID{"alices", "shared"}},
	} {
		page, err := s.kind.List(want.ctx, object.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var got []object.ID
		for _, item := range page.Items {
			got = append(got, item.ID)
		}
		if slices.Sort(got); !slices.Equal(got, want.ids) {
			t.Errorf("%s lists %v, want %v", who, got, want.ids)
		}
	}

	// Deleted or expired, it stays hers until it is swept, and so does the id.
	if err := Delete(s.ctx, s.kind, "alices"); err != nil {
		t.Fatal(err)
	}
	for name, call := range s.calls(s.kind, "alices") {
		if err := call(bobs); err == nil {
			t.Errorf("%s of another's deleted object succeeded", name)
		} else {
			wantError(t, err, refusalOf(name))
		}
	}
}

// refusalOf is how a call to another's object is refused: only who would create it learns that the id is taken.
func refusalOf(call string) error {
	if call == "Create" || call == "Upsert" {
		return object.ErrExists
	}
	return object.ErrNotFound
}

// Row-level security opens a batch to all of its callers; the runtime tells them apart.
func (s *suite[S]) testOwnersInOneBatch(t *testing.T) {
	bobs := s.as(t, bob)
	s.create(t, "alices", "hers")
	if _, err := s.kind.Update(bobs, "bobs", s.setting("his"), object.Create()); err != nil {
		t.Fatal(err)
	}
	for _, warm := range []bool{true, false} {
		if !warm {
			s.restart(t, object.Config{})
		}
		release := s.stall(t)
		type update struct {
			done    <-chan outcome[S]
			fine    bool
			refusal error
		}
		var cases []update
		for _, ctx := range []context.Context{s.ctx, bobs} {
			for _, id := range []object.ID{"alices", "bobs"} {
				fine := (ctx == s.ctx) == (id == "alices")
				for refusal, opts := range map[error][]object.UpdateOption{object.ErrNotFound: nil, object.ErrExists: {object.Upsert()}} {
					cases = append(cases, update{s.start(ctx, id, func(tx *object.Tx[S]) error {
						s.Set(tx.State(), s.Text(tx.State())+string(tx.Caller().User[0]))
						return nil
					}, opts...), fine, refusal})
				}
			}
		}
		release()
		for i, c := range cases {
			o := receive(t, c.done, "an update")
			if c.fine && o.err != nil {
				t.Errorf("update %d: %v", i, o.err)
			}
			if !c.fine {
				wantError(t, o.err, c.refusal)
			}
		}
	}
	s.want(t, s.ctx, "alices", 5, "hersaaaa")
	s.want(t, bobs, "bobs", 5, "hisbbbb")

	// Views that share a round trip, too.
	type seen struct {
		own, other error
	}
	results := make(chan seen)
	for i := range 50 {
		ctx, own, other := s.ctx, object.ID("alices"), object.ID("bobs")
		if i%2 == 1 {
			ctx, own, other = bobs, other, own
		}
		go func() {
			_, mine := s.kind.View(ctx, own)
			_, theirs := s.kind.View(ctx, other)
			results <- seen{mine, theirs}
		}()
	}
	for range 50 {
		r := receive(t, results, "views")
		if r.own != nil {
			t.Error(r.own)
		}
		wantError(t, r.other, object.ErrNotFound)
	}
}

// User ids travel to row-level security as the text of an array.
func (s *suite[S]) testOddNames(t *testing.T) {
	names := []identity.User{
		`a"b`, `a\b`, `a,b`, `{a}`, `{`, `}`, ` a `, `NULL`, `null`, `'; DROP TABLE objects; --`, "ünïcødé", "a\nb", `\`, `"`, `""`, "$1", "%",
	}
	release := s.stall(t)
	done := make([]<-chan outcome[S], len(names))
	for i, name := range names {
		done[i] = s.start(s.as(t, name), object.ID(fmt.Sprint("o", i)), s.setting(string(name)), object.Create())
	}
	release()
	for i, d := range done {
		if o := receive(t, d, "an update"); o.err != nil || o.Owner != names[i] {
			t.Fatalf("%q: owner %q, %v", names[i], o.Owner, o.err)
		}
	}
	s.restart(t, object.Config{})
	for i, name := range names {
		ctx := s.as(t, name)
		for j := range names {
			_, err := s.kind.View(ctx, object.ID(fmt.Sprint("o", j)))
			if i == j && err != nil {
				t.Errorf("%q cannot see its own: %v", name, err)
			}
			if i != j {
				wantError(t, err, object.ErrNotFound)
			}
		}
		page, err := s.kind.List(ctx, object.ListOptions{})
		if err != nil || len(page.Items) != 1 || page.Items[0].Owner != name {
			t.Errorf("%q lists %d objects, %v", name, len(page.Items), err)
		}
	}
}

// An object that a service makes anew is everybody's, with what is in it.
func (s *suite[S]) testOwnerChanges(t *testing.T) {
	bobs, service := s.as(t, bob), s.asService(t)
	s.create(t, "a", "hers")
	s.put(t, "a", "k1")
	if err := Delete(s.ctx, s.kind, "a"); err != nil {
		t.Fatal(err)
	}
	var term string
	_, err := s.kind.Update(service, "a", func(tx *object.Tx[S]) error {
		s.Set(tx.State(), "everybody's")
		term = s.Tag(tx.State(), "x")
		tx.Put(s.Collection, "k2", s.Entry("everybody's"))
		return nil
	}, object.Create())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.want(t, bobs, "a", 4, "everybody's")
		page, err := s.kind.Entries(bobs, "a", s.Collection, object.EntriesOptions{})
		if err != nil || !slices.Equal(s.render(page.Entries), []string{"k2=everybody's"}) {
			t.Errorf("bob sees %v, %v", s.render(page.Entries), err)
		}
		list, err := s.kind.List(bobs, object.ListOptions{Terms: []string{term}})
		if err != nil || len(list.Items) != 1 {
			t.Errorf("bob lists %d, %v", len(list.Items), err)
		}
		s.restart(t, object.Config{PollInterval: time.Millisecond})
	}
	// And the other way round.
	if err := Delete(service, s.kind, "a"); err != nil {
		t.Fatal(err)
	}
	_, err = s.kind.Update(bobs, "a", s.setting("his"), object.Create())
	if err != nil {
		t.Fatal(err)
	}
	s.want(t, bobs, "a", 6, "his")
	_, err = s.kind.View(s.ctx, "a")
	wantError(t, err, object.ErrNotFound)
	s.journal(t, "a")
}
