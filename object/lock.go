package object

import (
	"crypto/sha256"
	"encoding/binary"

	"holdfast/identity"
)

// key addresses an object.
type key struct {
	tenant identity.Tenant
	kind   string
	id     ID
}

// lock is the key of the object's advisory lock. It must never change between releases: two of them that run side by
// side would stop excluding each other. Ids cannot hold a NUL, so different objects hash different strings.
func (k key) lock() int64 {
	sum := sha256.Sum256([]byte(string(k.tenant) + "\x00" + k.kind + "\x00" + string(k.id)))
	return int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // all 64 bits are wanted
}

// requestKey finds the event of a request. Like the lock it must never change.
func (k key) requestKey(requestID string) []byte {
	sum := sha256.Sum256([]byte(k.kind + "\x00" + string(k.id) + "\x00" + requestID))
	return sum[:16]
}

// storedTerm is a term as its table has it.
func storedTerm(t identity.Tenant, kind, term string) string {
	return string(t) + "/" + kind + "/" + term
}
