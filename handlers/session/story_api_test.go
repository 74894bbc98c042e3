package session

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"holdfast/db/dbtest"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/seal"
)

// A thief has a refresh token, and uses it after its owner did. Both are signed out, and the audit says why.
func TestStolenRefreshToken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.signIn(t, ada)
	second := must(b.refresh(t, first.GetTokens().GetRefreshToken()))(t)
	third := must(b.refresh(t, second.GetTokens().GetRefreshToken()))(t)
	open := must(b.with(t, third.GetTokens().GetAccessToken()).PutConnection(t.Context(),
		opening(typev1.Modality_MODALITY_VOICE)))(t)
	if !presence(t, b).GetOnline() {
		t.Errorf("she is not there, with %v", open)
	}

	_, err := b.refresh(t, first.GetTokens().GetRefreshToken())
	revoked.check(t, err)
	for _, token := range []string{first.GetTokens().GetRefreshToken(), second.GetTokens().GetRefreshToken(), third.GetTokens().GetRefreshToken()} {
		_, err := b.refresh(t, token)
		revoked.check(t, err)
	}
	for _, token := range []string{second.GetTokens().GetAccessToken(), third.GetTokens().GetAccessToken()} {
		eventually(t, "the access token is refused", func() bool {
			_, err := b.with(t, token).GetSession(t.Context(), &sessionv1.GetSessionRequest{})
			return reason(err) == "SESSION_REVOKED"
		})
	}
	if p := presence(t, b); p.GetOnline() || len(p.GetConnections()) != 0 {
		t.Errorf("her connections are %v", p)
	}
	want := []string{"SIGNED_IN", "TOKENS_REFRESHED", "TOKENS_REFRESHED", "REUSE_DETECTED", "SESSION_ENDED REUSE_DETECTED"}
	if got := b.events(t, ada); !slices.Equal(got, want) {
		t.Errorf("the audit has %q, want %q", got, want)
	}
}

func presence(t *testing.T, b *bundle) *sessionv1.Presence {
	t.Helper()
	return must(b.with(t, b.key(t, nobody)).ListSessions(t.Context(), &sessionv1.ListSessionsRequest{User: string(ada)}))(t).GetPresence()
}

// The response of a refresh is lost. The client tries again with the token that it has, gets what was lost, and goes on.
func TestLostResponseThenRetry(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.signIn(t, ada)
	lost := must(b.refresh(t, first.GetTokens().GetRefreshToken()))(t)
	again := must(b.refresh(t, first.GetTokens().GetRefreshToken()))(t)
	same(t, "the retry", again, lost)
	must(b.with(t, again.GetTokens().GetAccessToken()).GetSession(t.Context(), &sessionv1.GetSessionRequest{}))(t)
	// Another process gives the same.
	elsewhere := serve(t, b.Bundle, b.box)
	same(t, "the retry at another server", must(elsewhere.refresh(t, first.GetTokens().GetRefreshToken()))(t).GetTokens(), lost.GetTokens())
	if got := b.events(t, ada); !slices.Equal(got, []string{"SIGNED_IN", "TOKENS_REFRESHED"}) {
		t.Errorf("the audit has %q", got)
	}
	// Once the new token is used, the old one is not good any more, however soon it comes.
	must(b.refresh(t, again.GetTokens().GetRefreshToken()))(t)
	_, err := b.refresh(t, first.GetTokens().GetRefreshToken())
	revoked.check(t, err)
}

// After the grace a retry is a reuse.
func TestRetryAfterTheGrace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.signIn(t, ada)
	next := must(b.refresh(t, first.GetTokens().GetRefreshToken()))(t)
	b.change(t, ada, func(s *storev1.UserSessions, now time.Time) {
		s.Sessions[first.GetSession().GetSessionId()].IssueTime = timestamppb.New(now.Add(-31 * time.Second))
	})
	_, err := b.refresh(t, first.GetTokens().GetRefreshToken())
	revoked.check(t, err)
	_, err = b.refresh(t, next.GetTokens().GetRefreshToken())
	revoked.check(t, err)
}

