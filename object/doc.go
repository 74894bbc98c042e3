// Package object is the runtime of Holdfast: how an object lives. An object has one small state, ordered collections
// of entries, a version that counts its changes, and a journal of them. One writer at a time changes it, replies come
// only after the commit, and what was acknowledged is never lost nor doubled.
//
// # The path of a change
//
//	Update ──> mailbox ──> lane ──────────> batch ─────────────────────────────> reply
//	           one an      one a tenant;    up to 256 objects with all that
//	           object      lanes in turn    waits for them, in one transaction
//
//	the fast path, where the cache has every object of the batch (one round trip):
//
//	    run closures on cached states ──> [ enter scope · lock, store if still at that version ] ──> publish ──> reply
//
//	the slow path, where it has not, or where the fast path met another version (two round trips):
//
//	    [ BEGIN · enter scope · lock · load ] ──> run closures ──> [ store · COMMIT ] ──> publish ──> reply
//
// While a batch commits, more changes gather in the mailboxes and lanes, and the next batch takes them all: the busier
// it is, the more share one commit. A process never has two transactions in flight on one object, so a change that
// waits holds no connection.
//
// Changes of several objects that happen together (atomic.go) enter their mailboxes under one lock. Each waits at the head of its mailbox
// until all of them are at the heads of theirs; then they go as one batch, with other such groups and with no single change:
// on the fast path if the cache has all of their objects. A batch stores the whole of a group or nothing of it.
//
// # Closures
//
// A change is a closure over a scratch copy of the state. It is pure, so it may run again: on the slow path after the
// fast one failed, in a smaller batch after its neighbour failed, or because it looked at an entry that was not at hand,
// which unwinds it and loads the entry. Only its last run counts. One that returns an error or panics leaves no trace.
//
// # What keeps it right
//
// A transaction-level advisory lock on (tenant, kind, id) serializes writers, also of an object that does not exist
// yet. It is a statement of its own: the load that follows has a younger snapshot than the lock. The version fence
// (UPDATE … WHERE version = expected) would catch every mistake in that, and is all that the fast path relies on: what
// it computed from the cache is right if and only if the version is still the same when the lock is held.
//
// Reads are strong. A view shares its round trip only with views that were asked before it was sent, and what the cache
// has is used only if the database answers that the version is still the same. Of an object that is changed and not read the
// cache has only the newest few entries (record.go).
//
// # Timers
//
// An object has named timers; they are set and cleared by changes and commit with the state. They are stored twice: in
// the object's row, where the version fences them, and in a table by when to run them. A process that runs timers looks
// into that table when the next one that it has set itself is due, and every half second for those of others, takes
// what is due for some seconds, and runs each as a change of its object. The change first looks for this very timer,
// name and time, in the object, and takes it away: so a timer happens once, however many processes took it. They go
// through their tenants' lanes, and a process runs so many at a time, so writers wait behind no more than those. Where more
// are due than that, it takes them of each tenant in turn.
//
//	due ──> taken for 20 s ──> OnTimer ──> gone, in the same commit
//	 ^                            │ error or panic
//	 └── later, twice as long <───┴──> parked, after MaxTimerTries
//
// # History
//
// Each event of the journal has what its change replaced: fields, keys of maps, entries, timers (internal/journal). To see the object as it was,
// the runtime begins with what is stored and takes events back, the newest first, in one snapshot of the database. A
// restore is an ordinary change computed from that, fenced by the version it was computed at. A deleted object keeps its
// rows for a day, and can come back with them; one that was created again has no history of its earlier life.
//
// # Sleep
//
// An object that nobody has touched for a while sleeps: its entries and events are compressed (hibernate.go, docs/adr/0009),
// and its own row says so. The version does not count it. Reads of state do not notice. What needs entries or events
// is unwound by errAsleep, wakes the object under its lock, and runs again; the fence refuses to store what was computed from the cache
// while the object sleeps.
//
// # Rooms
//
// What needs no object lives in internal/: addr (names and locks), rowjson (stored JSON), journal (notes that undo a change), scrub (a user
// goes), bounds (how much at once, and in whose turn), quota (what is stored of whom), hints (what processes tell each other). Here are
// the rest: changes (kind, tx, runtime, work, commit, atomic), reads (read, catchup, together, range, lookup), watchers (watch, watch_list, signal), timers,
// and administration (history, inspect, erase, hibernate).
//
// # Releases side by side
//
// A row says which schema its state is of. An older one is brought up to date by the kind's upcasters whenever it is
// read, and stored so with its next change, whose event keeps the state as it was: events before it are written in the
// older schema. A state or an entry that holds anything this release does not know, or of a newer schema, can be read and
// not be written: ErrNewerSchema. So in a roll-out or a rollback no release drops what another has written.
//
// # Failure
//
//   - A process dies with timers that it took: they are due again when their lease is over.
//   - A timer is of a kind that a process does not know, or of an object that a newer release has written: it is left
//     to another process, and does not count as tried.
//   - The process dies: what was in flight is committed or not, never half. Without a reply the caller tries again, and
//     its request id finds the first reply if there was one.
//   - The connection is lost during the commit: the outcome is unknown. The runtime locks the object and looks. At the
//     version that the change was computed from, it did not happen and never will, because a transaction that is still
//     on its way will meet the fence: it is done again. At another version the journal tells by request id whether it was
//     ours. Only a change without a request id, on an object that has moved on, is answered with db.ErrOutcomeUnknown.
//   - Postgres is away: changes and reads fail at once with db.ErrUnavailable. Nothing is queued for later.
//   - A change cannot be stored (a poisoned one): its batch is tried again object by object, then change by change, and
//     it fails alone.
//   - Another process writes the same object: the fence refuses the fast path, the slow path loads, and for the next few
//     writes the cache is not asked.
//   - A lock is held by another for too long (2 s): the batch's objects are tried again one by one, and the one that is stuck
//     waits once more (6 s), alone and beside its lane, then fails with db.ErrContention. So it goes with a deadlock.
//   - A closure is slow: it delays its batch, and one more batch of its tenant runs beside it. Closures do no I/O.
//   - Too much waits: mailboxes, lanes and the whole are bounded, and what is over the bound is refused at once with
//     an OverloadedError.
//   - A watcher is slow: its buffer overflows and is dropped, and it reads the journal instead, which gives it what
//     it missed in one message.
//   - Another process writes what is watched here: a hint says so (internal/hints), and the watcher reads the journal. Hints may
//     be lost, late or wrong, and the connection that brings them may be dead: watchers poll as well. Signals go the same way,
//     sealed; what is lost of them is not told again.
//   - The clock of the machine steps: nothing happens. Time is the database's, read after the lock, or extrapolated
//     from its last answer on the process's monotonic clock; it does not run backwards for one object.
//   - The database's clock is set, or the process was frozen: what is computed by the old estimate is refused by the fence of
//     time (store_changes), and computed again by the clock that is read under the lock.
package object
