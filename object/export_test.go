package object

import (
	"google.golang.org/protobuf/proto"

	"holdfast/identity"
)

// What the tests of package object_test see of the inside.

var (
	Encode = encode
	Decode = decode
)

// LockKey is the key of an object's advisory lock.
func LockKey(t identity.Tenant, kind string, id ID) int64 { return key{t, kind, id}.lock() }

// RequestKey is what finds the event of a request.
func RequestKey(t identity.Tenant, kind string, id ID, requestID string) []byte {
	return key{t, kind, id}.requestKey(requestID)
}

// CacheBytes is how much the cache believes to hold, and how much its records measure.
func (rt *Runtime) CacheBytes() (believed, measured int) {
	rt.cache.mu.Lock()
	defer rt.cache.mu.Unlock()
	for _, r := range rt.cache.lru.Values() {
		measured += r.measure()
	}
	return rt.cache.bytes, measured
}

// Recent is the newest entries that are kept at hand, for the test of its bookkeeping.
type Recent struct{ r recent }

// LoadedRecent is what a load of up to limit entries leaves at hand.
func LoadedRecent(newest []Entry, limit int) Recent {
	return Recent{recent{known: true, whole: len(newest) < limit, entries: newest}}
}

// Find looks an entry up.
func (r Recent) Find(key string) (proto.Message, bool) { return r.r.find(key) }

// Last returns the newest entries.
func (r Recent) Last(n int) ([]Entry, bool) { return r.r.last(n) }

// With sets or removes an entry.
func (r Recent) With(key string, value proto.Message, keep int) Recent {
	return Recent{r.r.with(key, value, keep)}
}

// Len is how many entries are at hand.
func (r Recent) Len() int { return len(r.r.entries) }
