package adk

import (
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/adk/session"
)

// adkSession is a session as it was read, with the events that were appended to it since.
type adkSession struct {
	app, user, id string

	appending sync.Mutex // held while an event is stored; guards version
	version   int64

	mu      sync.RWMutex // guards what follows
	state   map[string]any
	events  events
	updated time.Time
}

func (s *adkSession) appended(version int64, event *session.Event, delta map[string]any) {
	s.version = version
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.state, delta)
	s.events, s.updated = append(s.events, event), event.Timestamp
}

func (s *adkSession) ID() string           { return s.id }
func (s *adkSession) AppName() string      { return s.app }
func (s *adkSession) UserID() string       { return s.user }
func (s *adkSession) State() session.State { return (*state)(s) }

func (s *adkSession) Events() session.Events {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.events
}

func (s *adkSession) LastUpdateTime() time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.updated
}

type events []*session.Event

func (e events) Len() int { return len(e) }

func (e events) All() iter.Seq[*session.Event] {
	return slices.Values(e)
}

func (e events) At(i int) *session.Event {
	if i < 0 || i >= len(e) {
		return nil
	}
	return e[i]
}

// state is that of a session. What is set in it is kept by the next event only where its StateDelta says so.
type state adkSession

func (s *state) Get(key string) (any, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	value, ok := s.state[key]
	if !ok {
		return nil, session.ErrStateKeyNotExist
	}
	return value, nil
}

func (s *state) Set(key string, value any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state[key] = value
	return nil
}

func (s *state) All() iter.Seq2[string, any] {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.All(maps.Clone(s.state))
}
