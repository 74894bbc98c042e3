package handlers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
)

const (
	// keysEvery is how often the identity provider's keys are fetched, and so how long a withdrawn key is good at most.
	keysEvery = 5 * time.Minute
	// keysRetry is the same after a fetch that failed.
	keysRetry = 10 * time.Second
	// keysLast is how long keys are good that cannot be fetched again.
	keysLast = time.Hour
	// unknownKeyEvery is how often keys are fetched at most because tokens name keys that are not among them. Anyone can send
	// such tokens.
	unknownKeyEvery = time.Second
	// unknownKeyWait is how long such a token waits for that at most, and maxUnknownKeys how many of them wait at a time.
	unknownKeyWait = 3 * time.Second
	maxUnknownKeys = 100
	// maxKeySet is the largest answer of the provider that is read.
	maxKeySet = 1 << 20
)

// errKeysDue: the keys have yet to be fetched, so whether a token's key is among them is not known.
var errKeysDue = errors.New("handlers: the identity provider's keys have yet to be fetched")

// keySet is the public keys that an identity provider publishes. It is safe for concurrent use.
type keySet struct {
	c       TokenConfig
	asked   chan struct{} // has room for one: another fetch is wanted
	waiting chan struct{} // bounds those who wait

	mu   sync.Mutex // guards what follows; nothing slow happens under it
	keys keyfunc.Keyfunc
	at   time.Time // when the fetch of keys began; zero: there was none
	next *keyFetch // has not begun yet

	etag string // of keys; only the goroutine that fetches uses it
}

type keyFetch struct {
	done chan struct{} // closed when err is final
	err  error
}

// newKeySet starts to fetch keys, until ctx ends.
func newKeySet(ctx context.Context, c TokenConfig) (*keySet, error) {
	if u, err := url.Parse(c.JWKSURL); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("the JWKS URL %q cannot be used: it must be like https://id.example.com/keys", c.JWKSURL)
	}
	if c.Client == nil {
		c.Client = &http.Client{Timeout: verifyTimeout}
	}
	s := &keySet{c: c, asked: make(chan struct{}, 1), waiting: make(chan struct{}, maxUnknownKeys), next: newKeyFetch()}
	go s.run(ctx)
	return s, nil
}

func newKeyFetch() *keyFetch { return &keyFetch{done: make(chan struct{})} }

func (s *keySet) run(ctx context.Context) {
	for {
		soonest := time.After(unknownKeyEvery)
		s.mu.Lock()
		f := s.next
		s.next = newKeyFetch()
		s.mu.Unlock()
		every := keysEvery
		if f.err = s.fetch(ctx); f.err != nil && ctx.Err() == nil {
			s.c.Log.WarnContext(ctx, "the identity provider's keys cannot be fetched", "url", s.c.JWKSURL, "error", f.err)
			every = keysRetry
		}
		close(f.done)
		select {
		case <-ctx.Done():
			return
		case <-soonest:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		case <-s.asked:
		}
	}
}

// current returns the keys as they were last fetched. ok is false where there are none, or they are too old.
func (s *keySet) current() (keys keyfunc.Keyfunc, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys, s.keys != nil && s.c.Now().Sub(s.at) < keysLast
}

// renew waits for a fetch that begins after the call: a key that it does not bring is not published. It returns an error where
// the keys cannot be fetched, or not soon.
func (s *keySet) renew(ctx context.Context) error {
	select {
	case s.waiting <- struct{}{}:
		defer func() { <-s.waiting }()
	default:
		return errKeysDue // those who wait have it fetched
	}
	s.mu.Lock()
	f := s.next
	s.mu.Unlock()
	select {
	case s.asked <- struct{}{}:
	default:
	}
	late := time.NewTimer(unknownKeyWait)
	defer late.Stop()
	select {
	case <-f.done:
		return f.err
	case <-late.C:
		return errKeysDue
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *keySet) fetch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	began := s.c.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.c.JWKSURL, nil)
	if err != nil {
		return err
	}
	if s.etag != "" {
		req.Header.Set("If-None-Match", s.etag)
	}
	res, err := s.c.Client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNotModified && s.etag != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.at = began
		return nil
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", res.Status)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxKeySet+1))
	if err != nil {
		return err
	}
	if len(body) > maxKeySet {
		return fmt.Errorf("its answer has more than %d bytes", maxKeySet)
	}
	keys, err := readKeySet(ctx, body)
	if err != nil {
		return err
	}
	s.etag = res.Header.Get("ETag")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys, s.at = keys, began
	return nil
}

// readKeySet reads a JWKS. It skips keys that it cannot read or that are not for signatures: what they are for is not known here.
func readKeySet(ctx context.Context, text []byte) (keyfunc.Keyfunc, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("its answer is no JWKS: %w", err)
	}
	if set.Keys == nil {
		return nil, errors.New(`its answer is no JWKS: it has no "keys"`)
	}
	store := jwkset.NewMemoryStorage()
	usable := 0
	for _, raw := range set.Keys {
		k, err := jwkset.NewJWKFromRawJSON(raw, jwkset.JWKMarshalOptions{Private: true}, jwkset.JWKValidateOptions{})
		if use := k.Marshal().USE; err != nil || use != "" && use != jwkset.UseSig {
			continue
		}
		if err := store.KeyWrite(ctx, k); err != nil {
			return nil, err
		}
		usable++
	}
	if usable == 0 && len(set.Keys) > 0 {
		return nil, errors.New("it publishes no key that can be used")
	}
	return keyfunc.New(keyfunc.Options{Storage: store})
}

// unpublished reports whether a token was refused because its key is not among those at hand. One that names no key may be
// signed with any.
func unpublished(token *jwt.Token, err error) bool {
	if _, named := token.Header[jwkset.HeaderKID]; named {
		return errors.Is(err, jwkset.ErrKeyNotFound)
	}
	return errors.Is(err, jwt.ErrTokenSignatureInvalid) || errors.Is(err, jwt.ErrTokenUnverifiable)
}
