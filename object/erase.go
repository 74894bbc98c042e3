package object

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"holdfast/db"
	"holdfast/gen/dbsqlc"
	"holdfast/identity"
	"holdfast/object/internal/rowjson"
	"holdfast/object/internal/scrub"
)

// Erased says what EraseUser did.
type Erased struct {
	// Deleted is the rows that belonged to the user, by table.
	Deleted db.Rows
	// Changed is how many objects of others mentioned the user, Events how many events the user had made or was
	// mentioned in.
	Changed, Events int
	// Left is the rows in which the user's id can still be found, by table; see EraseUser.
	Left db.Rows
}

// longID is from how many bytes on an id is taken out of running text, too: a shorter one is part of ordinary words.
const longID = 8

// EraseUser deletes all that belongs to a user of the caller's tenant, owned entries in others' objects and API keys included, and
// takes the user's id out of what belongs to others: there it becomes a pseudonym, which is the same everywhere and tells nothing. Of an object that
// is a change like any other; the journal, which could undo it, is rewritten too. What a kind says is personal goes
// from the tenant's objects as well; see KindConfig. Replies that mention the user are forgotten: a retry of such a request
// gets an empty one. The request ids that the user chose are forgotten, too.
//
// An id of less than 8 bytes is taken out only where it stands alone. Ids of objects cannot change; if they have the
// user's id in them they are in Left. A user who may still sign in can start again. It may be ended and run again. It
// returns ErrNewerSchema where a newer release wrote what mentions the user, or an error of package db.
func (rt *Runtime) EraseUser(ctx context.Context, user identity.User) (Erased, error) {
	var out Erased
	caller, err := identity.From(ctx)
	if err != nil {
		return out, err
	}
	if !user.Valid() || !caller.Service {
		return out, fmt.Errorf("%w: a service erases a user", ErrInvalid)
	}
	e := newEraser(rt, caller, user)
	// What this process has counted of the user goes with the rest.
	if err := rt.FlushUsage(ctx); err != nil {
		return out, err
	}
	// Before the rest, so that what servers have not stored yet of the user is not stored behind it.
	if err := rt.db.NoteErasure(ctx, e.mention); err != nil {
		return out, err
	}
	// What has expired mentions the user as well, and cannot be changed any more.
	if err := rt.db.DeleteExpired(ctx, caller.Tenant); err != nil {
		return out, err
	}
	if out.Deleted, err = rt.db.DeleteOwned(ctx, caller.Tenant, user); err != nil {
		return out, err
	}
	for again := true; again; { // an object may fall asleep before its turn
		changed, err := e.objects(ctx)
		if out.Changed += changed; err != nil {
			return out, err
		}
		events, err := e.events(ctx)
		if out.Events += events; err != nil {
			return out, err
		}
		if again, err = e.wake(ctx); err != nil {
			return out, err
		}
	}
	if err := rt.db.NoteErasure(ctx, e.mention); err != nil {
		return out, err
	}
	out.Left, err = rt.db.CountMentions(ctx, e.mention)
	return out, err
}

// Erased reports whether the caller, who is a user, was erased at or after a time.
func (k *Kind[S]) Erased(ctx context.Context, since time.Time) (bool, error) {
	caller, err := identity.From(ctx)
	if err != nil {
		return false, err
	}
	return k.rt.db.ErasedSince(ctx, caller.Tenant, caller.User, since)
}

// eraser takes one user out of one tenant.
type eraser struct {
	rt        *Runtime
	caller    identity.Identity
	mention   db.Mention
	user      string
	pseudonym string
	// cut are objects with owned entries, of which some were the user's: their history goes.
	cut map[key]struct{}
}

func newEraser(rt *Runtime, caller identity.Identity, user identity.User) *eraser {
	sum := sha256.Sum256([]byte(string(caller.Tenant) + "\x00" + string(user)))
	return &eraser{
		rt: rt, caller: caller, user: string(user), pseudonym: "erased-" + hex.EncodeToString(sum[:8]), cut: map[key]struct{}{},
		mention: db.Mention{Tenant: caller.Tenant, User: user, Inside: len(user) >= longID},
	}
}

// wake wakes the objects whose sleepers mention the user, and returns whether there were any.
func (e *eraser) wake(ctx context.Context) (woke bool, err error) {
	found, err := e.rt.db.MentioningSleepers(ctx, e.mention)
	if err != nil {
		return false, err
	}
	for _, s := range found {
		if err := e.rt.wake(ctx, key{Tenant: e.caller.Tenant, Kind: s.Kind, ID: ID(s.ID)}); err != nil {
			return false, err
		}
	}
	return len(found) > 0, nil
}

