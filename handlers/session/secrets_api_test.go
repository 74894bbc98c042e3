package session

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/types/known/timestamppb"

	sessionv1 "holdfast/gen/holdfast/session/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/object"
	"holdfast/object/objecttest"
)

// Nothing that the database has, and nothing that a server logs at its most talkative, is a token or the secret of one.
func TestNoTokenIsStoredOrLogged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.key(t, ada)
	var tokens []string
	had := func(k *sessionv1.Tokens) { tokens = append(tokens, k.GetAccessToken(), k.GetRefreshToken()) }

	// All that happens to tokens: they are made, made again, used, used wrongly, exchanged, exchanged twice, and expire.
	req := &sessionv1.CreateSessionRequest{RequestId: "r-1"}
	in := must(b.with(t, key).CreateSession(t.Context(), req))(t)
	had(in.GetTokens())
	had(must(b.with(t, key).CreateSession(t.Context(), req))(t).GetTokens())
	_, err := b.with(t, b.key(t, ada)).CreateSession(t.Context(), req)
	if err == nil {
		t.Error("another key got the tokens")
	}
	next := must(b.refresh(t, in.GetTokens().GetRefreshToken()))(t)
	had(next.GetTokens())
	had(must(b.refresh(t, in.GetTokens().GetRefreshToken()))(t).GetTokens())
	c := b.with(t, next.GetTokens().GetAccessToken())
	must(c.GetSession(t.Context(), &sessionv1.GetSessionRequest{}))(t)
	must(c.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{RequestId: "r-2", Connection: &sessionv1.Connection{Modality: typev1.Modality_MODALITY_TEXT}}))(t)
	b.watchSession(t, next.GetTokens().GetAccessToken()).next(t)
	_, err = b.with(t, next.GetTokens().GetRefreshToken()).GetSession(t.Context(), &sessionv1.GetSessionRequest{})
	invalid.check(t, err)
	wrong := flip(next.GetTokens().GetAccessToken())
	tokens = append(tokens, wrong)
	_, err = b.with(t, wrong).GetSession(t.Context(), &sessionv1.GetSessionRequest{})
	invalid.check(t, err)
	last := must(b.refresh(t, next.GetTokens().GetRefreshToken()))(t)
	had(last.GetTokens())
	_, err = b.refresh(t, in.GetTokens().GetRefreshToken())
	revoked.check(t, err)

	dump := b.dump(t) + "\n" + b.log.String()
	if !strings.Contains(dump, in.GetSession().GetSessionId()) || !strings.Contains(dump, "REUSE_DETECTED") || !strings.Contains(b.log.String(), "RefreshSession") {
		t.Fatalf("the dump is of something else:\n%s", dump)
	}
	lower := strings.ToLower(dump)
	for _, token := range append(tokens, key) {
		i := strings.IndexByte(token[len("hfa_"):], '_') + len("hfa__")
		secret, err := base64.RawURLEncoding.DecodeString(token[i:])
		if err != nil {
			t.Fatal(err)
		}
		for what, form := range map[string]string{
			"the token": token, "its secret": token[i:], "its secret in base64": base64.StdEncoding.EncodeToString(secret),
			"the token in hex": hex.EncodeToString([]byte(token)), "its secret in hex": hex.EncodeToString(secret),
			"its secret's text in hex": hex.EncodeToString([]byte(token[i:])),
		} {
			if strings.Contains(dump, form) || strings.Contains(lower, form) {
				t.Errorf("%s is in the dump or in the log", what)
			}
		}
	}
	if len(tokens) != 11 {
		t.Errorf("%d tokens were looked for", len(tokens))
	}
}

// flip changes the first character of a token's secret.
func flip(token string) string {
	i := strings.IndexByte(token[len("hfa_"):], '_') + len("hfa__")
	other := "A"
	if token[i] == 'A' {
		other = "B"
	}
	return token[:i] + other + token[i+1:]
}

