package object

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"

	"github.com/google/uuid"

	"holdfast/identity"
)

// MakeID returns the id for a create request that names none. A retry has to find what the first try made, so the caller and
// the request id determine it. No other caller can compute it, to take it first or to learn of the request: it is keyed with a
// secret that the processes share. Without a request id it is random. It returns identity.ErrAbsent or an error of View.
func (k *Kind[S]) MakeID(ctx context.Context, requestID string) (ID, error) {
	if requestID == "" {
		id, err := uuid.NewV7()
		return ID(id.String()), err
	}
	caller, err := identity.From(ctx)
	if err != nil {
		return "", err
	}
	message := []byte("holdfast id\x00" + k.name + "\x00" + string(caller.Tenant) + "\x00" + string(caller.User) + "\x00" + requestID)
	macs := k.rt.macs(message)
	// While keys are rotated, the first try may have been keyed with an older one, or at another process with a newer one.
	for _, mac := range macs[1:] {
		id := idOf(mac)
		if _, err := k.View(ctx, id); err == nil {
			return id, nil
		} else if !errors.Is(err, ErrNotFound) {
			return "", err
		}
	}
	return idOf(macs[0]), nil
}

// idOf returns a UUID of version 8, which RFC 9562 leaves to applications.
func idOf(mac []byte) ID {
	id := uuid.UUID(mac[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return ID(id.String())
}

// ownMACs returns a stand-in for a Sealer's MACs, for a process that shares no secret with others.
func ownMACs() func(message []byte) [][]byte {
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails
	return func(message []byte) [][]byte {
		h := hmac.New(sha256.New, key[:])
		h.Write(message)
		return [][]byte{h.Sum(nil)}
	}
}