// objects changes the objects of others that mention the user, and returns how many.
func (e *eraser) objects(ctx context.Context) (int, error) {
	changed := map[key]struct{}{}
	var lastState dbsqlc.FindMentioningStatesRow
	for {
		page, err := e.rt.db.MentioningStates(ctx, e.mention, lastState)
		if err != nil {
			return len(changed), err
		}
		for _, o := range page {
			k := key{Tenant: e.caller.Tenant, Kind: o.Kind, ID: ID(o.ObjectID)}
			differs, err := e.change(ctx, k, nil)
			if err != nil {
				return len(changed), err
			}
			if differs {
				changed[k] = struct{}{}
			}
			lastState = o
		}
		if len(page) < db.MentionsPage {
			break
		}
	}
	var last dbsqlc.FindMentioningEntriesRow
	for {
		page, err := e.rt.db.MentioningEntries(ctx, e.mention, last)
		if err != nil || len(page) == 0 {
			return len(changed), err
		}
		last = page[len(page)-1]
		live := map[key][]entryKey{}
		for i := range page {
			r := &page[i]
			k := key{Tenant: e.caller.Tenant, Kind: r.Kind, ID: ID(r.ObjectID)}
			if !r.Dead {
				live[k] = append(live[k], entryKey{r.Collection, r.Key})
				continue
			}
			kind, err := e.kind(r.Kind)
			if err != nil {
				return len(changed), err
			}
			body, differs, err := e.of(kind).Message([]byte(r.Body), kind.entryDescriptor(r.Collection))
			renamed := e.of(kind).Text(r.Key)
			owned := err == nil && e.owns(kind, ownerOf(r.Owned, r.OwnerID), []byte(r.Body), kind.entryDescriptor(r.Collection))
			if owned || differs || renamed != r.Key {
				changed[k] = struct{}{}
			}
			switch {
			case err != nil:
			case owned:
				if len(kind.owned) > 0 {
					e.cut[k] = struct{}{}
				}
				err = e.rt.db.DeleteEntry(ctx, dbsqlc.DeleteEntryParams{
					TenantID: string(k.Tenant), Kind: r.Kind, ObjectID: r.ObjectID, Collection: r.Collection, Key: r.Key,
				})
			case differs, renamed != r.Key:
				err = e.rt.db.ReplaceEntry(ctx, dbsqlc.ReplaceEntryParams{
					NewKey: renamed, Body: body, TenantID: string(k.Tenant), Kind: r.Kind, ObjectID: r.ObjectID, Collection: r.Collection, Key: r.Key,
				})
			}
			if err != nil {
				return len(changed), err
			}
		}
		for k, keys := range live {
			differs, err := e.change(ctx, k, keys)
			if err != nil {
				return len(changed), err
			}
			if differs {
				changed[k] = struct{}{}
			}
		}
	}
}

// owns reports whether an entry is the user's, by its owner or by what is stored of it.
func (e *eraser) owns(k *kind, owner *identity.User, stored []byte, d protoreflect.MessageDescriptor) bool {
	return owner != nil && string(*owner) == e.user || e.of(k).Owns(stored, d)
}

func (e *eraser) of(k *kind) scrub.Scrubber {
	return scrub.Scrubber{Mention: e.mention, Pseudonym: e.pseudonym, Personal: k.personal}
}

func (e *eraser) kind(name string) (*kind, error) {
	e.rt.mu.Lock()
	defer e.rt.mu.Unlock()
	if k := e.rt.kinds[name]; k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("%w: the kind %q", ErrNewerSchema, name)
}

func (k *kind) entryDescriptor(collection string) protoreflect.MessageDescriptor {
	if m := k.collections[collection]; m != nil {
		return m.ProtoReflect().Descriptor()
	}
	return nil // of an older or a newer release
}

