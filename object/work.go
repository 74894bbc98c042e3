package object

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/jsonpb"
	"holdfast/object/internal/journal"
	"holdfast/object/internal/quota"
	"holdfast/object/internal/rowjson"
)

// work is one object of a batch: the changes that wait for it, and what they come to.
type work struct {
	box     *mailbox
	kind    *kind
	changes []*change
	// room is how many bytes the transaction may still store, shared by its works; nil: no bound. spent is this work's part,
	// later are the changes that found no room.
	room  *int
	spent int
	later []*change
	// alone: the batch has no other object, because this one's lock could not be taken in time. contended: nor could it in this batch.
	alone, contended bool
	asleep           bool // the object slept when the batch came to it

	// What is known of the object before the batch.
	base   *record // nil: nothing is stored
	loaded map[entryKey]held
	newer  map[entryKey]bool     // of loaded: what this release may not replace
	known  map[string]knownReply // by request id
	// optimistic: run on what the cache had; keys in ExpectAbsent options count as absent until the commit says otherwise.
	optimistic bool
	lock       int64     // of the object, once sorted by it
	wake       time.Time // when the first of the timers is due that the batch sets; zero: it sets none
	// inDoubt: an attempt that built on builtOn may have been committed. moved: something was, since.
	inDoubt, moved bool
	builtOn        Version

	// What the changes come to; start clears it.
	cur     *record
	fresh   bool // entries of an earlier life of the object do not count
	anew    bool // neither do request ids: a change of the batch began a life
	staged  stagedEntries
	replied map[string]knownReply
	assumed []entryKey
	events  []event
	missing []entryKey
	ranges  ranges
	grown   int64 // bytes of entries and events
	// termsGrown is the bytes of terms, once terms was called.
	termsGrown int64
}

// staged is an entry as the batch will leave it; a nil value removes it.
type staged struct {
	entryKey
	held

	body    string
	version Version
	// added: it was not there before the batch, or is taken not to have been.
	added bool
}

// stagedEntries is what a batch stages of one object, in the order in which it first did. Most stage an entry or two, and a
// map would be a third of a kilobyte for each.
type stagedEntries struct {
	list  []staged
	index map[entryKey]int // into list, once it is long
}

const longList = 8

func (s *stagedEntries) find(k entryKey) *staged {
	if s.index != nil {
		if i, ok := s.index[k]; ok {
			return &s.list[i]
		}
		return nil
	}
	for i := range s.list {
		if s.list[i].entryKey == k {
			return &s.list[i]
		}
	}
	return nil
}

func (s *stagedEntries) set(e staged) {
	if was := s.find(e.entryKey); was != nil {
		e.added = was.added
		*was = e
		return
	}
	s.list = append(s.list, e)
	switch {
	case s.index != nil:
		s.index[e.entryKey] = len(s.list) - 1
	case len(s.list) > longList:
		s.index = make(map[entryKey]int, 2*len(s.list))
		for i := range s.list {
			s.index[s.list[i].entryKey] = i
		}
	}
}

type knownReply struct {
	version Version
	hash    []byte
	reply   []byte
}

// event is a row of the journal in the making.
type event struct {
	version   Version
	eventType string
	actor     string
	time      time.Time
	requestID string
	hash      []byte
	reply     []byte
	undo      string
	puts      []put
	after     *record
	created   bool // anew, where the object had an earlier life
	begins    bool // a life, in which no request id was used
	large     bool // it may not fit in one message of a watch
}

