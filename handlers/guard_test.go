package handlers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/db"
	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/session/credential"
	"holdfast/identity"
)

// vault is what there is of credentials, in a test.
type vault struct {
	mu       sync.Mutex
	keys     map[string]db.Key
	sessions map[string]*storev1.SessionRecord
	err      error
	asked    int
}

func (v *vault) find(_ context.Context, keys []string, sessions []db.SessionRef) (db.Found, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked++
	f := db.Found{Keys: make([][]db.Key, len(keys)), Sessions: make([][]db.FoundSession, len(sessions)), Now: time.Now()}
	for i, id := range keys {
		if k, ok := v.keys[id]; ok {
			f.Keys[i] = []db.Key{k}
		}
	}
	for i, ref := range sessions {
		if r, ok := v.sessions[ref.Session]; ok {
			f.Sessions[i] = []db.FoundSession{{Tenant: "acme", User: "ada", Record: protojson.Format(r)}}
		}
	}
	return f, v.err
}

// sessionOf returns the id of a session of the user that a vault has.
func sessionOf(name string) string {
	return credential.NewSessionID(credential.ObjectID("acme", "ada"), []byte((name + "      ")[:credential.SessionRandomLen]))
}

func (v *vault) set(change func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change()
}

// Streams last as long as what they rest on, and no longer than two seconds more.
func TestGuard(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, key := NewKey("acme", "ada", "")
		live := func() *storev1.SessionRecord {
			return &storev1.SessionRecord{
				ActiveTime: timestamppb.Now(), IdleTimeout: durationpb.New(time.Minute), ExpireTime: timestamppb.New(time.Now().Add(time.Hour)),
			}
		}
		s1, s2, s3 := sessionOf("s1"), sessionOf("s2"), sessionOf("s3")
		v := &vault{keys: map[string]db.Key{key.ID: key}, sessions: map[string]*storev1.SessionRecord{s1: live(), s2: live(), s3: live()}}
		a := NewAuthenticator(AuthConfig{Find: v.find, Now: time.Now})
		all := map[string]string{}
		follow := func(name string, b backing) (stop func()) {
			return a.guard.follow(b, func(err error) { v.set(func() { all[name] = refusal(err) }) })
		}
		now := func() (ended map[string]string, asked int) {
			v.set(func() { ended, asked = maps.Clone(all), v.asked })
			return ended, asked
		}
		began := time.Now()
		stops := []func(){
			follow("key", backing{keyID: key.ID, keyHash: [32]byte(key.SecretHash)}), follow("revoked", backing{session: s1}),
			follow("idle", backing{session: s2}), follow("gone", backing{session: s3}), follow("gone, too", backing{session: s3}),
			follow("JWT", backing{expires: began.Add(90 * time.Second)}), follow("nothing", backing{}),
		}
		wait := func(d time.Duration) {
			t.Helper()
			<-time.After(d)
			synctest.Wait()
		}
		wait(10 * time.Second)
		if ended, asked := now(); len(ended) != 0 || asked != 10 {
			t.Errorf("asked %d times in 10 s, ended for nothing: %v", asked, ended)
		}
		// A database that is away ends nothing.
		v.set(func() { v.err = db.ErrUnavailable; clear(v.keys) })
		wait(3 * time.Second)
		if ended, _ := now(); len(ended) != 0 {
			t.Errorf("ended while the database was away: %v", ended)
		}
		v.set(func() {
			v.err = nil
			v.sessions[s1].End = &storev1.SessionEnd{Reason: storev1.EndReason_END_REASON_REUSE_DETECTED}
			delete(v.sessions, s3)
		})
		wait(2 * time.Second)
		if ended, _ := now(); len(ended) != 4 || ended["key"] != "unauthenticated CREDENTIAL_INVALID" || ended["revoked"] != "unauthenticated SESSION_REVOKED" ||
			ended["gone"] != "unauthenticated SESSION_REVOKED" || ended["gone, too"] != "unauthenticated SESSION_REVOKED" {
			t.Errorf("ended: %v", ended)
		}
		<-time.After(time.Until(began.Add(62 * time.Second)))
		synctest.Wait()
		if ended, _ := now(); ended["idle"] != "unauthenticated SESSION_EXPIRED" || ended["JWT"] != "" {
			t.Errorf("ended: %v", ended)
		}
		<-time.After(time.Until(began.Add(92 * time.Second)))
		synctest.Wait()
		if ended, _ := now(); ended["JWT"] != "unauthenticated CREDENTIAL_INVALID" || ended["nothing"] != "" {
			t.Errorf("ended: %v", ended)
		}
		// With the last stream its goroutine ends; synctest would say so otherwise. It starts again with the next.
		for _, stop := range stops {
			stop()
		}
		wait(0)
		_, asked := now()
		wait(5 * time.Second)
		if _, again := now(); again != asked {
			t.Error("it goes on asking for nobody")
		}
		v.set(func() { v.sessions[s1].End = nil; v.sessions[s1].ActiveTime = timestamppb.Now() })
		stop := follow("again", backing{session: s1})
		wait(2 * time.Second)
		if _, again := now(); again != asked+1 && again != asked+2 {
			t.Errorf("asked %d times", again-asked)
		}
		stop()
	})
}