// A response to a sign-in is lost, too.
func TestLostSignIn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.key(t, ada)
	req := &sessionv1.CreateSessionRequest{RequestId: "r-1", Device: &typev1.Device{Name: "laptop"}}
	first := must(b.with(t, key).CreateSession(t.Context(), req))(t)
	same(t, "the retry", must(b.with(t, key).CreateSession(t.Context(), req))(t), first)
	same(t, "the retry at another server", must(serve(t, b.Bundle, b.box).with(t, key).CreateSession(t.Context(), req))(t), first)
	_, err := b.with(t, key).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{RequestId: "r-1"})
	refusal{connect.CodeAlreadyExists, "REQUEST_ID_REUSED"}.check(t, err)
	gone := refusal{connect.CodeFailedPrecondition, "TOKENS_GONE"}
	_, err = b.with(t, b.key(t, ada)).CreateSession(t.Context(), req)
	gone.check(t, err) // another credential
	must(b.refresh(t, first.GetTokens().GetRefreshToken()))(t)
	_, err = b.with(t, key).CreateSession(t.Context(), req)
	gone.check(t, err) // refreshed since
}

// watchOf watches an item.
func (b *bundle) watchOf(t *testing.T, credential string, item *watchv1.Item) *connect.ServerStreamForClient[watchv1.WatchResponse] {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	item.ItemId = "i"
	stream := must(watchv1connect.NewWatchServiceClient(b.http(t, credential), b.url).Watch(ctx, &watchv1.WatchRequest{Items: []*watchv1.Item{item}}))(t)
	t.Cleanup(func() { stream.Close() })
	return stream
}

// watchSession follows the sessions of the user who has a session's token.
func (b *bundle) watchSession(t *testing.T, token string) *watched {
	t.Helper()
	return &watched{stream: b.watchOf(t, token, &watchv1.Item{Of: &watchv1.Item_Session{Session: &watchv1.SessionItem{}}})}
}

func (b *bundle) watchConversation(t *testing.T, credential string) *connect.ServerStreamForClient[watchv1.WatchResponse] {
	t.Helper()
	return b.watchOf(t, credential, &watchv1.Item{Of: &watchv1.Item_Conversation{Conversation: &watchv1.ConversationItem{ConversationId: c1}}})
}

// watched is what a watcher knows of its own session and of its user's connections.
type watched struct {
	stream      *connect.ServerStreamForClient[watchv1.WatchResponse]
	Session     *sessionv1.Session
	Connections []*sessionv1.Connection
}

// until reads messages until what is known is what is waited for.
func (w *watched) until(t *testing.T, what string, is func(*watched) bool) *watched {
	t.Helper()
	for w.stream.Receive() {
		c := w.stream.Msg().GetChanged()
		for _, thing := range c.GetPut() {
			if s := thing.GetSession(); s.GetCurrent() {
				w.Session = s
			}
			if p := thing.GetPresence(); p != nil {
				w.Connections = p.GetConnections()
			}
		}
		if c != nil && is(w) {
			return w
		}
	}
	t.Fatalf("%s: the stream ended with %v", what, w.stream.Err())
	return nil
}

// next reads one change.
func (w *watched) next(t *testing.T) *watched {
	t.Helper()
	return w.until(t, "a change", func(*watched) bool { return true })
}

// Sign-out everywhere: every stream of hers ends, in every process, whatever it watches; the last word says why.
func TestSignOutEverywhereWhileStreamsAreOpen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	elsewhere := serve(t, b.Bundle, b.box)
	laptop, phone := b.signIn(t, ada), b.signIn(t, ada)
	create(t, b.conversations(t, laptop.GetTokens().GetAccessToken()))

	here, there := b.watchSession(t, laptop.GetTokens().GetAccessToken()), elsewhere.watchSession(t, phone.GetTokens().GetAccessToken())
	here.next(t)
	there.next(t)
	talk := elsewhere.watchConversation(t, phone.GetTokens().GetAccessToken())
	if !talk.Receive() {
		t.Fatal(talk.Err())
	}

	res := must(b.with(t, b.key(t, nobody)).EndSessions(t.Context(), &sessionv1.EndSessionsRequest{Scope: sessionv1.EndScope_END_SCOPE_USER, User: string(ada)}))(t)
	if len(res.GetSessionIds()) != 2 {
		t.Errorf("revoked %v", res)
	}
	for name, w := range map[string]*watched{"here": here, "elsewhere": there} {
		last := w.until(t, name, func(m *watched) bool { return m.Session.GetEndReason() != 0 })
		if last.Session.GetEndReason() != sessionv1.EndReason_END_REASON_REVOKED {
			t.Errorf("%s the last word is %v", name, last)
		}
		for w.stream.Receive() {
		}
		revoked.check(t, w.stream.Err())
	}
	for talk.Receive() {
		if talk.Msg().GetHeartbeat() == nil {
			t.Errorf("after the revocation: %v", talk.Msg())
		}
	}
	revoked.check(t, talk.Err())
	if got := b.events(t, ada); !slices.Equal(got[2:], []string{"SESSION_ENDED REVOKED", "SESSION_ENDED REVOKED"}) {
		t.Errorf("the audit has %q", got)
	}
}

