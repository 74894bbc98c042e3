package bounds

import (
	"context"
	"errors"
	"sync"
	"time"

	"holdfast/identity"
)

const (
	// Small is what a read may bring back without asking, in bytes. What is larger is read again, once the call may hold it.
	Small = 128 << 10
	// answerWait is how long a call waits for that.
	answerWait = 4 * time.Second
)

// Large bounds how many calls hold a large answer at once, from reading it until it is sent, and lets them read in turn. While a call
// waits it holds nothing. Safe for concurrent use.
type Large struct {
	gate    *Gate
	line    *Line
	refused func(what string)

	mu   sync.Mutex    // guards left
	left chan struct{} // closed when a call has left
}

// NewLarge returns a Large in which nobody is. refused is told of what each OverloadedError says is full.
func NewLarge(m Most, refused func(what string)) *Large {
	return &Large{gate: NewGate(m), line: NewLine(), refused: refused, left: make(chan struct{})}
}

func (l *Large) enter(ctx context.Context, i identity.Identity) error {
	over := time.NewTimer(answerWait)
	defer over.Stop()
	for {
		l.mu.Lock()
		left := l.left // before the attempt, so that no leaving falls between
		l.mu.Unlock()
		full := l.gate.Enter(i)
		if full == "" {
			return nil
		}
		select {
		case <-left:
		case <-over.C:
			l.refused("answers")
			return &OverloadedError{What: "answers", Of: full, RetryAfter: time.Second}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *Large) leave(i identity.Identity) {
	l.gate.Leave(i)
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.left)
	l.left = make(chan struct{})
}

// Hold waits until the call may hold a large answer; done ends that where the call has no Answer. The error is an OverloadedError
// or that of ctx.
func (l *Large) Hold(ctx context.Context, i identity.Identity) (done func(), err error) {
	a, ok := ctx.Value(answerKey{}).(*Answer)
	if !ok {
		if err := l.enter(ctx, i); err != nil {
			return nil, err
		}
		return func() { l.leave(i) }, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leave == nil {
		if err := l.enter(ctx, i); err != nil {
			return nil, err
		}
		a.leave = func() { l.leave(i) }
	}
	return func() {}, nil
}

// Read reads a large answer in the caller's turn; see Hold for done and the error.
func (l *Large) Read(ctx context.Context, i identity.Identity, read func() error) (done func(), err error) {
	if done, err = l.Hold(ctx, i); err != nil {
		return nil, err
	}
	leave, err := l.line.Enter(ctx, i)
	if full, ok := errors.AsType[*OverloadedError](err); ok {
		l.refused(full.What)
	}
	if err == nil {
		err = read()
		leave()
	}
	if err != nil {
		done()
	}
	return done, err
}

type answerKey struct{}

// Answer is one call's hold on the room for large answers. The zero Answer holds nothing.
type Answer struct {
	mu    sync.Mutex
	leave func()
}

// Answering returns a context for one call: a large answer that it reads counts until Sent.
func Answering(ctx context.Context, a *Answer) context.Context {
	return context.WithValue(ctx, answerKey{}, a)
}

// Sent gives back what the call holds.
func (a *Answer) Sent() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leave != nil {
		a.leave()
		a.leave = nil
	}
}
