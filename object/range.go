package object

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
)

// maxRange is how many bytes of entries a change reads of one range at most.
const maxRange = 16 << 20

// Range is a part of a collection: the entries between two keys, both of which are left out.
type Range struct {
	// After and Before bound it; Before empty: up to the end.
	After, Before string
	// Backward: the last entries of it, the last one first. Before is set then.
	Backward bool
}

// ranges are the parts of collections that closures looked at.
type ranges struct {
	loaded  map[rangeKey]*loadedRange
	missing map[rangeKey]int // how many entries of each to load
}

type rangeKey struct {
	collection string
	Range
}

// loadedRange is what was read of a range, in its order.
type loadedRange struct {
	keys   []string
	values map[string]proto.Message
	bytes  int
	whole  bool // there are no others
}

// Range returns up to limit entries of a part of a collection as the change sees it, and whether there are more. It returns fewer
// where they have more bytes than a change reads. The entries are shared: clone them to change them. It panics for an Owned collection.
func (t *txn) Range(collection string, r Range, limit int) (entries []Entry, more bool) {
	w, k := t.work, rangeKey{collection, r}
	if slices.Contains(w.kind.owned, collection) {
		panic("object: a change reads no range of owned entries")
	}
	base := &loadedRange{whole: true}
	staged := map[string]proto.Message{}
	if t.Exists() || t.revived {
		for _, s := range w.staged.list {
			if s.collection == collection && r.has(s.key) {
				staged[s.key] = s.value
			}
		}
		if !w.fresh {
			base = w.ranges.loaded[k]
		}
	}
	for _, p := range t.puts {
		if p.collection == collection && r.has(p.key) {
			staged[p.key] = p.value
		}
	}
	if base != nil {
		if entries, more = base.with(staged, r, limit); more || base.whole || base.bytes > maxRange {
			return entries, more || !base.whole
		}
	}
	n := 0
	if base != nil {
		n = 2 * len(base.keys)
	}
	if w.ranges.missing == nil {
		w.ranges.missing = map[rangeKey]int{}
	}
	w.ranges.missing[k] = max(n, limit+1, w.ranges.missing[k])
	panic(errMissing)
}

func (r Range) has(key string) bool { return key > r.After && (r.Before == "" || key < r.Before) }

// with returns the first entries of what was loaded once the staged ones take their places, as far as what was loaded reaches.
func (l *loadedRange) with(staged map[string]proto.Message, r Range, limit int) (entries []Entry, more bool) {
	keys := l.keys
	if len(staged) > 0 {
		reaches := func(key string) bool {
			switch last := len(l.keys) - 1; {
			case l.whole:
				return true
			case last < 0:
				return false
			case r.Backward:
				return key >= l.keys[last]
			default:
				return key <= l.keys[last]
			}
		}
		keys = slices.Clone(keys)
		for key := range maps.Keys(staged) {
			if _, there := l.values[key]; !there && reaches(key) {
				keys = append(keys, key)
			}
		}
		slices.Sort(keys)
		if r.Backward {
			slices.Reverse(keys)
		}
	}
	for _, key := range keys {
		value, ok := staged[key]
		if !ok {
			value = l.values[key]
		}
		switch {
		case value == nil:
		case len(entries) == limit:
			return entries, true
		default:
			entries = append(entries, Entry{Key: key, Value: value})
		}
	}
	return entries, false
}

// loadRanges queues what closures looked for.
func (w *work) loadRanges(p *db.Pipeline) {
	for k, n := range w.ranges.missing {
		l := &loadedRange{values: map[string]proto.Message{}, whole: true}
		if w.ranges.loaded == nil {
			w.ranges.loaded = map[rangeKey]*loadedRange{}
		}
		w.ranges.loaded[k] = l
		rows := 0
		each := func(r *dbsqlc.ListEntriesAfterRow) error {
			if l.bytes > maxRange {
				l.whole = false
				return nil
			}
			if rows++; rows == n {
				l.whole = false
			}
			if !k.has(r.Key) {
				l.whole = true // behind the range
				return nil
			}
			l.keys, l.bytes = append(l.keys, r.Key), l.bytes+len(r.Body)
			if err := w.take(&dbsqlc.LoadEntriesRow{Collection: k.collection, Key: r.Key, Body: r.Body}); err != nil {
				return err
			}
			l.values[r.Key] = w.loaded[entryKey{k.collection, r.Key}].value
			return nil
		}
		queuePage(p, w.box.key, k.collection, reader{all: true}, k.Range, n, maxRange, each)
	}
	w.ranges.missing = nil
}