// compute runs the changes in mailbox order. It returns false where what is at hand does not suffice to say what they
// come to: then nothing of them may be stored or answered, and missing says what to load.
func (w *work) compute(now time.Time) bool {
	w.cur, w.fresh, w.anew, w.staged, w.replied, w.assumed, w.events, w.missing = w.base, !w.base.live(now), false, stagedEntries{}, nil, nil, nil, nil
	w.grown = 0
	if w.base != nil && now.Before(w.base.update) && w.base.update.Sub(now) < maxAhead {
		now = w.base.update // the clock of another process ran a little ahead
	}
	w.spend(-w.spent)
	replay := false
	for i, c := range w.changes {
		if w.room != nil && *w.room < 0 {
			w.changes, w.later = w.changes[:i:i], slices.Concat(w.changes[i:], w.later)
			break
		}
		c.err, c.after, c.stored = nil, nil, nil
		stored := len(w.events)
		if now.Before(c.notBefore) {
			now = c.notBefore
		}
		c.err = w.apply(c, now)
		if len(w.missing) > 0 || len(w.ranges.missing) > 0 {
			return false
		}
		replay = replay || c.opts.requestID != "" && len(w.events) == stored && c.ctx.Err() == nil
	}
	if !w.optimistic {
		return true
	}
	// The commit proves that what was at hand and what was assumed was right. Without one an answer would be a guess.
	// So it would be for a request that stores no event: it may be known, and then has a reply already.
	return len(w.events) > 0 && !replay
}

func (w *work) apply(c *change, now time.Time) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	live := w.cur.live(now)
	revived := c.opts.revive && w.cur.deleted(now)
	creates := c.opts.create || c.opts.upsert
	owner := c.caller.Owner()
	switch {
	case w.cur != nil && !c.caller.MaySee(w.cur.owner) && creates:
		return ErrExists // an id is a name in the tenant
	case w.cur != nil && !c.caller.MaySee(w.cur.owner):
		return ErrNotFound
	case live, revived:
		owner = w.cur.owner
	case c.opts.owner != nil && *c.opts.owner != owner && *c.opts.owner != "" && creates && !c.caller.Service:
		return ErrServicesOnly
	case c.opts.owner != nil:
		owner = *c.opts.owner
	case c.opts.shared:
		owner = ""
	}
	if live || revived || creates {
		if err := w.kind.mayChange(c.caller, owner, c.opts.rewrite); err != nil {
			return err
		}
	}
	if known, ok := w.reply(c, live); ok {
		if !bytes.Equal(known.hash, c.opts.hash[:]) {
			return ErrRequestReused
		}
		c.after, c.stored = w.cur, append([]byte{}, known.reply...)
		return nil
	}
	if w.moved {
		if c.opts.requestID == "" {
			return db.ErrOutcomeUnknown // whether what happened since was this change cannot be told
		}
		// Not in the journal, so it was not this change.
	}
	switch {
	case live && c.opts.create:
		return ErrExists
	case !live && !revived && !creates:
		return ErrNotFound
	case live && w.cur.newer:
		return ErrNewerSchema
	}
	var at, past Version // past: counting an object that was deleted and goes on
	if live {
		at = w.cur.version
	}
	if live || revived {
		past = w.cur.version
	}
	if want := c.opts.ifVersion; want != nil && *want != at {
		return &VersionMismatchError{Kind: w.kind.name, ID: w.box.key.ID, Expected: *want, Current: at}
	}
	if want := c.opts.basedOn; want != 0 && want != past {
		return &VersionMismatchError{Kind: w.kind.name, ID: w.box.key.ID, Expected: want, Current: past}
	}
	if revived && w.cur == w.base {
		w.fresh = false // its entries are still there
	}
	t := &txn{
		work: w, caller: c.caller, now: now, base: w.cur, remembered: c.opts.requestID != "", shared: c.opts.shared, owner: c.opts.owner,
		revived: revived,
	}
	if live {
		t.state, t.timers = w.kind.scratch(w.cur.state), w.cur.timers
	} else {
		t.state = w.kind.prototype.ProtoReflect().New().Interface()
		t.beginLife()
	}
	if w.optimistic {
		w.assumed = append(w.assumed, c.opts.absent...)
	}
	err := runClosure(t, c.run)
	if len(t.missing) > 0 || len(w.ranges.missing) > 0 {
		w.missing = append(w.missing, t.missing...)
		return errMissing // also where the closure has recovered from it
	}
	if t.newer {
		return ErrNewerSchema
	}
	if err == nil && t.hidden {
		err = ErrNotFound
	}
	if err != nil {
		return err
	}
	if t.deleted {
		if err := w.kind.mayChange(c.caller, owner, true); err != nil {
			return err
		}
	}
	if t.unchanged && live {
		c.after = w.cur
		return nil
	}
	return w.accept(c, t)
}

