// Package addr names objects.
package addr

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"holdfast/identity"
	"holdfast/object/internal/rowjson"
)

// Version counts an object's committed changes: 1 is its creation, and there is no gap.
type Version int64

// ID is an object's id within its tenant and kind: 1 to 128 of A-Z a-z 0-9 . _ : -
type ID string

// Check returns an ErrInvalid that says what is wrong with the id.
func (id ID) Check() error {
	if len(id) == 0 || len(id) > 128 {
		return fmt.Errorf("%w: an id has 1 to 128 characters", rowjson.ErrInvalid)
	}
	for _, c := range []byte(id) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == ':', c == '-':
		default:
			return fmt.Errorf("%w: an id has only the characters A-Z a-z 0-9 . _ : -", rowjson.ErrInvalid)
		}
	}
	return nil
}

// Key addresses an object.
type Key struct {
	Tenant identity.Tenant
	Kind   string
	ID     ID
}

// Lock is the key of the object's advisory lock. It must never change between releases: two of them that run side by
// side would stop excluding each other. Ids cannot hold a NUL, so different objects hash different strings.
func (k Key) Lock() int64 {
	sum := sha256.Sum256([]byte(string(k.Tenant) + "\x00" + k.Kind + "\x00" + string(k.ID)))
	return int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // all 64 bits are wanted
}

// RequestKey finds the event of a request. Like the lock it must never change.
func (k Key) RequestKey(requestID string) []byte {
	sum := sha256.Sum256([]byte(k.Kind + "\x00" + string(k.ID) + "\x00" + requestID))
	return sum[:16]
}
