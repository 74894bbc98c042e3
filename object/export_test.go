package object

import (
	"encoding/json"
	"slices"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/identity"
	"holdfast/object/internal/journal"
	"holdfast/object/internal/rowjson"
	"holdfast/object/internal/scrub"
)

// What the tests of package object_test see of the inside.

// Encode is how messages are stored.
func Encode(m proto.Message) (string, error) { return new(rowjson.Encoder).Encode(m) }

// Decode is decode, whoever wrote it.
func Decode(prototype proto.Message, stored string) (proto.Message, error) {
	m, _, err := rowjson.Decode(prototype, stored)
	return m, err
}

// Undo is the note of what makes was of is.
func Undo(was, is proto.Message) (string, error) {
	b, err := journal.Append([]byte("{"), was, is)
	return string(append(b, '}')), err
}

// Undone is a stored state before the change that a note is of.
func Undone(stored, note string) (string, error) {
	u, err := journal.Parse(note)
	if err != nil {
		return "", err
	}
	var state map[string]json.RawMessage
	if err := json.Unmarshal([]byte(stored), &state); err != nil {
		return "", err
	}
	if state, err = u.Revert(state); err != nil {
		return "", err
	}
	was, err := json.Marshal(state)
	return string(was), err
}

// EraseNote takes a user out of a note about a state; the pseudonym is "erased".
func EraseNote(state proto.Message, user identity.User, note string) (string, error) {
	s := scrub.Scrubber{Mention: db.Mention{User: user}, Pseudonym: "erased"}
	out, _, err := s.Note([]byte(note), state.ProtoReflect().Descriptor(), nil)
	return string(out), err
}

// LockKey is the key of an object's advisory lock.
func LockKey(t identity.Tenant, kind string, id ID) int64 {
	return key{Tenant: t, Kind: kind, ID: id}.Lock()
}

// RequestKey is what finds the event of a request.
func RequestKey(t identity.Tenant, kind string, id ID, requestID string) []byte {
	return key{Tenant: t, Kind: kind, ID: id}.RequestKey(requestID)
}

// CacheBytes is how much the cache believes to hold, and how much its records measure.
func (rt *Runtime) CacheBytes() (believed, measured int) {
	rt.cache.mu.Lock()
	defer rt.cache.mu.Unlock()
	for _, r := range rt.cache.lru.Values() {
		measured += r.bytes() - r.recent.bytes + LoadedRecent(r.recent.entries, 0).r.bytes
	}
	return rt.cache.bytes, measured
}

// AtHand is how many of an object's newest entries the cache has.
func (rt *Runtime) AtHand(t identity.Tenant, kind string, id ID) int {
	return len(rt.cache.get(key{Tenant: t, Kind: kind, ID: id}).recent.entries)
}

// Recent is the newest entries that are kept at hand, for the test of its bookkeeping.
type Recent struct{ r recent }

// LoadedRecent is what a load of up to limit entries leaves at hand.
func LoadedRecent(newest []Entry, limit int) Recent {
	r := recent{known: true, whole: len(newest) < limit, entries: newest}
	for _, e := range newest {
		r.bytes += entryBytes(e.Value)
	}
	return Recent{r}
}

// Find looks an entry up.
func (r Recent) Find(key string) (proto.Message, bool) { return r.r.find(key) }

// Last returns the newest entries, without their sizes.
func (r Recent) Last(n int) ([]Entry, bool) {
	entries, sure := r.r.last(n)
	entries = slices.Clone(entries)
	for i := range entries {
		entries[i].size = 0
	}
	return entries, sure
}

// With sets or removes an entry.
func (r Recent) With(key string, value proto.Message, keep int) Recent {
	return Recent{r.r.with(key, value, 0, keep)}
}

// Len is how many entries are at hand.
func (r Recent) Len() int { return len(r.r.entries) }

// Bytes is what they are believed to take.
func (r Recent) Bytes() int { return r.r.bytes }

// Hearing reports whether hints arrive.
func (rt *Runtime) Hearing() bool { return rt.hints.Hearing() }

// Peers is how many other processes are thought to be there.
func (rt *Runtime) Peers() int { return rt.hints.Peers() }

// Waiting is how many changes wait, Running how many batches are in flight.
func (rt *Runtime) Waiting() int {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.waiting
}

// Running is how many batches are in flight.
func (rt *Runtime) Running() int {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	return rt.running
}

// Forget drops an object from the cache.
func (rt *Runtime) Forget(t identity.Tenant, kind string, id ID) {
	rt.cache.drop(key{Tenant: t, Kind: kind, ID: id})
}

// HoldHistory takes a caller's place among the calls that go back in history, until leave is called.
func (rt *Runtime) HoldHistory(i identity.Identity) (leave func()) {
	if full := rt.history.Enter(i); full != "" {
		panic(full)
	}
	return func() { rt.history.Leave(i) }
}
