package object

import (
	"fmt"
	"sort"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/identity"
	"holdfast/object/internal/rowjson"
)

// Entry is one element of an object's collection.
type Entry struct {
	Key   string
	Value proto.Message // read only: it is shared

	size int // in an answer; 0: not known
}

// held is an entry as a change sees it; without a value there is none.
type held struct {
	value proto.Message
	owner *identity.User // nil: the object's
}

// ownerOf is the owner in a held that has the columns of a row.
func ownerOf(owned bool, id string) *identity.User {
	if !owned {
		return nil
	}
	owner := identity.User(id)
	return &owner
}

// reader is who reads entries: a user, who reads no others' owned entries, or all of them.
type reader struct {
	user identity.User
	all  bool
}

// reader returns who the caller is to the entries of the kind's objects.
func (k *kind) reader(caller identity.Identity) reader {
	if caller.Service || len(k.owned) == 0 {
		return reader{all: true}
	}
	return reader{user: caller.User}
}

// may reports whether the reader may see an entry of an object that the reader may see.
func (r reader) may(owner *identity.User) bool {
	return owner == nil || r.all || *owner != "" && *owner == r.user
}

// column is the reader as statements name it.
func (r reader) column() string {
	switch {
	case r.all:
		return ""
	case r.user == "":
		return "\x7f" // no user's id has it
	}
	return string(r.user)
}

// Size is what the entry takes in an answer, in bytes; 0: not known.
func (e Entry) Size() int { return e.size }

// newEntry is an entry whose stored form has so many bytes.
func newEntry(key string, value proto.Message, stored int) Entry {
	return Entry{key, value, len(key) + answerSize(stored, value)}
}

// record is an object as one version left it. It is immutable and shared between the cache, readers and watchers.
type record struct {
	owner                    identity.User
	version                  Version
	schema                   int32
	state                    proto.Message // nil: deleted
	create, update, activity time.Time
	expire                   time.Time // zero: never
	// raw is the stored state where an older release wrote it; newer: a newer one did, and this one may not write it.
	raw       string
	newer     bool
	timers    timers
	recent    recent
	stateSize int // encoded
}

// room is what an answer has for entries beside the state, which grows in JSON but not past its limit.
func (k *kind) room(r *record) Room {
	return Room{Bytes: AnswerBytes - max(r.stateSize, min(jsonBlowUp*r.stateSize, k.stateBytes))}
}

// live reports whether the object can be found at now: time to live is a read rule, deletion only housekeeping.
func (r *record) live(now time.Time) bool {
	return r != nil && r.state != nil && (r.expire.IsZero() || now.Before(r.expire))
}

// deleted reports whether the object was deleted, and not so long ago that its rows may be gone.
func (r *record) deleted(now time.Time) bool {
	return r != nil && r.state == nil && now.Before(r.expire)
}

func (r *record) info(id ID) Info {
	return Info{ID: id, Owner: r.owner, Version: r.version, CreateTime: r.create, UpdateTime: r.update, ExpireTime: r.expire}
}

// recent is the newest entries of the collection that the kind keeps at hand. Its methods return new values; the
// backing array is shared, and only the newest holder appends behind its own length.
type recent struct {
	entries []Entry // ascending
	// known: entries holds every entry of the collection from its first one's key on. If whole, there are no others.
	known, whole bool
	// full: entries holds more than one answer may have, so none of its readers needs older ones.
	full bool
	// newer: some of them hold what this release does not know. They can be read, but changes load them one by one.
	newer bool
	bytes int // estimated, in memory
}

// find looks a key up. sure is false where the answer is not at hand.
func (r recent) find(k string) (value proto.Message, sure bool) {
	if !r.known || r.newer {
		return nil, false
	}
	i := sort.Search(len(r.entries), func(i int) bool { return r.entries[i].Key >= k })
	if i < len(r.entries) && r.entries[i].Key == k {
		return r.entries[i].Value, true
	}
	return nil, i > 0 || r.whole
}

