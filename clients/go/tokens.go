package holdfast

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	sessionv1 "holdfast.internal/clients/go/gen/holdfast/session/v1"
)

// SessionTokens returns a function for WithTokens that authenticates with a session, as CreateSession of the server at url returned it.
// When the access token is refused the session is refreshed, once for all calls that wait. save stores each new pair before it is used:
// a refresh token that is used a second time, half a minute later, ends the session. Use one function for all clients of a session.
func SessionTokens(url string, tokens *sessionv1.Tokens, save func(*sessionv1.Tokens) error, opts ...Option) TokenFunc {
	s := &session{url: url, save: save, opts: opts, tokens: proto.CloneOf(tokens)}
	return s.token
}

type session struct {
	url  string
	save func(*sessionv1.Tokens) error
	opts []Option

	mu      sync.Mutex // guards what follows; it is not held while the session is refreshed
	tokens  *sessionv1.Tokens
	refresh *refresh
}

// refresh is one that is under way, until done is closed.
type refresh struct {
	done chan struct{}
	err  error
}

func (s *session) token(ctx context.Context, refused string) (string, error) {
	s.mu.Lock()
	if access := s.tokens.GetAccessToken(); refused != access && s.refresh == nil {
		s.mu.Unlock()
		return access, nil
	}
	r := s.refresh
	if r == nil {
		r = &refresh{done: make(chan struct{})}
		s.refresh = r
		// The caller may go, and the refresh has to be finished.
		go s.run(context.WithoutCancel(ctx), r, s.tokens.GetRefreshToken())
	}
	s.mu.Unlock()
	select {
	case <-r.done:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	if r.err != nil {
		return "", r.err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens.GetAccessToken(), nil
}

func (s *session) run(ctx context.Context, r *refresh, token string) {
	const grace = 25 * time.Second // the server's is 30 s
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	res, err := New(s.url, token, s.opts...).Session.RefreshSession(ctx, &sessionv1.RefreshSessionRequest{})
	if err == nil && s.save != nil {
		err = s.save(res.GetTokens())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.err = err; err == nil {
		s.tokens = res.GetTokens()
	}
	s.refresh = nil
	close(r.done)
}
