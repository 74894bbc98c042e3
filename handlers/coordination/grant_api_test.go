package coordination

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

func TestAGrantIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		n := func(name string) int64 { return rapid.Int64Min(0).Draw(t, name) }
		g := grant{
			version: n("version"), at: time.UnixMicro(n("at")), permits: n("permits"), cost: n("cost"), generation: n("generation"),
			policies: rapid.Uint32().Draw(t, "policies"),
		}
		if rapid.Bool().Draw(t, "of a user") {
			g.user = ownerKey("ada")
		}
		id := g.id()
		if got, ok := parseGrant(id); !ok || got != g || len(id) > 128 {
			t.Fatalf("%v is read as %v (%t) from %s", g, got, ok, id)
		}
		cut := rapid.IntRange(0, len(id)-1).Draw(t, "cut")
		if got, ok := parseGrant(id[:cut]); ok && got == g {
			t.Fatalf("%s is read as %s", id[:cut], id)
		}
	})
	for _, name := range []string{"", "g", "g.", "g.-", "turn-9", "g.AAAA", "g.turn-9"} {
		if _, ok := parseGrant(name); ok {
			t.Errorf("%q is a grant of the server's", name)
		}
	}
}

// Whatever the algorithm and whoever names the grant, what it took is given back once, and nothing else is.
func TestAGrantIsGivenBackOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	cost := sliding(5, time.Hour)
	cost.Unit = storev1.Unit_UNIT_COST
	for name, p := range map[string]policy{
		"sliding": sliding(5, time.Hour), "steps": sliding(500, time.Hour), "gcra": gcra(5, time.Hour, 0), "cost": cost,
		"calendar": calendar(5, storev1.Calendar_CALENDAR_MONTH, ""), "month": calendar(500, storev1.Calendar_CALENDAR_MONTH, "Europe/Berlin"),
		"leases": {Name: "p", Algorithm: storev1.Algorithm_ALGORITHM_CONCURRENCY, Limit: 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			configure1(t, c, name, &storev1.ApiConfig{Policies: []policy{p}})
			acquire := func(id string) string {
				t.Helper()
				got := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: name, Permits: 2, Cost: 2, GrantId: id}))(t)
				if !got.GetAllowed() || got.GetGrantId() == "" || id != "" && got.GetGrantId() != id {
					t.Fatalf("acquired: %v", got)
				}
				return got.GetGrantId()
			}
			left := func(want int64) {
				t.Helper()
				if got := must(c.GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: name}))(t).GetApi().GetLimits()[0].GetRemaining(); got != want {
					t.Fatalf("%d are left, want %d", got, want)
				}
			}
			release := func(id string, want bool) {
				t.Helper()
				got := must(c.Release(t.Context(), &coordinationv1.ReleaseRequest{Api: name, GrantId: id, Unused: true}))(t)
				if got.GetReleased() != want {
					t.Fatalf("released %s: %v", id, got)
				}
			}
			most := p.GetLimit()
			for _, given := range []string{"", "mine"} {
				id := acquire(given)
				left(most - 2)
				release(id, true)
				left(most)
				other := acquire("")
				for range 3 {
					release(id, false)
				}
				left(most - 2)
				release("nowhere", false)
				release(strings.ToUpper(other), false)
				release(other, true)
				left(most)
			}
			// A name counts once as long as it is not released, and then again.
			acquire("again")
			acquire("again")
			left(most - 2)
			release("again", true)
			acquire("again")
			left(most - 2)
			release("again", true)
			left(most)
		})
	}
}

// Grants of which others have been given back since are given back too, in any order, up to a bound; beyond it they are
// refused, and never given back twice.
func TestReleasesAreRememberedUpToABound(t *testing.T) {
	t.Parallel()
	s := &storev1.ApiState{}
	released := map[int64]bool{}
	rapid.Check(t, func(t *rapid.T) {
		s.Released, s.ReleasedThrough = nil, 0
		clear(released)
		for range rapid.IntRange(1, 3*maxReleased).Draw(t, "releases") {
			v := rapid.Int64Range(1, 2*maxReleased).Draw(t, "version")
			if noteRelease(s, v) {
				if released[v] {
					t.Fatalf("grant %d is given back twice: %v through %d", v, s.GetReleased(), s.GetReleasedThrough())
				}
				released[v] = true
			} else if !released[v] && v > s.GetReleasedThrough() {
				t.Fatalf("grant %d is refused: %v through %d", v, s.GetReleased(), s.GetReleasedThrough())
			}
			if len(s.GetReleased()) > maxReleased {
				t.Fatalf("%d are remembered", len(s.GetReleased()))
			}
		}
	})
}