// All but this one.
func TestSignOutEverywhereElse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	this, other := b.signIn(t, ada), b.signIn(t, ada)
	c := b.with(t, this.GetTokens().GetAccessToken())
	res := must(c.EndSessions(t.Context(), &sessionv1.EndSessionsRequest{Scope: sessionv1.EndScope_END_SCOPE_OTHERS}))(t)
	if !slices.Equal(res.GetSessionIds(), []string{other.GetSession().GetSessionId()}) {
		t.Errorf("revoked %v", res)
	}
	_, err := b.refresh(t, other.GetTokens().GetRefreshToken())
	revoked.check(t, err)
	must(b.refresh(t, this.GetTokens().GetRefreshToken()))(t)
}

// An administrator's service ends everybody's sessions, and the tenant next door keeps its own.
func TestSignEverybodyOut(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := serve(t, dbtest.New(t), b.box)
	stays := other.signIn(t, ada)
	const users = 230 // more than a page
	service, with := b.key(t, nobody), b.crowd(t)
	tokens := make([]string, users)
	var wait sync.WaitGroup
	for i := range users {
		wait.Go(func() {
			res, err := with(service).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: fmt.Sprint("user-", i)})
			if err != nil {
				t.Error(err)
			}
			tokens[i] = res.GetTokens().GetRefreshToken()
		})
	}
	wait.Wait()
	_, err := b.with(t, b.key(t, ada)).EndSessions(t.Context(), &sessionv1.EndSessionsRequest{Scope: sessionv1.EndScope_END_SCOPE_TENANT})
	refusal{connect.CodePermissionDenied, "ROLE_REQUIRED"}.check(t, err)
	_, err = with(service).EndSessions(t.Context(), &sessionv1.EndSessionsRequest{Scope: sessionv1.EndScope_END_SCOPE_TENANT, User: "ada"})
	fieldInvalid.check(t, err)
	res := must(with(service).EndSessions(t.Context(), &sessionv1.EndSessionsRequest{Scope: sessionv1.EndScope_END_SCOPE_TENANT}))(t)
	if res.GetSessionCount() != users || len(res.GetSessionIds()) != users {
		t.Errorf("ended %d, named %d", res.GetSessionCount(), len(res.GetSessionIds()))
	}
	for _, token := range tokens {
		wait.Go(func() {
			_, err := with(token).RefreshSession(t.Context(), &sessionv1.RefreshSessionRequest{})
			revoked.check(t, err)
		})
	}
	wait.Wait()
	must(other.refresh(t, stays.GetTokens().GetRefreshToken()))(t)
}

// A user who signs in again on the same device gets new tokens, and those of before are not good any more.
func TestSigningInAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	before, another := b.signIn(t, ada), b.signIn(t, ada)
	must(b.with(t, before.GetTokens().GetAccessToken()).UpdateSession(t.Context(), &sessionv1.UpdateSessionRequest{Session: &sessionv1.Session{ActiveConversationId: c1}}))(t)
	must(b.with(t, another.GetTokens().GetAccessToken()).UpdateSession(t.Context(), &sessionv1.UpdateSessionRequest{Session: &sessionv1.Session{ActiveConversationId: "c2"}}))(t)
	key := b.with(t, b.key(t, ada))
	again := must(key.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{ReplaceSessionId: before.GetSession().GetSessionId()}))(t)
	if again.GetSession().GetActiveConversationId() != c1 || again.GetTokens().GetAccessToken() == before.GetTokens().GetAccessToken() {
		t.Errorf("again: %v", again.GetSession())
	}
	_, err := b.refresh(t, before.GetTokens().GetRefreshToken())
	revoked.check(t, err)
	must(b.refresh(t, another.GetTokens().GetRefreshToken()))(t)
	// Another user's session is none of hers.
	eves := b.signIn(t, "eve")
	must(key.CreateSession(t.Context(), &sessionv1.CreateSessionRequest{ReplaceSessionId: eves.GetSession().GetSessionId()}))(t)
	must(b.refresh(t, eves.GetTokens().GetRefreshToken()))(t)
	if got := b.events(t, ada); !slices.Contains(got, "SESSION_ENDED REPLACED") {
		t.Errorf("the audit has %q", got)
	}
}