// maxAhead is how far ahead of now an object's last change may be and still be taken to come of the estimates of two processes:
// within an object time does not run backwards for it. Where it is more the database's clock was set back, and the object's time
// goes back with it; otherwise none of its timers and leases would move until that has caught up.
const maxAhead = 10 * time.Second

// accept makes a change that succeeded part of the batch, or refuses it for its size and leaves no trace.
func (w *work) accept(c *change, t *txn) error {
	live := t.Exists() || t.revived
	next := new(record)
	*next = t.next()
	if next.state != nil {
		next.stateSize = proto.Size(next.state)
	}
	if next.stateSize > w.kind.stateBytes/jsonBlowUp {
		s, err := w.kind.rt.encoder.Encode(next.state)
		if err != nil {
			return err
		}
		if len(s) > w.kind.stateBytes {
			return &TooLargeError{What: "state", Size: len(s), Limit: w.kind.stateBytes}
		}
	}
	if live {
		next.recent = t.base.recent
	} else {
		next.recent = recent{known: true, whole: true}
	}
	if len(next.timers) > maxTimers {
		return fmt.Errorf("%w: an object has at most %d timers", ErrInvalid, maxTimers)
	}
	bodies := make([]string, len(t.puts))
	for i, p := range t.puts {
		if p.value != nil {
			body, err := w.kind.rt.encoder.Encode(p.value)
			if err != nil {
				return err
			}
			if len(body) > w.kind.entryBytes {
				return &TooLargeError{What: "entry " + p.collection + "/" + p.key, Size: len(body), Limit: w.kind.entryBytes}
			}
			bodies[i] = body
		}
	}
	undo, err := w.undo(t, live)
	if err != nil {
		return err
	}
	e := event{
		version: next.version, eventType: t.eventType, actor: string(c.caller.User), time: t.now,
		requestID: c.opts.requestID, undo: undo, puts: t.puts, after: next, created: !t.Exists(), begins: !live,
	}
	if e.eventType == "" {
		e.eventType = defaultEventType(t)
	}
	if e.requestID != "" {
		e.hash = c.opts.hash[:]
		if t.reply != nil {
			if e.reply, err = proto.Marshal(t.reply); err != nil {
				return err
			}
		}
	}
	entries, note := entriesGrow(t.puts, bodies), int64(quota.RowBytes+len(undo)+len(e.reply))
	grown := entries + int64(next.stateSize)
	if live {
		grown -= int64(t.base.stateSize)
	}
	if err := w.mayGrow(c, t, next, quota.Growth{Bytes: grown, Note: note}); err != nil {
		return err
	}
	// Nothing fails from here on.
	if !live {
		w.fresh, w.anew, w.staged, w.replied = true, true, stagedEntries{}, nil
	}
	if e.requestID != "" {
		if w.replied == nil {
			w.replied = map[string]knownReply{}
		}
		w.replied[e.requestID] = knownReply{e.version, e.hash, e.reply}
	}
	keep := w.kind.recentKeep
	for i, p := range t.puts {
		old, sure := w.entry(p.entryKey)
		w.staged.set(staged{p.entryKey, p.held, bodies[i], next.version, sure && old.value == nil})
		if p.collection == w.kind.recent {
			next.recent = next.recent.with(p.key, p.value, len(bodies[i]), keep)
		}
	}
	w.cur = next
	w.grown += entries + note
	w.events = append(w.events, e)
	c.after = next
	size := next.stateSize + len(undo) + len(e.reply)
	for _, body := range bodies {
		size += len(body)
	}
	w.events[len(w.events)-1].large = size > AnswerBytes/binaryBlowUp
	w.spend(size)
	return nil
}

