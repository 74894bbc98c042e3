package db

import (
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// What the tests of package db_test see of the inside.

// RegisterParams makes a connection encode parameters as the pool's do.
var RegisterParams = registerParams

// First is an argument that brings the buffer for all.
func First(text string, buffer []byte) any { return first{text, buffer} }

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

// MergeEntries comes before ExportPackedEntries.
const MergeEntries = mergeEntries

// ExportPackedEntries reads the entries of a tenant that has packs.
var ExportPackedEntries = exportSQL(&tenantTable{name: "entries", key: []string{"kind", "object_id", "collection", "key"}, ofObjects: true}, true)

// Room is what pipelines are written in.
type Room = room

// LendTo lends the room to a connection's frontend, with at least size bytes.
func (r *Room) LendTo(f *pgproto3.Frontend, size int) { r.lendTo(f, size) }

// TakeBackFrom takes it back, and tells whether it may be lent again.
func (r *Room) TakeBackFrom(f *pgproto3.Frontend) bool { return r.takeBackFrom(f) }
