package object

import (
	"fmt"
	"strconv"
	"time"

	"holdfast/identity"
)

// Version counts an object's committed changes: 1 is its creation, and there is no gap.
type Version int64

// ID is an object's id within its tenant and kind: 1 to 128 of A-Z a-z 0-9 . _ : -
type ID string

func (id ID) check() error {
	if len(id) == 0 || len(id) > 128 {
		return fmt.Errorf("%w: an id has 1 to 128 characters", ErrInvalid)
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == ':', c == '-':
		default:
			return fmt.Errorf("%w: an id has only the characters A-Z a-z 0-9 . _ : -", ErrInvalid)
		}
	}
	return nil
}

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