func TestGrantsOfUsers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	mine := calendar(5, storev1.Calendar_CALENDAR_MONTH, "")
	mine.Scope = storev1.Scope_SCOPE_USER
	atOnce := &storev1.Policy{Name: "at-once", Algorithm: storev1.Algorithm_ALGORITHM_CONCURRENCY, Limit: 5, Scope: storev1.Scope_SCOPE_USER}
	configure1(t, b.client(t, nobody), "any", &storev1.ApiConfig{Policies: []policy{mine, atOnce}})
	got := must(b.client(t, ada).Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any"}))(t)
	left := func(want, atOnce int64) {
		t.Helper()
		l := must(b.client(t, ada).GetApi(t.Context(), &coordinationv1.GetApiRequest{Api: "any"}))(t).GetApi().GetLimits()
		if l[0].GetRemaining() != want || l[1].GetRemaining() != atOnce {
			t.Fatalf("left: %v, want %d and %d", l, want, atOnce)
		}
	}
	left(4, 4)
	req := &coordinationv1.ReleaseRequest{Api: "any", GrantId: got.GetGrantId(), Unused: true}
	_, err := b.client(t, ada).Release(t.Context(), req)
	refused(t, err, connect.CodePermissionDenied, "ROLE_REQUIRED")
	// Another user can neither release it nor see how her limits stand.
	other := must(b.client(t, eve).Release(t.Context(), &coordinationv1.ReleaseRequest{Api: "any", GrantId: got.GetGrantId()}))(t)
	if other.GetReleased() || len(other.GetLimits()) != 0 {
		t.Errorf("released by another: %v", other)
	}
	left(4, 4)
	if back := must(b.client(t, nobody).Release(t.Context(), req))(t); !back.GetReleased() || back.GetLimits()[0].GetRemaining() != 5 {
		t.Errorf("released by a service: %v", back)
	}
	left(5, 5)
	// A user ends a lease of their own, and what else it took is used.
	got = must(b.client(t, ada).Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any", GrantId: "mine"}))(t)
	for _, want := range []bool{true, false} {
		if back := must(b.client(t, ada).Release(t.Context(), &coordinationv1.ReleaseRequest{Api: "any", GrantId: got.GetGrantId()}))(t); back.GetReleased() != want {
			t.Errorf("released: %v, want %t", back, want)
		}
	}
	left(4, 5)
	if back := must(b.client(t, nobody).Release(t.Context(), &coordinationv1.ReleaseRequest{Api: "any", GrantId: "mine", Unused: true}))(t); back.GetReleased() {
		t.Errorf("a lease that was released is given back: %v", back)
	}
	left(4, 5)
}

// A lease that the server has named is renewed by that name. When it is over, the name gives another grant.
func TestAGrantIsRenewed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	configure1(t, c, "any", &storev1.ApiConfig{Policies: []policy{
		{Name: "at-once", Algorithm: storev1.Algorithm_ALGORITHM_CONCURRENCY, Limit: 2}, calendar(9, storev1.Calendar_CALENDAR_MONTH, ""),
	}})
	acquire := func(id string) *coordinationv1.AcquireResponse {
		t.Helper()
		return must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any", GrantId: id}))(t)
	}
	first := acquire("")
	if renewed := acquire(first.GetGrantId()); renewed.GetGrantId() != first.GetGrantId() || renewed.GetLimits()[1].GetRemaining() != 8 {
		t.Errorf("renewed: %v", renewed)
	}
	must(c.Release(t.Context(), &coordinationv1.ReleaseRequest{Api: "any", GrantId: first.GetGrantId()}))(t)
	if another := acquire(first.GetGrantId()); another.GetGrantId() == first.GetGrantId() || another.GetLimits()[1].GetRemaining() != 7 {
		t.Errorf("after it was released: %v", another)
	}
}

func TestTheLastNamedGrantsAreKept(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	configure1(t, c, "any", &storev1.ApiConfig{Policies: []policy{calendar(1000, storev1.Calendar_CALENDAR_MONTH, "")}})
	acquire := func(i int, permits int64) (*coordinationv1.AcquireResponse, error) {
		return c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any", GrantId: fmt.Sprint("turn-", i), Permits: permits})
	}
	const n = 3 * grantGroup
	for i := range n {
		must(acquire(i, 1))(t)
	}
	for i := n - grantGroup; i < n; i++ {
		if got := must(acquire(i, 1))(t); !got.GetAllowed() || got.GetLimits()[0].GetRemaining() != 1000-n {
			t.Fatalf("repeated: %v", got)
		}
	}
	_, err := acquire(n-1, 2)
	refused(t, err, connect.CodeAlreadyExists, "REQUEST_ID_REUSED")
	for _, id := range []string{"turn-" + fmt.Sprint(n-1), must(acquire(n, 1))(t).GetGrantId()} {
		if got := must(c.Release(t.Context(), &coordinationv1.ReleaseRequest{Api: "any", GrantId: id, Unused: true}))(t); !got.GetReleased() {
			t.Errorf("released %s: %v", id, got)
		}
	}
}

// A grant of before the policies changed, or of an API that was deleted since, gives nothing back.
func TestAGrantOfOtherPoliciesGivesNothingBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.client(t, nobody)
	month := calendar(9, storev1.Calendar_CALENDAR_MONTH, "")
	configure1(t, c, "any", &storev1.ApiConfig{Policies: []policy{month}})
	for name, change := range map[string]*coordinationv1.UpdateApiRequest{
		"another policy":  {Config: &coordinationv1.ApiConfig{Policies: []*coordinationv1.Policy{as[*coordinationv1.Policy](calendar(8, storev1.Calendar_CALENDAR_MONTH, ""))}}},
		"limits cleared":  {Clear: []coordinationv1.Clear{coordinationv1.Clear_CLEAR_LIMITS}},
		"another timeout": {Config: &coordinationv1.ApiConfig{Lease: durationpb.New(time.Minute)}},
	} {
		id := must(c.Acquire(t.Context(), &coordinationv1.AcquireRequest{Api: "any"}))(t).GetGrantId()
		change.Api = "any"
		must(c.UpdateApi(t.Context(), change))(t)
		if got := must(c.Release(t.Context(), &coordinationv1.ReleaseRequest{Api: "any", GrantId: id, Unused: true}))(t); got.GetReleased() {
			t.Errorf("%s: %v", name, got)
		}
	}
}
