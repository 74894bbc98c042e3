package object

import (
	"cmp"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// cache keeps recently used records, bounded by their estimated bytes. What it answers may be stale; every use of it
// is checked against the version in the database. Safe for concurrent use.
type cache struct {
	mu    sync.Mutex // guards all; nothing is computed under it
	lru   *simplelru.LRU[key, *record]
	bytes int
	limit int
}

func newCache(limitBytes int) *cache {
	c := &cache{limit: limitBytes}
	// The number of records is bounded by their bytes; the LRU's own bound only has to be out of the way.
	lru, err := simplelru.NewLRU(1<<30, func(_ key, r *record) { c.bytes -= r.bytes() })
	if err != nil {
		panic(err) // only a size below 1 is refused
	}
	c.lru = lru
	return c
}

func (c *cache) get(k key) *record {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, _ := c.lru.Get(k)
	return r
}

// put keeps the newer of rec and what is there; of the same version, the one with more entries at hand. Versions count
// from 1 again where an object is created after all of its earlier life was swept, so the later life comes first.
func (c *cache) put(k key, rec *record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.lru.Peek(k); ok {
		newer := cmp.Or(rec.create.Compare(old.create), cmp.Compare(rec.version, old.version))
		if newer < 0 || newer == 0 && len(old.recent.entries) >= len(rec.recent.entries) {
			return
		}
		c.bytes -= old.bytes()
	}
	c.lru.Add(k, rec)
	c.bytes += rec.bytes()
	for c.bytes > c.limit && c.lru.Len() > 0 {
		c.lru.RemoveOldest()
	}
}

func (c *cache) drop(k key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(k)
}

// outdated drops a record that is older than v: a write would be computed on it in vain.
func (c *cache) outdated(k key, v Version) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.lru.Peek(k); ok && r.version < v {
		c.lru.Remove(k)
	}
}