func (w *work) spend(bytes int) {
	w.spent += bytes
	if w.room != nil {
		*w.room -= bytes
	}
}

// binaryBlowUp is more than any message grows from its JSON to its binary form.
const binaryBlowUp = 6

// jsonBlowUp is more than any message grows from its binary form to JSON with its field names.
const jsonBlowUp = 64

func defaultEventType(t *txn) string {
	switch {
	case t.deleted:
		return "deleted"
	case !t.Exists():
		return "created"
	default:
		return "updated"
	}
}

// entry looks an entry up as the next change of the batch sees it. sure is false where it has to be loaded first.
func (w *work) entry(k entryKey) (e held, sure bool) {
	if s := w.staged.find(k); s != nil {
		return s.held, true
	}
	if w.fresh {
		return held{}, true
	}
	if e, ok := w.loaded[k]; ok {
		return e, true
	}
	if k.collection == w.kind.recent && w.base != nil {
		if value, sure := w.base.recent.find(k.key); sure {
			return held{value: value}, true
		}
	}
	return held{}, w.optimistic && slices.Contains(w.assumed, k)
}

// mayNotReplace tells that a newer release has written the entry, and nothing of this batch has replaced it since.
func (w *work) mayNotReplace(k entryKey) bool {
	return w.newer[k] && w.staged.find(k) == nil && !w.fresh
}

// reply is that of the first time, where the object's life has seen the change's request. What begins a new life is asked
// for the first time; only a retry of what ended the last one is known still.
func (w *work) reply(c *change, live bool) (knownReply, bool) {
	if c.opts.requestID == "" || w.cur == nil {
		return knownReply{}, false
	}
	r, ok := w.replied[c.opts.requestID]
	if !ok && !w.anew {
		r, ok = w.known[c.opts.requestID]
	}
	begins := !live && (c.opts.create || c.opts.upsert)
	return r, ok && (!begins || w.cur.state == nil && r.version == w.cur.version)
}

// undo is the journal's note of what the change replaced.
func (w *work) undo(t *txn, live bool) (string, error) {
	return w.kind.rt.encoder.Text(func(b []byte) ([]byte, error) { return w.appendUndo(b, t, live) })
}

func (w *work) appendUndo(b []byte, t *txn, live bool) ([]byte, error) {
	var was proto.Message
	var timersWere, timersAre timers
	if t.Exists() {
		was, timersWere = t.base.state, t.base.timers
	}
	is := t.state
	if t.deleted {
		is = nil
	}
	var err error
	if was != nil && t.base.raw != "" {
		// It was of an older schema, in which the events before this one are written.
		b = fmt.Appendf(b, `{"schema":%d,"state":%s`, t.base.schema, t.base.raw)
	} else {
		if t.revived && t.base.schema < w.kind.schemaVersion {
			b = fmt.Appendf(b, `{"schema":%d,`, t.base.schema)
		} else {
			b = append(b, '{')
		}
		if b, err = journal.Append(b, was, is); err != nil {
			return nil, err
		}
	}
	switch {
	case t.revived:
		b = append(b, `,"revived":true`...)
	case !live:
		b = append(b, `,"created":true`...)
	}
	if !t.deleted {
		timersAre = t.timers
	}
	timers, err := timersWere.undo(timersAre)
	if err != nil {
		return nil, err
	}
	if timers != "" {
		b = append(append(b, `,"timers":`...), timers...)
	}
	if len(t.puts) > 0 {
		b = append(b, `,"entries":[`...)
		for i, p := range t.puts {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(jsonpb.AppendString(append(b, '['), p.collection), ',')
			b = append(jsonpb.AppendString(b, p.key), ',')
			if old, _ := w.entry(p.entryKey); old.value == nil || !live {
				b = append(b, "null"...)
			} else {
				was := len(b)
				if b, err = rowjson.AppendMessage(b, old.value); err != nil {
					return nil, err
				}
				t.puts[i].was = len(b) - was
			}
			if p.owner != nil {
				b = jsonpb.AppendString(append(b, ','), string(*p.owner))
			}
			b = append(b, ']')
		}
		b = append(b, ']')
	}
	return append(b, '}'), nil
}