// last returns the newest n entries, oldest first. sure is false where fewer are at hand than there are.
func (r recent) last(n int) (entries []Entry, sure bool) {
	if n == 0 {
		return nil, true
	}
	if !r.known || len(r.entries) < n && !r.whole && !r.full {
		return nil, false
	}
	from := max(0, len(r.entries)-n)
	return r.entries[from:len(r.entries):len(r.entries)], true
}

// with returns r with a key set, or removed where value is nil; stored is the length of its stored form. It keeps at least
// keep entries and at most a quarter or four more: they are most of a server's memory.
func (r recent) with(k string, value proto.Message, stored, keep int) recent {
	if !r.known {
		return r
	}
	n := len(r.entries)
	if value != nil && (n == 0 || r.entries[n-1].Key < k) {
		if most := keep + max(keep/4, 4); n >= most {
			r = r.newest(keep-1, most)
		}
		r.entries = append(r.entries, newEntry(k, value, stored))
		r.bytes += entryBytes(value)
		return r
	}
	i := sort.Search(n, func(i int) bool { return r.entries[i].Key >= k })
	if (i == n || r.entries[i].Key != k) && i == 0 && !r.whole {
		return r // older than what is at hand
	}
	r.full = false
	changed := append(make([]Entry, 0, n+1), r.entries[:i]...)
	if value != nil {
		changed = append(changed, newEntry(k, value, stored))
		r.bytes += entryBytes(value)
	}
	if i < n && r.entries[i].Key == k {
		r.bytes -= entryBytes(r.entries[i].Value)
		i++
	}
	r.entries = append(changed, r.entries[i:]...)
	switch {
	case len(r.entries) > max(n, 2*keep):
		r = r.newest(keep, keep)
	case len(r.entries) == 0 && !r.whole:
		r.known = false // where the older ones end was the first one's key
	}
	return r
}

// recentBytes is what the newest n entries at hand take in an answer.
func (r *record) recentBytes(n int) (bytes int) {
	entries, _ := r.recent.last(n)
	for _, e := range entries {
		bytes += e.size
	}
	return bytes
}

// newest returns r with no more than its newest n entries, and room for as many as there may be.
func (r recent) newest(n, room int) recent {
	older := r.entries[:len(r.entries)-n]
	for _, e := range older {
		r.bytes -= entryBytes(e.Value)
	}
	r.full = r.full && len(older) == 0
	r.entries, r.whole = append(make([]Entry, 0, room), r.entries[len(older):]...), false
	return r
}

// Decoded messages take about four times their encoded bytes.
const (
	recordOverhead = 512
	entryOverhead  = 160
	timerOverhead  = 64
	decodedFactor  = 4
)

// bytes estimates what the record takes in memory.
func (r *record) bytes() int {
	return recordOverhead + decodedFactor*r.stateSize + timerOverhead*len(r.timers) + len(r.raw) + r.recent.bytes
}

func entryBytes(m proto.Message) int { return entryOverhead + decodedFactor*proto.Size(m) }

// upcast brings a stored state to the schema of this release. One of this schema or a newer is returned as it is.
func (k *kind) upcast(stored string, schema int32) (string, error) {
	for ; schema < k.schemaVersion; schema++ {
		step := k.upcasters[schema]
		if step == nil {
			continue
		}
		b, err := step([]byte(stored))
		if err != nil {
			return "", fmt.Errorf("object: stored %s of schema %d cannot be brought to the next: %w", k.name, schema, err)
		}
		stored = string(b)
	}
	return stored, nil
}

// decodeState makes a state out of its stored form, whatever release wrote it.
func (k *kind) decodeState(stored string, schema int32) (state proto.Message, newer bool, err error) {
	if stored, err = k.upcast(stored, schema); err != nil {
		return nil, false, err
	}
	state, newer, err = rowjson.Decode(k.prototype, stored)
	return state, newer || schema > k.schemaVersion, err
}