// change takes the user out of an object's state and of some of its entries, as one change, and reports whether anything
// differs. An object that is gone meanwhile needs no change.
func (e *eraser) change(ctx context.Context, at key, keys []entryKey) (differs bool, err error) {
	kind, err := e.kind(at.Kind)
	if err != nil {
		return false, err
	}
	c := &change{ctx: ctx, caller: e.caller, unmetered: true, done: make(chan struct{}), opts: updateOptions{prefetch: keys}, run: func(t *txn) error {
		stored, err := kind.rt.encoder.Encode(t.state)
		if err != nil {
			return err
		}
		text, changed, err := e.of(kind).Message([]byte(stored), kind.prototype.ProtoReflect().Descriptor())
		if err != nil {
			return err
		}
		differs = changed
		if differs {
			if t.state, _, err = rowjson.Decode(kind.prototype, string(text)); err != nil {
				return err
			}
		}
		for _, k := range keys {
			old := t.entry(k)
			if old.value == nil {
				continue
			}
			stored, err := kind.rt.encoder.Encode(old.value)
			if err != nil {
				return err
			}
			if e.owns(kind, old.owner, []byte(stored), kind.entryDescriptor(k.collection)) {
				t.DeleteEntry(k.collection, k.key)
				differs = true
				continue
			}
			text, changed, err := e.of(kind).Message([]byte(stored), kind.entryDescriptor(k.collection))
			if err != nil {
				return err
			}
			value, _, err := rowjson.Decode(kind.collections[k.collection], string(text))
			if err != nil {
				return err
			}
			renamed := e.of(kind).Text(k.key)
			if renamed != k.key {
				t.DeleteEntry(k.collection, k.key)
			}
			if changed || renamed != k.key {
				t.stage(k.collection, renamed, value, old.owner)
				differs = true
			}
		}
		if !differs {
			t.Unchanged()
		}
		t.Emit("user_erased")
		return nil
	}}
	if err := e.rt.submit(ctx, kind, at.ID, c); err != nil && !errors.Is(err, ErrNotFound) {
		return false, fmt.Errorf("%s %s: %w", at.Kind, at.ID, err)
	}
	if differs && len(kind.owned) > 0 {
		e.cut[at] = struct{}{}
	}
	return differs, nil
}

// events takes the user out of the journal, and returns of how many events.
func (e *eraser) events(ctx context.Context) (n int, err error) {
	for at := range e.cut {
		cut, err := e.cutHistory(ctx, at)
		if n += cut; err != nil {
			return n, err
		}
	}
	var last dbsqlc.FindMentioningEventsRow
	for {
		page, err := e.rt.db.MentioningEvents(ctx, e.mention, last)
		if err != nil || len(page) == 0 {
			return n, err
		}
		last = page[len(page)-1]
		scrubbed := make([]dbsqlc.ScrubEventParams, 0, len(page))
		for i := range page {
			r := &page[i]
			kind, err := e.kind(r.Kind)
			if err != nil {
				return n, err
			}
			undo, differs, err := e.of(kind).Note([]byte(r.Undo), kind.prototype.ProtoReflect().Descriptor(), kind.entryDescriptor)
			if err != nil {
				return n, err
			}
			theirs, inType, inRequestID, inReply := r.Actor == e.user, e.mention.In(r.EventType), e.mention.In(r.RequestID), e.mention.InMessage(r.Reply)
			if !theirs && !differs && !inType && !inRequestID && !inReply {
				continue
			}
			if at := (key{Tenant: e.caller.Tenant, Kind: r.Kind, ID: ID(r.ObjectID)}); len(kind.owned) > 0 {
				if _, done := e.cut[at]; !done {
					cut, err := e.cutHistory(ctx, at)
					if n += cut; err != nil {
						return n, err
					}
				}
				if !inType && !inRequestID && !inReply {
					continue
				}
				undo = []byte(cutNote)
			}
			params := dbsqlc.ScrubEventParams{
				Actor: r.Actor, Undo: undo, DropType: inType, DropReply: inReply || differs || theirs, DropRequest: inRequestID || theirs,
				TenantID: string(e.caller.Tenant), Kind: r.Kind, ObjectID: r.ObjectID, Version: r.Version,
			}
			if theirs {
				params.Actor = e.pseudonym
			}
			scrubbed = append(scrubbed, params)
		}
		if err := e.rt.db.ScrubEvents(ctx, e.caller.Tenant, scrubbed); err != nil {
			return n, err
		}
		n += len(scrubbed)
	}
}

func (e *eraser) cutHistory(ctx context.Context, at key) (int, error) {
	e.cut[at] = struct{}{}
	n, err := e.rt.db.CutHistory(ctx, dbsqlc.CutHistoryParams{
		UserID: e.user, Pseudonym: e.pseudonym, TenantID: string(at.Tenant), Kind: at.Kind, ObjectID: string(at.ID),
	})
	return int(n), err
}
