// Package object is the runtime of Holdfast: how an object lives. An object has one small state, ordered collections
// of entries, a version that counts its changes, and a journal of them. One writer at a time changes it, replies come
// only after the commit, and what was acknowledged is never lost and never applied twice.
//
// # The path of a change
//
//	Update ──> mailbox ──> lane ──────────> batch ─────────────────────────────> reply
//	           one an      one a tenant;    up to 256 objects with all that
//	           object      lanes in turn    waits for them, in one transaction
//
//	the fast path, if the cache has every object of the batch (one round trip):
//
//	    run closures on cached states ──> [ enter scope · lock, store if still at that version ] ──> publish ──> reply
//
//	the slow path, if it has not, or if the fast path met another version (two round trips):
//
//	    [ BEGIN · enter scope · lock · load ] ──> run closures ──> [ store · COMMIT ] ──> publish ──> reply
//
// While a batch commits, more changes gather in the mailboxes and lanes, and the next batch takes them all: the busier
// the runtime, the more changes share one commit. A process never has two transactions in flight on one object, so a
// waiting change holds no connection.
//
// Changes of several objects that happen together (atomic.go) enter their mailboxes under one lock. Each waits at the head of its mailbox
// until all of them are at the heads of theirs. Then they go as one batch, with other such groups but with no single change, and
// on the fast path if the cache has all of their objects. A batch stores the whole of a group or nothing of it.
//
// # Closures
//
// A change is a closure over a scratch copy of the state. It is pure, because it may run again: on the slow path after the
// fast one failed, in a smaller batch after its neighbour failed, or because it looked at an entry that was not in memory,
// which unwinds the closure and loads the entry. Only the last run counts. A closure that returns an error or panics leaves no trace.
//
// # What keeps it right
//
// A transaction-level advisory lock on (tenant, kind, id) serializes writers, even of an object that does not exist
// yet. It is a statement of its own, so that the load that follows has a younger snapshot than the lock. The version fence
// (UPDATE … WHERE version = expected) would catch any mistake in that, and it is all that the fast path relies on: what
// the fast path computed from the cache is right if and only if the version is still the same when the lock is held.
//
// Reads are strong. A view shares its round trip only with views that were asked for before it was sent, and the cache's record
// is used only if the database answers that the version is still the same. Of an object that is changed but not read, the
// cache keeps only the newest few entries (record.go).
//
// # Timers
//
// An object has named timers. Changes set and clear them, and they commit with the state. They are stored twice: in
// the object's row, where the version fences them, and in a table ordered by due time. A process that runs timers reads
// that table when the next timer that it set itself is due, and every half second for those of others. It leases
// what is due for some seconds, and runs each timer as a change of its object. The change first looks for this very timer,
// by name and time, in the object, and removes it: so a timer happens once, however many processes leased it. Timers
// go through their tenants' lanes, and a process runs only so many at a time, so that writers do not wait behind them. If more
// are due, it takes them from each tenant in turn.
//
//	due ──> leased for 20 s ──> OnTimer ──> gone, in the same commit
//	 ^                            │ error or panic
//	 └── later, twice as long <───┴──> parked, after MaxTimerTries
//
// # History
//
// Each event of the journal has what its change replaced: fields, keys of maps, entries, timers (internal/journal). To see the object as it was,
// the runtime starts from what is stored and takes events back, newest first, in one snapshot of the database. A
// restore is an ordinary change computed from that, fenced by the version it was computed at. A deleted object keeps its
// rows for a day, and can come back with them. An object that is created again has no history of its earlier life.
//
// # Sleep
//
// An object that nobody touches for a while sleeps: its entries and events are compressed (hibernate.go, docs/adr/0009),
// and its row says so. The version does not change, and reads of state do not notice. A read or change that needs entries or events
// is unwound by errAsleep, wakes the object under its lock, and runs again. The fence refuses to store what was computed from the cache
// while the object sleeps.
//
// # Rooms
//
// What needs no object lives in internal/: addr (names and locks), rowjson (stored JSON), journal (notes that undo a change), scrub (a user
// is erased), bounds (how much at once, and in whose turn), quota (what is stored for whom), hints (what processes tell each other). The rest is
// here: changes (kind, tx, runtime, work, commit, atomic), reads (read, list, entries, range, together, catchup), watchers (watch, watch_list, signal), timers,
// and administration (history, rewind, restore, inspect, erase, hibernate).
//
// # Releases side by side
//
// A row says which schema its state has. The kind's upcasters bring an older state up to date whenever it is
// read. The next change stores it so, and that change's event keeps the state as it was: earlier events are written in the
// older schema. A state or an entry that holds anything this release does not know, or that has a newer schema, can be read but
// not written: ErrNewerSchema. So in a rollout or a rollback, no release drops what another has written.
//
// # Failure
//
//   - A process dies with timers that it leased: they are due again when the lease ends.
//   - A process does not know a timer's kind, or a newer release has written the object: the timer is left
//     to another process, and the attempt does not count.
//   - The process dies: what was in flight is committed or not, never half. A caller without a reply tries again, and
//     its request id finds the first reply if there was one.
//   - The connection is lost during the commit: the outcome is unknown. The runtime locks the object and looks. If it is at the
//     version that the change was computed from, the change did not happen and never will, because a transaction that is still
//     under way will meet the fence: the change is made again. At another version, the journal tells by request id whether the change was
//     ours. Only a change without a request id, on an object that has moved on, is answered with db.ErrOutcomeUnknown.
//   - Postgres is away: changes and reads fail at once with db.ErrUnavailable. Nothing is queued for later.
//   - A change cannot be stored (it is poisoned): its batch is tried again object by object, then change by change, so that
//     it fails alone.
//   - Another process writes the same object: the fence refuses the fast path, and the slow path loads.
//   - Another holds a lock for too long (2 s): the batch's objects are tried again one by one. The one that is stuck
//     waits once more (6 s), alone and beside its lane, then fails with db.ErrContention. A deadlock is treated the same way.
//   - A closure is slow: it delays its batch, while one more batch of its tenant runs. Closures do no I/O.
//   - Too much waits: mailboxes, lanes and the whole are bounded, and what is over a bound is refused at once with
//     an OverloadedError.
//   - A watcher is slow: its buffer overflows and is dropped. The watcher then reads the journal, which gives it what
//     it missed in one message.
//   - Another process writes what is watched here: a hint says so (internal/hints), and the watcher reads the journal. Hints may
//     be lost, late or wrong, and the connection that brings them may be dead, so watchers poll as well. Signals travel the same way,
//     sealed; a lost signal is not sent again.
//   - The clock of the machine steps: nothing happens. Time is the database's, read after the lock, or extrapolated
//     from its last answer by the process's monotonic clock. It does not run backwards for one object.
//   - The database's clock is set, or the process was frozen: the fence of time (store_changes) refuses what was computed by the old
//     estimate, and it is computed again by the clock that is read under the lock.
package object
