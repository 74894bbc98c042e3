// Package state is the StateManager: objects whose meaning is the caller's. The operations are plain functions over a state and its
// entries; the object runtime makes what they come to durable.
package state

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	statev1 "holdfast/gen/holdfast/state/v1"
	"holdfast/gen/holdfast/state/v1/statev1connect"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	"holdfast/handlers/problem"
	"holdfast/handlers/rpc"
	"holdfast/identity"
	"holdfast/object"
)

type state = *storev1.ObjectState

// Kind is that of the objects.
type Kind = *object.Kind[state]

// inEntries is the collection of the entries of all of an object's collections; key: "<collection>/<key>".
const inEntries = "entries"

// inLabels is the index of entries by their labels; see labelled.
const inLabels = "labels"

const (
	// maxState and maxValue bound a state and the value of an entry, as the caller spelt them.
	maxState = 256 << 10
	maxValue = 1 << 20
	// Stored, texts have escapes, and bytes are base64.
	storedState = 1 << 20
	storedEntry = 4 << 20
	recentKeep  = 21 // the last 20, and whether there are more
)

// Kinds are those of the objects and of what their types are declared to be.
type Kinds struct {
	objects Kind
	types   typeKind
}

// Register adds the kinds to the runtime.
func Register(rt *object.Runtime) Kinds {
	return Kinds{object.Register(rt, config()), registerTypes(rt)}
}

func config() object.KindConfig[state] {
	return object.KindConfig[state]{
		Name: "state", SchemaVersion: 1, Terms: terms, Orders: dueOrders, Users: object.UsersShare, UserRestore: true,
		StateBytes: storedState, EntryBytes: storedEntry,
		TTLOf:       func(s state) time.Duration { return s.GetTtl().AsDuration() },
		Collections: map[string]proto.Message{inEntries: &storev1.Entry{}, inLabels: &storev1.Entry{}},
		Recent:      inEntries, RecentKeep: recentKeep,
		// Who has a lease may have lost it to another since. Numbers are versions, so none is given twice.
		Restored: func(s, _ state, _ time.Time) {
			s.Leases = nil
			for _, t := range s.GetTimers() {
				t.Lease = nil
			}
		},
		OnTimer: onTimer,
	}
}

// Manager serves StateService. It is safe for concurrent use.
type Manager struct {
	rt    *object.Runtime
	kind  Kind
	types declarations
}

var _ statev1connect.StateServiceHandler = (*Manager)(nil)

// NewManager makes a manager of kinds that Register made.
func NewManager(rt *object.Runtime, kinds Kinds) *Manager {
	return &Manager{rt: rt, kind: kinds.objects, types: declarations{kind: kinds.types, known: map[typeKey]declaration{}}}
}

// address is an object's name, with its owner.
type address struct {
	kind, name string // kind: the caller's type
	owner      identity.User
}

// nameBytes is how much of a name is in an id, so that ids sort as names do.
const nameBytes = 39

// scope begins the ids of all objects of one type and owner.
func (a address) scope() string {
	sum := a.hash("")
	return rpc.Base32(sum[:10]) + "."
}

// id is the id of the object: no two names have the same.
func (a address) id() object.ID {
	sum := a.hash(a.name)
	return object.ID(a.prefix() + "." + rpc.Base32(sum[:20]))
}

// prefix begins the ids of the objects whose names begin with the address's, as far as an id has them.
func (a address) prefix() string {
	return a.scope() + hex.EncodeToString([]byte(a.name[:min(len(a.name), nameBytes)]))
}

func (a address) hash(name string) [sha256.Size]byte {
	var b []byte
	for _, part := range []string{a.kind, string(a.owner), name} {
		b = append(binary.AppendUvarint(b, uint64(len(part))), part...)
	}
	return sha256.Sum256(b)
}

// named is an error in which the object has the name that callers know.
func (a address) named(err error) error {
	if m, ok := errors.AsType[*object.VersionMismatchError](err); ok {
		return &object.VersionMismatchError{Kind: a.kind, ID: object.ID(a.name), Expected: m.Expected, Current: m.Current}
	}
	return err
}

// resolve returns whose object a ref names. Only services name other users than the caller.
func resolve(ctx context.Context, ref *statev1.Ref) (address, error) {
	owner, err := ownerOf(ctx, ref.Owner) //nolint:protogetter // unset is not empty
	return address{ref.GetType(), ref.GetName(), owner}, err
}

// resolveChanged is resolve for an object that is to be changed, and what its type is declared to be. Of the tenant's, only services change
// any, unless the type says otherwise.
func (m *Manager) resolveChanged(ctx context.Context, ref *statev1.Ref) (of address, as *declared, err error) {
	if of, err = resolve(ctx, ref); err != nil {
		return of, nil, err
	}
	if as, err = m.types.of(ctx, of.kind); err == nil && of.owner == "" && !as.GetUsersChangeShared() {
		err = rpc.RequireService(ctx, "change what is the whole tenant's")
	}
	return of, as, err
}

func ownerOf(ctx context.Context, named *string) (identity.User, error) {
	caller, err := identity.From(ctx)
	if err != nil || named == nil {
		return caller.User, err
	}
	owner := identity.User(*named)
	switch {
	case owner == "" || owner == caller.User:
		return owner, nil
	case !caller.Service:
		return "", problem.PermissionDenied("owner: only a service may name another user, on its own behalf")
	case !owner.Valid():
		return "", problem.InvalidArgument("ref.owner", "must be a user's id: 1 to 128 bytes of printable text")
	}
	return owner, nil
}

// terms are what objects can be listed by.
func terms(s state) []string {
	return append([]string{s.GetType(), ownerTerm(s.GetType(), s.GetOwner())}, labelTerms(s.GetType(), s.GetLabels())...)
}

func ownerTerm(kind, owner string) string { return kind + "/owner:" + owner }

func labelTerms(kind string, labels map[string]string) (out []string) {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, kind+"/label:"+k+"="+labels[k])
	}
	return out
}

// mergeLabels sets those that are given; an empty value removes one.
func mergeLabels(s state, labels map[string]string) error {
	for k, v := range labels {
		if v == "" {
			delete(s.GetLabels(), k)
			continue
		}
		if s.Labels == nil {
			s.Labels = map[string]string{}
		}
		s.Labels[k] = v
	}
	if len(s.GetLabels()) > maxLabels {
		return problem.LimitReached("object", "labels", maxLabels, "an object has at most 64 labels", 0)
	}
	return nil
}

const maxLabels = 64

// stored is the key of an entry among those of all collections.
func stored(collection, key string) string { return collection + "/" + key }

// labelled begins the keys, in the index, of the entries of a collection that have a label: "<collection>/<label>=<value>". Their own keys
// follow, behind a slash.
func labelled(collection, label, value string) string {
	return collection + "/" + label + "=" + strings.NewReplacer("%", "%25", "/", "%2F").Replace(value)
}

// spelt splits a stored key.
func spelt(key string) (collection, name string) {
	collection, name, _ = strings.Cut(key, "/")
	return collection, name
}