// dump is all that the database has of the tenant, in every table.
func (b *bundle) dump(t *testing.T) string {
	t.Helper()
	conn := b.sql(t)
	rows, err := conn.Query(t.Context(), "SELECT table_name FROM information_schema.columns WHERE table_schema = 'holdfast' AND column_name = 'tenant_id'")
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || !slices.Contains(tables, "events") {
		t.Fatal(tables, err)
	}
	var all strings.Builder
	for _, table := range tables {
		var content string
		sql := "SELECT coalesce(string_agg(r::text, E'\\n'), '') FROM holdfast." + pgx.Identifier{table}.Sanitize() + " r WHERE tenant_id = $1"
		if err := conn.QueryRow(t.Context(), sql, string(b.Tenant)).Scan(&content); err != nil {
			t.Fatal(err)
		}
		all.WriteString(content + "\n")
	}
	return all.String()
}

// An access token is good for its time; one that was replaced for the grace.
func TestAccessTokensExpire(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.signIn(t, ada)
	id := in.GetSession().GetSessionId()
	ask := func(token string) error {
		_, err := b.with(t, token).GetSession(t.Context(), &sessionv1.GetSessionRequest{})
		return err
	}
	next := must(b.refresh(t, in.GetTokens().GetRefreshToken()))(t)
	for _, token := range []string{in.GetTokens().GetAccessToken(), next.GetTokens().GetAccessToken()} {
		if err := ask(token); err != nil {
			t.Errorf("within the grace: %v", err)
		}
	}
	for what, change := range map[string]func(*storev1.SessionRecord, *timestamppb.Timestamp){
		"replaced": func(r *storev1.SessionRecord, now *timestamppb.Timestamp) { r.OldAccessExpireTime = now },
		"newest":   func(r *storev1.SessionRecord, now *timestamppb.Timestamp) { r.AccessExpireTime = now },
	} {
		token := map[string]string{"replaced": in.GetTokens().GetAccessToken(), "newest": next.GetTokens().GetAccessToken()}[what]
		b.change(t, ada, func(s *storev1.UserSessions, now time.Time) { change(s.GetSessions()[id], timestamppb.New(now)) })
		eventually(t, what, func() bool { return reason(ask(token)) == tokenExpired.reason })
	}
	// The refresh token is good still. Two refreshes later the first access token is an old one of this session, not a guess.
	third := must(b.refresh(t, next.GetTokens().GetRefreshToken()))(t)
	eventually(t, "an old one", func() bool { return reason(ask(in.GetTokens().GetAccessToken())) == tokenExpired.reason })
	if err := ask(third.GetTokens().GetAccessToken()); err != nil {
		t.Error(err)
	}
	_, err := b.with(t, third.GetTokens().GetAccessToken()).GetSession(t.Context(), &sessionv1.GetSessionRequest{SessionId: strings.Repeat("a", 36)})
	notFound.check(t, err)
}

// The journal has older versions of a user's sessions, in which what was revoked since is good. None of them comes back.
func TestARevokedSessionIsNotRestored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	in := b.signIn(t, ada)
	must(b.with(t, b.key(t, ada)).EndSessions(t.Context(), &sessionv1.EndSessionsRequest{SessionIds: []string{in.GetSession().GetSessionId()}}))(t)
	id := object.ID(objectID(b.Tenant, ada))
	for who, ctx := range map[string]context.Context{"a service": b.AsService(t), "the user": b.As(t, ada)} {
		if _, err := objecttest.Restore(ctx, b.manager.kinds.Users, id, object.Moment{Version: 1}); !errors.Is(err, object.ErrInvalid) {
			t.Errorf("%s restores: %v", who, err)
		}
		if _, err := objecttest.Fork(ctx, b.manager.kinds.Users, id, object.Moment{Version: 1}, object.ID(objectID(b.Tenant, "eve"))); !errors.Is(err, object.ErrInvalid) {
			t.Errorf("%s forks: %v", who, err)
		}
	}
	_, err := b.refresh(t, in.GetTokens().GetRefreshToken())
	revoked.check(t, err)
}

// No cache keeps an answer with tokens.
func TestTokensAreNotCached(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ask := func(method, credential string) http.Header {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/holdfast.session.v1.SessionService/"+method, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		res, err := b.http(t, credential).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", method, res.Status)
		}
		return res.Header
	}
	in := b.signIn(t, ada)
	for method, credential := range map[string]string{"CreateSession": b.key(t, ada), "RefreshSession": in.GetTokens().GetRefreshToken()} {
		if got := ask(method, credential).Get("Cache-Control"); got != "no-store" {
			t.Errorf("%s: Cache-Control %q", method, got)
		}
	}
}
