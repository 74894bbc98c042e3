package object

import (
	"context"
	"errors"
	"sync"
	"time"

	"holdfast/identity"
)

const (
	// smallAnswer is what a read may bring back without asking. What is larger is read again, once the call may hold it.
	smallAnswer = 128 << 10
	// answerWait is how long a call waits for that.
	answerWait = 4 * time.Second
)

// answers bounds how many calls hold a large answer at once, from reading it until it is sent. While a call waits it holds
// nothing. Safe for concurrent use.
type answers struct {
	rt   *Runtime
	gate *gate

	mu   sync.Mutex    // guards left
	left chan struct{} // closed when a call has left
}

func (a *answers) enter(ctx context.Context, i identity.Identity) error {
	over := time.NewTimer(answerWait)
	defer over.Stop()
	for {
		a.mu.Lock()
		left := a.left // before the attempt, so that no leaving falls between
		a.mu.Unlock()
		full := a.gate.enter(i)
		if full == "" {
			return nil
		}
		select {
		case <-left:
		case <-over.C:
			return a.rt.overloadedOf("answers", full)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *answers) leave(i identity.Identity) {
	a.gate.leave(i)
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.left)
	a.left = make(chan struct{})
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

// hold waits until the call may hold a large answer; done ends it where the call has no Answer.
func (rt *Runtime) hold(ctx context.Context, i identity.Identity) (done func(), err error) {
	a, ok := ctx.Value(answerKey{}).(*Answer)
	if !ok {
		if err := rt.answers.enter(ctx, i); err != nil {
			return nil, err
		}
		return func() { rt.answers.leave(i) }, nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.leave == nil {
		if err := rt.answers.enter(ctx, i); err != nil {
			return nil, err
		}
		a.leave = func() { rt.answers.leave(i) }
	}
	return func() {}, nil
}

// readLarge reads a large answer in the caller's turn; see hold for done.
func (rt *Runtime) readLarge(ctx context.Context, i identity.Identity, read func() error) (done func(), err error) {
	if done, err = rt.hold(ctx, i); err != nil {
		return nil, err
	}
	leave, err := rt.large.Enter(ctx, i)
	if full, ok := errors.AsType[*OverloadedError](err); ok {
		err = rt.overloadedOf(full.What, full.Of)
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
