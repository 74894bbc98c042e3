package handlers

import (
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/proto"
)

// errUnchecked: whether a message is good could not be found out, which is no fault of its sender.
var errUnchecked = errors.New("handlers: a check failed")

// checks finds what could not be read, what cannot be stored, and what breaks the rules of the protos.
func checks(v protovalidate.Validator) func(proto.Message) error {
	return func(m proto.Message) error {
		if err := checkReadable(m); err != nil {
			return err
		}
		if err := checkStorable(m); err != nil {
			return err
		}
		err := v.Validate(m)
		if _, broken := errors.AsType[*protovalidate.ValidationError](err); err != nil && !broken {
			return fmt.Errorf("%w: %w", errUnchecked, err)
		}
		return err
	}
}

// deep is a validator that checks messages on a few goroutines of its own. The check needs more stack than all else of a call: beside it
// 8 KB suffice, and a connection keeps the 16 that it has once grown to while it waits. Of 1,000 sessions that would be 8 MB,
// a fifth of what lives, and the growing would be done again after each collection. Safe for concurrent use.
type deep struct {
	check func(proto.Message) error
	start func() // the goroutines, once
	jobs  chan *deepJob
	idle  sync.Pool       // of *deepJob
	over  <-chan struct{} // closed: the goroutines are gone
}

type deepJob struct {
	message proto.Message
	err     error
	done    chan struct{} // capacity 1
}

// deepStacks is how many checks run at once: more than there are processors, so that a large message does not hold the small
// ones up.
const deepStacks = 16

// newDeep has goroutines from the first check on. They end when over is closed.
func newDeep(check func(proto.Message) error, over <-chan struct{}) *deep {
	d := &deep{check: check, jobs: make(chan *deepJob), over: over}
	d.start = sync.OnceFunc(func() {
		for range deepStacks {
			go d.work()
		}
	})
	return d
}

// Validate implements [protovalidate.Validator]: it is check, elsewhere, and after the end here.
func (d *deep) Validate(m proto.Message, _ ...protovalidate.ValidationOption) error {
	d.start()
	j, _ := d.idle.Get().(*deepJob)
	if j == nil {
		j = &deepJob{done: make(chan struct{}, 1)}
	}
	j.message = m
	select {
	case d.jobs <- j: // nobody takes one and leaves it
		<-j.done
	case <-d.over:
		return d.check(m)
	}
	err := j.err
	j.message, j.err = nil, nil
	d.idle.Put(j)
	return err
}

func (d *deep) work() {
	for {
		select {
		case j := <-d.jobs:
			j.err = d.caught(j.message)
			j.done <- struct{}{}
		case <-d.over:
			return
		}
	}
}

// caught makes a panic one call's error.
func (d *deep) caught(m proto.Message) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = fmt.Errorf("%w: %v\n%s", errUnchecked, value, debug.Stack())
		}
	}()
	return d.check(m)
}