// A revoked API key's streams end as a session's do.
func TestARevokedKeysStreamEnds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.key(t, ada)
	c := b.conversations(t, key)
	create(t, c)
	stream := b.watchConversation(t, key)
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	if err := b.Operator.RevokeKey(t.Context(), b.Tenant, strings.Split(key, "_")[1]); err != nil {
		t.Fatal(err)
	}
	for stream.Receive() {
	}
	invalid.check(t, stream.Err())
}

// At the limit a new session ends the oldest, or is refused, as the tenant wants it.
func TestEvictionAtTheLimit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service := b.with(t, b.key(t, nobody))
	configure := func(s *sessionv1.SessionSettings) {
		t.Helper()
		must(service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: s}))(t)
	}
	configure(&sessionv1.SessionSettings{MaxSessions: 2})
	first, second := b.signIn(t, ada), b.signIn(t, ada)
	w := b.watchSession(t, first.GetTokens().GetAccessToken())
	w.next(t)
	third := b.signIn(t, ada)
	if !slices.Equal(third.GetEndedSessionIds(), []string{first.GetSession().GetSessionId()}) {
		t.Errorf("evicted %v", third)
	}
	last := w.until(t, "the end", func(m *watched) bool { return m.Session.GetEndReason() != 0 })
	if last.Session.GetEndReason() != sessionv1.EndReason_END_REASON_EVICTED {
		t.Errorf("the last word is %v", last)
	}
	_, err := b.refresh(t, first.GetTokens().GetRefreshToken())
	revoked.check(t, err)

	configure(&sessionv1.SessionSettings{MaxSessions: 2, LimitPolicy: sessionv1.SessionLimitPolicy_SESSION_LIMIT_POLICY_REFUSE})
	_, err = b.with(t, b.key(t, ada)).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{})
	refusal{connect.CodeResourceExhausted, "LIMIT_REACHED"}.check(t, err)
	must(b.with(t, second.GetTokens().GetAccessToken()).EndSessions(t.Context(), &sessionv1.EndSessionsRequest{}))(t)
	b.signIn(t, ada)
	want := []string{"SIGNED_IN", "SIGNED_IN", "SESSION_ENDED EVICTED", "SIGNED_IN", "SIGN_IN_REFUSED", "SESSION_ENDED SIGNED_OUT", "SIGNED_IN"}
	if got := b.events(t, ada); !slices.Equal(got, want) {
		t.Errorf("the audit has %q, want %q", got, want)
	}

	// Another user has a limit of his own, and settings that contradict themselves are refused.
	b.signIn(t, "eve")
	_, err = service.PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: &sessionv1.SessionSettings{
		IdleTimeout: durationpb.New(2 * time.Hour), AbsoluteTimeout: durationpb.New(time.Hour),
	}})
	refusal{connect.CodeInvalidArgument, "FIELD_INVALID"}.check(t, err)
}

// Time is a read rule: from the instant on at which it is over, a session opens nothing, whether or not that is written.
func TestIdleAndAbsoluteTimeOut(t *testing.T) {
	t.Parallel()
	box, err := seal.NewBox(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	b := serveWith(t, dbtest.New(t), box, object.Config{}) // no timer runs here; another test's server may run it, late
	for name, tt := range map[string]struct {
		pass func(*storev1.SessionRecord, time.Time)
		why  sessionv1.EndReason
	}{
		"idle":     {func(r *storev1.SessionRecord, now time.Time) { r.ActiveTime = timestamppb.New(now.Add(-time.Hour)) }, sessionv1.EndReason_END_REASON_IDLE_TIMEOUT},
		"absolute": {func(r *storev1.SessionRecord, now time.Time) { r.ExpireTime = timestamppb.New(now) }, sessionv1.EndReason_END_REASON_ABSOLUTE_TIMEOUT},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			user := identity.User(name)
			in := b.signIn(t, user)
			id := in.GetSession().GetSessionId()
			b.change(t, user, func(s *storev1.UserSessions, now time.Time) { tt.pass(s.GetSessions()[id], now) })
			eventually(t, "the access token is refused", func() bool {
				_, err := b.with(t, in.GetTokens().GetAccessToken()).GetSession(t.Context(), &sessionv1.GetSessionRequest{})
				return reason(err) == "SESSION_EXPIRED"
			})
			_, err := b.refresh(t, in.GetTokens().GetRefreshToken())
			expired.check(t, err)
			got := must(b.with(t, b.key(t, nobody)).GetSession(t.Context(), &sessionv1.GetSessionRequest{SessionId: id}))(t)
			if got.GetSession().GetEndReason() != tt.why {
				t.Errorf("it ended with %v", got)
			}
		})
	}
}
