package object

import (
	"context"
	"crypto/sha256"
	"fmt"
	"runtime/debug"
	"slices"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"holdfast/identity"
)

// Tx is one change of one object. It exists only inside the closure of an Update and must not leave it.
type Tx[S proto.Message] struct{ *txn }

// State is the object's state, a scratch copy to change at will; the zero state where the object is being created.
func (t *Tx[S]) State() S { return t.state.(S) } //nolint:forcetypeassert // made from the kind's prototype

// change is one Update on its way.
type change struct {
	ctx    context.Context //nolint:containedctx // of the caller who waits; a batch serves many
	caller identity.Identity
	opts   updateOptions
	run    func(*txn) error
	queued time.Time     // when it came into its mailbox
	done   chan struct{} // closed when err, after and stored are final

	// notBefore is the least time that the closure may see; zero: any.
	notBefore time.Time
	// unmetered: no quota refuses it, because nobody asked for it who could do without.
	unmetered bool
	// group is that of the changes without which it does not happen; nil: it happens alone.
	group *group

	err    error
	after  *record
	stored []byte // the reply of the first time, where the request was known
}

// askedBy sets who asks for the change, once its options are set.
func (c *change) askedBy(ctx context.Context, caller identity.Identity) {
	c.ctx, c.caller = ctx, caller
	if c.opts.requestID != "" {
		c.opts.hash = sha256.Sum256(append(c.opts.hash[:], caller.User...))
	}
}

// txn is a run of one change's closure.
type txn struct {
	work   *work
	caller identity.Identity
	now    time.Time
	base   *record // the object before this change; nil or dead: being created
	state  proto.Message
	timers timers

	puts      []put
	eventType string
	reply     proto.Message
	unchanged bool
	// remembered: the change has a request id.
	remembered bool
	deleted    bool
	// shared: the object belongs to the whole tenant if it is made.
	shared  bool
	missing []entryKey
	// newer: an entry that the change replaces holds what this release does not know. hidden: it belongs to another user.
	newer, hidden bool
	// revived: a deleted object goes on, with the entries that it had.
	revived bool
	// quiet: the change is no activity, and does not keep the object for longer.
	quiet bool
	// owner of what the change creates; nil: the caller.
	owner *identity.User
}

// beginLife prepares the first state of a life whose id had an earlier one.
func (t *txn) beginLife() {
	if t.base != nil && !t.Exists() {
		t.work.kind.newLife(t.state, issuedBefore(t.Version()+1))
	}
}

// issuedBefore is a number that no earlier life of an object has come to, whose first change has that version. A change issues one
// number of a sort at most, and versions count on from life to life, so a life that begins above its first version stays below all
// later ones. A fork counts on from the numbers of another object; they are its own only once it has as many versions.
func issuedBefore(v Version) int64 { return int64(v) }

// put is one staged entry; a nil value removes it.
type put struct {
	entryKey
	held
	was int // the bytes of the entry before, once the note that undoes the change was made; 0: it was not there
}

// Exists is false where the change creates the object.
func (t *txn) Exists() bool { return t.base.live(t.now) }

// Now is the time of the change by the database's clock, in whole microseconds; it never runs backwards for an object.
func (t *txn) Now() time.Time { return t.now }

// Caller is who makes the change.
func (t *txn) Caller() identity.Identity { return t.caller }

// Version is the version before the change; 0 where there was none.
func (t *txn) Version() Version {
	if t.base == nil {
		return 0
	}
	return t.base.version
}

// Info is the object as the change will leave it: call it last.
func (t *txn) Info() Info {
	if t.unchanged {
		return t.base.info(t.work.box.key.ID)
	}
	next := t.next()
	return next.info(t.work.box.key.ID)
}

// Entry returns an entry as the change sees it, or nil. It is shared: clone it to change it.
func (t *txn) Entry(collection, key string) proto.Message {
	k := entryKey{collection, key}
	if e := t.entry(k); t.work.kind.reader(t.caller).may(e.owner) {
		return e.value
	}
	return nil
}

// entry is Entry of any owner, and says which.
func (t *txn) entry(k entryKey) held {
	for i := range t.puts {
		if t.puts[i].entryKey == k {
			return t.puts[i].held
		}
	}
	if !t.Exists() && !t.revived {
		return held{}
	}
	e, sure := t.work.entry(k)
	if !sure {
		t.missing = append(t.missing, k)
		panic(errMissing)
	}
	return e
}

// Put stages an entry; value must not be changed afterwards. The old one is kept for undoing the change. In an Owned collection the
// entry belongs to whom it belonged before, or to the object's owner. Put panics if the kind has no such collection.
func (t *txn) Put(collection, key string, value proto.Message) { t.stage(collection, key, value, nil) }

// PutFor is Put for an entry of an Owned collection that belongs to owner, for good; with no owner it is for services. It panics if
// the collection is not Owned, if the entry belongs to another owner, or if the caller is a user and not the owner.
func (t *txn) PutFor(owner identity.User, collection, key string, value proto.Message) {
	t.stage(collection, key, value, &owner)
}

// DeleteEntry stages the removal of an entry; nothing happens where there is none.
func (t *txn) DeleteEntry(collection, key string) { t.stage(collection, key, nil, nil) }

