package object

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/identity"
)

// Atomic is changes of several objects, of any kinds, that commit in one transaction, or of which none happens. Add them with
// DoIn, then call Run. Use it once, from one goroutine.
type Atomic struct {
	rt      *Runtime
	opts    updateOptions // of each change
	group   *group
	keys    []key
	kinds   []*kind
	changes []*change
	replies []func() error
}

// group is what the queues know of an Atomic. Its changes enter the mailboxes of their objects under one lock, so any two groups are
// in the same order in all mailboxes that they share. A change of a group waits at the head of its mailbox until the others are
// at the heads of theirs; then a batch takes them all. See docs/adr/0014.
type group struct {
	boxes   []*mailbox
	arrived int // mailboxes in which the group's change is the next
	bytes   int // of the request
}

// errTogether is the outcome of a change that was refused because another of its group was.
var errTogether = errors.New("object: another change of the group was refused")

// ChangeError is what Run returns where one of the changes was refused. Index is its place among them.
type ChangeError struct {
	Index int
	Err   error
}

func (e *ChangeError) Error() string { return fmt.Sprintf("object: change %d: %v", e.Index, e.Err) }

func (e *ChangeError) Unwrap() error { return e.Err }

// Atomic begins a change of several objects, which happens once for a request id; see Request. Where an object no longer knows the id,
// because it was deleted since, and others do, a retry is refused with ErrRequestReused.
func (rt *Runtime) Atomic(req ChangeRequest) *Atomic {
	a := &Atomic{rt: rt, group: &group{bytes: proto.Size(req)}}
	Request(req.GetRequestId(), req)(&a.opts)
	return a
}

// DoIn adds the change of an object; see Do. Run sets the reply.
func DoIn[R, S proto.Message](a *Atomic, k *Kind[S], id ID, fn func(*Tx[S]) (R, error), opts ...UpdateOption) *R {
	reply := new(R)
	c := &change{done: make(chan struct{}), group: a.group, opts: a.opts, run: func(t *txn) error {
		r, err := fn(&Tx[S]{t})
		t.reply, *reply = r, r
		return err
	}}
	for _, opt := range opts {
		opt(&c.opts)
	}
	a.keys, a.kinds, a.changes = append(a.keys, key{Kind: k.name, ID: id}), append(a.kinds, k.kind), append(a.changes, c)
	a.replies = append(a.replies, func() (err error) {
		*reply, err = replyOf(c, *reply)
		return err
	})
	return reply
}