// Thousands of streams are asked for in few round trips.
func TestGuardAsksForManyAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := &vault{}
		a := NewAuthenticator(AuthConfig{Find: v.find, Now: time.Now})
		ended := 0
		var stops []func()
		for i := range 2500 {
			stops = append(stops, a.guard.follow(backing{session: fmt.Sprint("s", i)}, func(error) { v.set(func() { ended++ }) }))
		}
		<-time.After(guardEvery)
		synctest.Wait()
		v.set(func() {
			if v.asked != 25 || ended != 2500 {
				t.Errorf("asked %d times, ended %d", v.asked, ended)
			}
		})
		for _, stop := range stops {
			stop()
		}
	})
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	b := newBackoff(3)
	now := time.Unix(1e9, 0)
	for i := range 3 {
		if b.failed("eve", "", now); b.wait("eve", "", now) != 0 {
			t.Errorf("waits after %d", i+1)
		}
	}
	var waits []time.Duration
	for range 8 {
		b.failed("eve", "", now)
		waits = append(waits, b.wait("eve", "", now))
	}
	want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute}
	if fmt.Sprint(waits) != fmt.Sprint(want) {
		t.Errorf("waits %v, want %v", waits, want)
	}
	if b.wait("eve", "", now.Add(59*time.Second)) != time.Second || b.wait("eve", "", now.Add(time.Minute)) != 0 {
		t.Error("it ends at another time")
	}
	if b.wait("ada", "", now) != 0 {
		t.Error("another source waits")
	}
	// Ten minutes later all is forgotten.
	now = now.Add(10 * time.Minute)
	if b.failed("eve", "", now); b.wait("eve", "", now) != 0 {
		t.Error("nothing is forgotten")
	}

	// By session: those who failed wait, from wherever; who never failed does not.
	for i := range 5 {
		if n := b.failed(fmt.Sprint("eve-", i), "s1", now); n != int64(i+1) {
			t.Errorf("%d failures, counted %d", i+1, n)
		}
	}
	if b.wait("eve-0", "s1", now) != 2*time.Second || b.wait("eve-0", "s2", now) != 0 || b.wait("ada", "s1", now) != 0 {
		t.Errorf("by session: %v, %v, %v", b.wait("eve-0", "s1", now), b.wait("eve-0", "s2", now), b.wait("ada", "s1", now))
	}
	// The memory is bounded.
	for i := range trackedFailures + 10 {
		b.failed(fmt.Sprint("other-", i), fmt.Sprint("session-", i), now)
	}
	if b.sources.Len() != trackedFailures || b.sessions.Len() != trackedFailures {
		t.Errorf("%d sources, %d sessions", b.sources.Len(), b.sessions.Len())
	}
}

