package session

import (
	"fmt"
	"net/http"
	"sync"
	"testing"

	sessionv1 "holdfast/gen/holdfast/session/v1"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	storev1 "holdfast/gen/holdfast/store/session/v1"
)

// crowd shares one transport between many credentials.
func (b *bundle) crowd(t *testing.T) func(credential string, headers ...string) client {
	t.Helper()
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return func(credential string, headers ...string) client {
		return sessionv1connect.NewSessionServiceClient(&http.Client{Transport: &bearing{credential, headers, transport}}, b.url)
	}
}

// A thousand sessions refresh at once, each of them twice, as two tabs do. None is lost: both tabs get the same tokens, and
// they are good.
func TestAThousandSessionsRefreshAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const users, each = 1000, 1
	service, with := b.key(t, nobody), b.crowd(t)
	sessions := make([]*sessionv1.CreateSessionResponse, users*each)
	var wait sync.WaitGroup
	for u := range users {
		wait.Go(func() {
			for i := range each {
				res, err := with(service).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: fmt.Sprint("user-", u)})
				if err != nil {
					t.Error(err)
					return
				}
				sessions[u*each+i] = res
			}
		})
	}
	if wait.Wait(); t.Failed() {
		return
	}
	begin := make(chan struct{})
	got := make([][2]*sessionv1.RefreshSessionResponse, len(sessions))
	for i, s := range sessions {
		for tab := range 2 {
			wait.Go(func() {
				<-begin
				var err error
				if got[i][tab], err = with(s.GetTokens().GetRefreshToken()).RefreshSession(t.Context(), &sessionv1.RefreshSessionRequest{}); err != nil {
					t.Errorf("session %d, tab %d: %v", i, tab, err)
				}
			})
		}
	}
	close(begin)
	if wait.Wait(); t.Failed() {
		return
	}
	for i, tabs := range got {
		same(t, fmt.Sprint("session ", i), tabs[1].GetTokens(), tabs[0].GetTokens())
		wait.Go(func() {
			res, err := with(tabs[0].GetTokens().GetAccessToken()).GetSession(t.Context(), &sessionv1.GetSessionRequest{})
			if err != nil {
				t.Errorf("session %d: %v", i, err)
				return
			}
			if s := res.GetSession(); s.GetSessionId() != sessions[i].GetSession().GetSessionId() || s.GetOwner() != fmt.Sprint("user-", i/each) {
				t.Errorf("session %d is %v", i, s)
			}
		})
	}
	wait.Wait()
}

// Many present the same token at once. All get the same, whatever the number of servers.
func TestOneTokenManyPresenters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	elsewhere := serve(t, b.Bundle, b.box)
	in := b.signIn(t, ada)
	const presenters = 32
	got := make([]*sessionv1.RefreshSessionResponse, presenters)
	var wait sync.WaitGroup
	servers := []func(string, ...string) client{b.crowd(t), elsewhere.crowd(t)}
	for i := range presenters {
		wait.Go(func() {
			var err error
			if got[i], err = servers[i%2](in.GetTokens().GetRefreshToken()).RefreshSession(t.Context(), &sessionv1.RefreshSessionRequest{}); err != nil {
				t.Errorf("presenter %d: %v", i, err)
			}
		})
	}
	if wait.Wait(); t.Failed() {
		return
	}
	for _, res := range got {
		same(t, "the tokens", res.GetTokens(), got[0].GetTokens())
	}
	must(b.refresh(t, got[0].GetTokens().GetRefreshToken()))(t)
	b.peek(t, ada, func(s *storev1.UserSessions) {
		if r := s.GetSessions()[in.GetSession().GetSessionId()]; r.GetGeneration() != 3 {
			t.Errorf("generation %d", r.GetGeneration())
		}
	})
}

// Sessions of one user, made at once, never pass the limit.
func TestSignInsAtOnceKeepTheLimit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	service, with := b.key(t, nobody), b.crowd(t)
	must(with(service).PutSessionSettings(t.Context(), &sessionv1.PutSessionSettingsRequest{Settings: &sessionv1.SessionSettings{MaxSessions: 3}}))(t)
	var wait sync.WaitGroup
	for range 20 {
		wait.Go(func() {
			if _, err := with(service).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: string(ada)}); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	list := must(with(service, "Holdfast-User: "+string(ada)).ListSessions(t.Context(), &sessionv1.ListSessionsRequest{}))(t)
	if len(list.GetSessions()) != 3 {
		t.Errorf("she has %d sessions", len(list.GetSessions()))
	}
}

// What the journal keeps of a refresh is about that session, however many others the user has.
func TestTheJournalOfOneSession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.signIn(t, ada)
	note := func(token string) (next string, bytes int) {
		res := must(b.refresh(t, token))(t)
		err := b.sql(t).QueryRow(t.Context(), "SELECT octet_length(undo::text) FROM holdfast.events WHERE tenant_id = $1 ORDER BY version DESC LIMIT 1",
			string(b.Tenant)).Scan(&bytes)
		if err != nil {
			t.Fatal(err)
		}
		return res.GetTokens().GetRefreshToken(), bytes
	}
	token, _ := note(first.GetTokens().GetRefreshToken())
	token, alone := note(token)
	for range 9 {
		b.signIn(t, ada)
	}
	_, among := note(token)
	t.Logf("%d bytes alone, %d among ten", alone, among)
	if among > alone+50 {
		t.Errorf("a refresh is noted in %d bytes alone, and in %d among ten sessions", alone, among)
	}
}
