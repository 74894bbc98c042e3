package object

import (
	"strconv"
	"time"

	"holdfast/identity"
	"holdfast/object/internal/addr"
)

// Version counts an object's committed changes: 1 is its creation, and there is no gap.
type Version = addr.Version

// ID is an object's id within its tenant and kind: 1 to 128 of A-Z a-z 0-9 . _ : -
type ID = addr.ID

// key addresses an object.
type key = addr.Key

// Info is what the runtime knows of an object beside its state.
type Info struct {
	ID         ID
	Owner      identity.User
	Version    Version
	CreateTime time.Time
	UpdateTime time.Time
	// ExpireTime is the instant from which the object is not found; zero: it does not expire.
	ExpireTime time.Time
}

// SeqKey is the key of the n-th entry of a collection: keys sort as their numbers do.
func SeqKey(n int64) string {
	const digits = "000000000000"
	s := strconv.FormatInt(n, 10)
	if len(s) >= len(digits) {
		return s
	}
	return digits[:len(digits)-len(s)] + s
}

// storedTerm is a term as its table has it.
func storedTerm(t identity.Tenant, kind, term string) string {
	return string(t) + "/" + kind + "/" + term
}