func (t *txn) stage(collection, key string, value proto.Message, owner *identity.User) {
	kind, k := t.work.kind, entryKey{collection, key}
	owned := slices.Contains(kind.owned, collection)
	if kind.collections[collection] == nil || owner != nil && !owned {
		panic(fmt.Sprintf("object: kind %s has no collection %q, or its entries have no owners", kind.name, collection))
	}
	old := t.entry(k)
	if owned {
		switch {
		case old.value != nil && owner != nil && *owner != *old.owner:
			panic(fmt.Sprintf("object: the entry %s/%s belongs to %q, not to %q", collection, key, *old.owner, *owner))
		case old.value != nil:
			owner = old.owner
		case owner == nil:
			owners := t.next().owner
			owner = &owners
		}
		if !kind.reader(t.caller).may(owner) {
			switch {
			case value == nil: // there is none for this caller
			case old.value == nil:
				panic(fmt.Sprintf("object: %q may not put the entry %s/%s of %q", t.caller.User, collection, key, *owner))
			default:
				t.hidden = true
			}
			return
		}
	}
	for i := range t.puts {
		if t.puts[i].entryKey == k {
			t.puts[i].held = held{value, owner}
			return
		}
	}
	if old.value != nil || value != nil {
		t.puts = append(t.puts, put{entryKey: k, held: held{value, owner}})
		t.newer = t.newer || t.work.mayNotReplace(k)
	}
}

// ExpectAbsent is the option of that name, for a key that only the closure knows and that cannot have an entry.
func (t *txn) ExpectAbsent(collection, key string) {
	k := entryKey{collection, key}
	switch _, known := t.work.loaded[k]; {
	case t.work.optimistic && !slices.Contains(t.work.assumed, k):
		t.work.assumed = append(t.work.assumed, k)
	case !t.work.optimistic && !known:
		t.work.loaded[k] = held{} // the store proves it
	}
}

// Presume says of an entry that it is there and what it is, so that it is not read before it is replaced or removed. Only an entry that
// another one, which the closure has seen, implies may be presumed.
func (t *txn) Presume(collection, key string, value proto.Message) {
	if k := (entryKey{collection, key}); t.work.loaded == nil {
		t.work.loaded = map[entryKey]held{k: {value: value}}
	} else if t.work.loaded[k].value == nil {
		t.work.loaded[k] = held{value: value}
	}
}

// SetTimer stages a wake-up of the object by its kind's OnTimer at a time, or as soon as may be where that is past. It
// replaces a timer of that name, which has 1 to 128 bytes of UTF-8. An object has at most 1,000.
func (t *txn) SetTimer(name string, at time.Time) {
	switch {
	case t.work.kind.onTimer == nil:
		panic("object: kind " + t.work.kind.name + " has no OnTimer")
	case name == "" || len(name) > maxTimerName || !utf8.ValidString(name):
		panic(fmt.Sprintf("object: %q is no name of a timer", name))
	}
	t.timers = t.timers.with(name, at)
}

// ClearTimer stages the removal of a timer; nothing happens where there is none.
func (t *txn) ClearTimer(name string) { t.timers = t.timers.without(name) }

// Timer is when a timer is due, as the change sees it; ok is false where there is none of that name.
func (t *txn) Timer(name string) (at time.Time, ok bool) { return t.timers.find(name) }

// DeleteObject stages the removal of the object, with its timers: it is not found from then on. Its version goes on counting if
// it is created again.
func (t *txn) DeleteObject() { t.deleted = true }

// Emit names the change in the journal; the default is "created", "updated" or "deleted".
func (t *txn) Emit(eventType string) { t.eventType = eventType }

// Unchanged says that the change changes nothing, so that there will be no new version. It needs an existing object.
// A change with a request id is a version all the same: the journal is what remembers the id.
func (t *txn) Unchanged() { t.unchanged = !t.remembered }

// next is the record that the change will leave, but for its recent entries.
func (t *txn) next() record {
	r := record{
		owner: t.caller.Owner(), version: t.Version() + 1, schema: t.work.kind.schemaVersion, create: t.now, update: t.now,
		activity: t.now, state: t.state, timers: t.timers,
	}
	if t.shared {
		r.owner = ""
	}
	if t.owner != nil {
		r.owner = *t.owner
	}
	if t.Exists() || t.revived {
		r.owner, r.create, r.activity, r.expire = t.base.owner, t.base.create, t.base.activity, t.base.expire
	}
	if t.quiet {
		return r
	}
	// Activity and expiry are indexed, and an update that changes no indexed column is several times cheaper: they
	// move in steps. Expiry is rounded up, so an object is never kept for less than its time to live.
	if t.now.Sub(r.activity) >= activityStep {
		r.activity = t.now
	}
	if t.deleted {
		r.state, r.timers = nil, nil
		r.expire = t.now.Add(MinTTL)
		return r
	}
	ttl := t.work.kind.ttl(t.state)
	if ttl == 0 {
		r.expire = time.Time{}
		return r
	}
	step := max(ttl/24, time.Minute)
	if least := t.now.Add(ttl); r.expire.Before(least) || r.expire.After(least.Add(step)) {
		r.expire = least.Add(step)
	}
	return r
}

const activityStep = time.Minute

// runClosure runs a change's closure. It returns errMissing where an entry has to be loaded first, and a
// PanicError where the closure panicked.
func runClosure(t *txn, run func(*txn) error) (err error) {
	defer func() {
		switch r := recover(); {
		case r == nil:
		case r == any(errMissing):
			err = errMissing
		default:
			err = &PanicError{Value: r, Stack: debug.Stack()}
		}
	}()
	return run(t)
}

// PanicError is what Update returns where its closure panicked. The change left no trace.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("object: a change panicked: %v", e.Value) }