func TestSourceOf(t *testing.T) {
	t.Parallel()
	const forwarded = "X-Forwarded-For"
	for _, tt := range []struct {
		remote, header string
		hops           int
		said           []string
		want           string
	}{
		{"192.0.2.1:1234", "", 1, []string{"198.51.100.7"}, "192.0.2.1"},
		{"192.0.2.1:1234", forwarded, 1, nil, "192.0.2.1"},
		{"192.0.2.1:1234", forwarded, 1, []string{"10.0.0.1, 198.51.100.7"}, "198.51.100.7"},
		{"192.0.2.1:1234", forwarded, 2, []string{"6.6.6.6, 198.51.100.7,203.0.113.9"}, "198.51.100.7"},
		{"192.0.2.1:1234", forwarded, 2, []string{"6.6.6.6, 198.51.100.7", "203.0.113.9"}, "198.51.100.7"},
		{"192.0.2.1:1234", forwarded, 3, []string{"198.51.100.7"}, "198.51.100.7"}, // called past a proxy
		{"[2001:db8:1:2:3::4]:1234", "", 1, nil, "2001:db8:1:2::/64"},
		{"[::ffff:192.0.2.1]:1234", "", 1, nil, "192.0.2.1"},
		{"@", "", 1, nil, "@"},
	} {
		r := &http.Request{RemoteAddr: tt.remote, Header: http.Header{}}
		for _, said := range tt.said {
			r.Header.Add(forwarded, said)
		}
		if got := sourceOf(r, tt.header, tt.hops); got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

// Repeated bad credentials have to wait, whatever they are; a credential that was verified a moment ago does not.
func TestBadCredentialsHaveToWait(t *testing.T) {
	t.Parallel()
	var k keyring
	good := k.add("acme", "ada")
	now := time.Unix(1e9, 0)
	a := NewAuthenticator(AuthConfig{Find: k.find, Now: func() time.Time { return now }})
	ask := func(token, address string) error {
		r := bearer(t.Context(), token)
		r.RemoteAddr = address + ":1"
		_, err := a.Authenticate(r)
		return err
	}
	if err := ask(good, "192.0.2.1"); err != nil {
		t.Fatal(err)
	}
	for i := range freeOfSource + 1 {
		bad, _ := NewKey("acme", "", "")
		if got := refusal(ask([]string{bad, fmt.Sprint("hfk_", i), fmt.Sprint("x", i)}[i%3], "192.0.2.1")); got != "unauthenticated CREDENTIAL_INVALID" {
			t.Fatalf("bad credential %d: %s", i, got)
		}
	}
	err := ask(good+"x", "192.0.2.1")
	var p *problem.Error
	if !errors.As(err, &p) || p.Reason != errorv1.Reason_REASON_AUTH_BACKOFF || p.RetryAfter <= 0 {
		t.Errorf("the next: %v", err)
	}
	if err := ask(good, "192.0.2.1"); err != nil {
		t.Errorf("the good one, from there: %v", err)
	}
	if got := refusal(ask(good+"x", "192.0.2.2")); got != "unauthenticated CREDENTIAL_INVALID" {
		t.Errorf("from elsewhere: %s", got)
	}
	now = now.Add(time.Minute)
	if got := refusal(ask(good+"y", "192.0.2.1")); got != "unauthenticated CREDENTIAL_INVALID" {
		t.Errorf("later: %s", got)
	}
}

// Bad credentials at full speed cost few round trips, and a good one that nobody has seen before passes among them.
func TestBadCredentialsCostFewLookUps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var k keyring
		named, fresh := k.add("acme", ""), k.add("acme", "ada")
		a := NewAuthenticator(AuthConfig{Find: k.find, Now: time.Now})
		ask := func(token string) string {
			_, err := a.Authenticate(bearer(t.Context(), token))
			return refusal(err)
		}
		random := func() string { token, _ := NewKey("acme", "", ""); return token }
		for range freeOfSource + 1 {
			ask(random())
		}
		// A real key's id, with a thousand secrets that are not its own.
		before := k.asked.Load()
		for range 1000 {
			if got := ask(named[:20] + random()[20:]); got != "resource_exhausted AUTH_BACKOFF" {
				t.Fatalf("a made-up secret: %s", got)
			}
		}
		// One look-up a second: each of them paused.
		if n := k.asked.Load() - before; n > 2 {
			t.Errorf("a real id was looked up %d times", n)
		}
		if got := ask(named); got != "" {
			t.Errorf("the key that the id is of: %s", got)
		}
		// Random ids, all at once, with a good one in the midst of them.
		before = k.asked.Load()
		var wait sync.WaitGroup
		for i := range 5000 {
			wait.Go(func() {
				token, want := random(), "resource_exhausted AUTH_BACKOFF"
				if i == 2500 {
					token, want = fresh, ""
				}
				if got := ask(token); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
		wait.Wait()
		if n := k.asked.Load() - before; n > 60 {
			t.Errorf("5,000 credentials took %d round trips", n)
		}
		<-time.After(time.Second) // the last look-up has paused
	})
}

// A database that is away is no bad credential.
func TestDatabaseAwayIsNotABadToken(t *testing.T) {
	t.Parallel()
	o := credential.Origin{Session: credential.NewSessionID(credential.ObjectID("acme", "ada"), []byte("random")), FamilyKey: make([]byte, 32)}
	token := o.Issue(credential.Access).Bearer()
	v := &vault{err: db.ErrUnavailable}
	a := NewAuthenticator(AuthConfig{Find: v.find, Now: time.Now})
	for range 2 * freeOfSource {
		if _, err := a.Authenticate(bearer(t.Context(), token)); refusal(err) != "unavailable DATABASE_UNAVAILABLE" {
			t.Fatalf("away: %v", err)
		}
	}
}

// A session's token is looked up once in two seconds, never trusted beyond its time, and its user's activity is written
// where the last is a minute old.
func TestSessionTokensAreCached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := credential.Origin{Session: credential.NewSessionID(credential.ObjectID("acme", "ada"), []byte("random")), Generation: 1, FamilyKey: make([]byte, 32)}
		token := o.Issue(credential.Access)
		r := &storev1.SessionRecord{
			ActiveTime: timestamppb.Now(), IdleTimeout: durationpb.New(time.Hour), ExpireTime: timestamppb.New(time.Now().Add(90 * time.Second)),
			FamilyKey: o.FamilyKey, AccessHash: token.Hash(), AccessExpireTime: timestamppb.New(time.Now().Add(10 * time.Minute)),
		}
		v := &vault{sessions: map[string]*storev1.SessionRecord{o.Session: r}}
		touched := 0
		a := NewAuthenticator(AuthConfig{Find: v.find, Now: time.Now, Touch: func(context.Context, identity.Identity) error {
			touched++
			r.ActiveTime = timestamppb.Now()
			return nil
		}})
		ask := func() (admitted, error) { return a.admit(bearer(t.Context(), token.Bearer())) }
		for range 10 {
			in, err := ask()
			if want := (identity.Identity{Tenant: "acme", User: "ada", Session: o.Session}); err != nil || in.who != want || in.touch {
				t.Fatalf("got %+v, %v", in, err)
			}
		}
		if v.asked != 1 {
			t.Errorf("asked %d times", v.asked)
		}
		<-time.After(time.Minute)
		for range 10 {
			in, err := ask()
			if err != nil {
				t.Fatal(err)
			}
			if in.touch {
				if err := a.touch(t.Context(), &in); err != nil {
					t.Fatal(err)
				}
			}
		}
		if touched != 1 {
			t.Errorf("written %d times", touched)
		}
		// One millisecond before its end it is good, and then it is not, although it was verified a moment ago.
		<-time.After(time.Until(r.GetExpireTime().AsTime()) - time.Millisecond)
		if _, err := ask(); err != nil {
			t.Error(err)
		}
		<-time.After(time.Millisecond)
		if _, err := ask(); refusal(err) != "unauthenticated SESSION_EXPIRED" {
			t.Errorf("at its end: %v", err)
		}
	})
}