// store adds what the changes came to to the batch's one statement.
func (w *work) store(c *db.Changes) error {
	name, owner := db.Name{Kind: w.kind.name, Object: string(w.box.key.ID)}, w.cur.owner
	o := db.ObjectRow{
		Name: name, Owner: owner, Version: int64(w.cur.version), Schema: w.cur.schema, Create: w.cur.create, Update: w.cur.update,
		Activity: w.cur.activity, Expire: w.cur.expire, Reborn: w.fresh && w.base != nil,
	}
	if w.base != nil {
		o.BaseVersion = int64(w.base.version)
	}
	var err error
	if w.cur.state != nil {
		if o.State, err = w.kind.rt.encoder.Encode(w.cur.state); err != nil {
			return err
		}
	}
	if o.Timers, err = w.storeTimers(c, name); err != nil {
		return err
	}
	c.Objects = append(c.Objects, o)
	if is, orders, same := w.terms(); !same {
		t := db.TermsRow{Name: name, Owner: owner, Activity: w.cur.activity}
		for _, term := range is {
			t.Terms = append(t.Terms, storedTerm(w.box.key.Tenant, w.kind.name, term))
		}
		c.Terms = append(c.Terms, t)
		for _, o := range orders {
			c.Terms = append(c.Terms, db.TermsRow{Name: name, Owner: owner, Activity: o.Time, Terms: []string{storedTerm(w.box.key.Tenant, w.kind.name, o.Term)}})
		}
	}
	for _, k := range w.assumed {
		if s := w.staged.find(k); s == nil || s.value == nil || !s.added {
			c.Absent = append(c.Absent, db.EntryRow{Name: name, Collection: k.collection, Key: k.key})
		}
	}
	for i := range w.staged.list {
		s := &w.staged.list[i]
		e := db.EntryRow{Name: name, Owner: owner, Collection: s.collection, Key: s.key, Version: int64(s.version), Body: s.body}
		if s.owner != nil {
			e.Owner, e.Owned = *s.owner, true
		}
		if s.added && s.value != nil {
			c.Added = append(c.Added, e)
		} else {
			c.Replaced = append(c.Replaced, e)
		}
	}
	begins := 0
	for i := range w.events {
		if w.events[i].begins {
			begins = i
		}
	}
	for i := range w.events {
		e := &w.events[i]
		r := db.EventRow{
			Name: name, Owner: owner, Version: int64(e.version), Type: e.eventType, Actor: e.actor, Time: e.time,
			RequestID: e.requestID, RequestHash: e.hash, Reply: e.reply, Undo: e.undo,
		}
		if e.requestID != "" && i >= begins {
			r.RequestKey = w.box.key.RequestKey(e.requestID)
		}
		c.Events = append(c.Events, r)
	}
	return nil
}

// terms and orders are the object's after the batch; same reports whether they, and the activity that terms are listed by, are as before.
func (w *work) terms() (is []string, orders []Order, same bool) {
	var was []string
	var before []Order
	if w.base != nil && w.base.state != nil {
		was, before = w.kind.terms(w.base.state), w.kind.orders(w.base.state)
	}
	if w.cur.state != nil {
		is, orders = w.kind.terms(w.cur.state), w.kind.orders(w.cur.state)
	}
	w.termsGrown = 0
	if !slices.Equal(was, is) || !slices.EqualFunc(before, orders, func(a, b Order) bool { return a.Term == b.Term && a.Time.Equal(b.Time) }) {
		w.termsGrown = w.termsBytes(is, orders) - w.termsBytes(was, before)
		return is, orders, false
	}
	return is, orders, len(is) == 0 || w.base != nil && w.base.activity.Equal(w.cur.activity)
}