// Run makes the changes. It returns ErrInvalid if an id is malformed or there twice, a ChangeError with what Update would return for a
// change, or another error of Update.
func (a *Atomic) Run(ctx context.Context) error {
	caller, err := identity.From(ctx)
	if err != nil {
		return err
	}
	for i, c := range a.changes {
		if err := a.keys[i].ID.Check(); err != nil {
			return &ChangeError{i, err}
		}
		a.keys[i].Tenant = caller.Tenant
		if slices.Contains(a.keys[:i], a.keys[i]) {
			return &ChangeError{i, fmt.Errorf("%w: an object is changed twice", ErrInvalid)}
		}
		c.askedBy(ctx, caller)
	}
	entered := 0
	defer func() {
		for range entered {
			a.rt.changing.Leave(caller)
		}
	}()
	for caller.User != "" && entered < len(a.changes) {
		if full := a.rt.changing.Enter(caller); full != "" {
			return a.rt.overloaded(full)
		}
		entered++
	}
	if err := a.enqueue(); err != nil { //nolint:contextcheck // a batch serves many changes
		return err
	}
	for _, c := range a.changes {
		select {
		case <-c.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for i, c := range a.changes {
		if c.err != nil && !errors.Is(c.err, errTogether) {
			return &ChangeError{i, c.err}
		}
	}
	for _, reply := range a.replies {
		if err := reply(); err != nil {
			return err
		}
	}
	return nil
}

func (a *Atomic) enqueue() error {
	rt := a.rt
	rt.mu.Lock()
	defer rt.mu.Unlock()
	for _, key := range a.keys {
		if err := rt.full(key, len(a.changes)); err != nil {
			return err
		}
	}
	for i, c := range a.changes {
		a.group.boxes = append(a.group.boxes, rt.add(a.keys[i], a.kinds[i], c))
	}
	rt.start()
	return nil
}

// ahead is how many changes of a queue come before the first that belongs to a group, up to most.
func ahead(queue []*change, most int) int {
	for i, c := range queue {
		if i == most || c.group != nil {
			return i
		}
	}
	return len(queue)
}

// arrive notes that the next change of a mailbox is its group's. The caller holds mu.
func (l *lane) arrive(b *mailbox) {
	b.busy = true // until the group's batch is over
	g := b.queue[0].group
	if g.arrived++; g.arrived == len(g.boxes) {
		l.groups = append(l.groups, g)
	}
}

// takeGroups claims as many of the groups that are complete as one batch takes, if it is their turn. No two of them share an object.
// The caller holds mu.
func (l *lane) takeGroups(mostBytes int) (batch []*work) {
	if l.grouped = len(l.groups) > 0 && !(l.grouped && len(l.ready) > 0); !l.grouped {
		return nil
	}
	bytes := 0
	for len(l.groups) > 0 {
		g := l.groups[0]
		if bytes += g.bytes; len(batch) > 0 && (bytes > mostBytes || len(batch)+len(g.boxes) > maxBatch) {
			break
		}
		l.groups = l.groups[1:]
		for _, b := range g.boxes {
			batch = append(batch, &work{box: b, kind: b.kind, changes: b.queue[:1:1]})
			b.queue = b.queue[1:]
		}
	}
	return batch
}

// group is that of the work's only change, or nil.
func (w *work) group() *group {
	if len(w.changes) == 0 {
		return nil
	}
	return w.changes[0].group
}

// byGroup splits the works of a batch by their groups.
func byGroup(works []*work) (groups [][]*work) {
	at := map[*group]int{}
	for _, w := range works {
		i, ok := at[w.group()]
		if !ok {
			i = len(groups)
			at[w.group()], groups = i, append(groups, nil)
		}
		groups[i] = append(groups[i], w)
	}
	return groups
}

// commitGroups is commit for a batch of groups.
func (rt *Runtime) commitGroups(batch []*work) {
	var fast, sure []*work
	for _, works := range byGroup(batch) {
		unprepared := 0
		for _, w := range works {
			if !rt.prepare(w) {
				unprepared++
			}
		}
		if unprepared == 0 {
			fast = append(fast, works...)
		} else {
			sure = append(sure, works...)
		}
	}
	if len(fast) > 0 {
		sure = append(sure, rt.commitFast(fast)...)
	}
	if len(sure) > 0 {
		rt.commitGroupsSure(sure)
	}
}

// keepWhole moves works from settled to rest if others of their group are there.
func keepWhole(settled, rest []*work) (whole, others []*work) {
	broken := map[*group]bool{}
	for _, w := range rest {
		broken[w.group()] = true
	}
	for _, w := range settled {
		if broken[w.group()] {
			rest = append(rest, w)
		} else {
			whole = append(whole, w)
		}
	}
	return whole, rest
}

// refuseGroups leaves nothing to store of a group of which a change is refused.
func refuseGroups(works []*work) {
	for _, group := range byGroup(works) {
		refused, known := false, 0
		for _, w := range group {
			refused = refused || w.changes[0].err != nil
			if w.changes[0].stored != nil {
				known++
			}
		}
		var because error
		switch {
		case refused:
			because = errTogether
		case known > 0 && known < len(group):
			because = ErrRequestReused
		default:
			continue
		}
		for _, w := range group {
			w.cur, w.events, w.staged, w.replied, w.assumed = w.base, nil, stagedEntries{}, nil, nil
			if c := w.changes[0]; c.err == nil {
				c.err, c.after, c.stored = because, nil, nil
			}
		}
	}
}

// commitGroupsSure is commitSure for groups: what fails is tried again group by group, and a group whose locks could not be taken once
// more.
func (rt *Runtime) commitGroupsSure(works []*work) {
	err := rt.attempt(works)
	if err == nil {
		return
	}
	if errors.Is(err, errAsleep) {
		if err = rt.wakeGroups(works); err == nil {
			rt.commitGroupsSure(works)
			return
		}
	}
	groups, contended := byGroup(works), errors.Is(err, db.ErrContention)
	if rt.life.Err() == nil && !errors.Is(err, db.ErrUnavailable) && !errors.Is(err, db.ErrOutcomeUnknown) &&
		(len(groups) > 1 || contended && !works[0].alone) {
		for _, group := range groups {
			for _, w := range group {
				w.alone = len(groups) == 1
			}
			rt.commitGroupsSure(group)
			for _, w := range group {
				w.alone = false
			}
		}
		return
	}
	for _, group := range groups {
		doubted := slices.ContainsFunc(group, func(w *work) bool { return w.inDoubt })
		for _, w := range group {
			w.inDoubt = doubted
		}
		rt.fail(group, inTheWay(group, err))
	}
}

func (rt *Runtime) wakeGroups(works []*work) error {
	ctx, cancel := context.WithTimeout(rt.life, rt.commitTimeout)
	defer cancel()
	for _, w := range works {
		if w.asleep {
			if err := rt.wake(ctx, w.box.key); err != nil {
				return err
			}
		}
	}
	return nil
}