// A thousand look-ups at once are few round trips, each of which has an answer for everybody in it.
func TestLookUpsShareRoundTrips(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := &vault{sessions: map[string]*storev1.SessionRecord{}}
		slow := func(ctx context.Context, keys []string, sessions []db.SessionRef) (db.Found, error) {
			<-time.After(time.Millisecond)
			return v.find(ctx, keys, sessions)
		}
		f := &finder{find: slow, inFlight: findsInFlight}
		id := func(i int) string { return fmt.Sprintf("%s%010d", credential.ObjectID("acme", "ada"), i) }
		var wait sync.WaitGroup
		for i := range 1000 {
			name := strings.NewReplacer("0", "a", "1", "b", "8", "c", "9", "d").Replace(id(i))
			if i%2 == 0 {
				v.set(func() { v.sessions[name] = &storev1.SessionRecord{Generation: int32(i)} })
			}
			wait.Go(func() {
				found, now, err := f.findSession(t.Context(), name)
				if err != nil || now.IsZero() || len(found) != (i+1)%2 || i%2 == 0 && found[0].Record != protojson.Format(&storev1.SessionRecord{Generation: int32(i)}) {
					t.Errorf("%d: %v, %v", i, found, err)
				}
			})
		}
		wait.Wait()
		v.set(func() {
			if v.asked > 20 {
				t.Errorf("asked %d times", v.asked)
			}
		})
	})
}
