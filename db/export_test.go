package db

import (
	"time"

	"holdfast/gen/dbsqlc"
)

// What the tests of package db_test see of the inside.

// Params are the changes as the statement takes them.
func (c *Changes) Params() dbsqlc.StoreChangesParams { return c.params() }

// Translate gives an error its meaning.
func Translate(err error, commits bool) error { return translate(err, commits) }

// Clock is the extrapolation of the database's clock.
type Clock struct{ c *clock }

// NewClock starts one that believes the machine's clock to run ahead of the database's by so much.
func NewClock(ahead time.Duration) Clock {
	c := newClock(nil)
	c.offset.Store(int64(ahead))
	return Clock{c}
}

// Now is the estimate.
func (c Clock) Now() time.Time { return c.c.now() }

// Sample takes an answer of the database.
func (c Clock) Sample(asked, at time.Time) { c.c.sample(asked, at) }

// MergeSleepers comes before ExportEntries.
const MergeSleepers = mergeSleepers

// ExportEntries reads the entries of a tenant.
var ExportEntries = exportSQL(&tenantTable{name: "entries", key: []string{"kind", "object_id", "collection", "key"}, ofObjects: true})

// Compress makes what a sleeper has of lines.
func Compress(d *DB, lines string) []byte { return d.zip.enc.EncodeAll([]byte(lines), nil) }
