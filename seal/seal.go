// Package seal keeps secrets at rest: it encrypts and authenticates them with AES-256-GCM, under keys that can be
// rotated. It is a leaf.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
)

// ErrOpen is what Open returns for what was sealed under no key of the box, in another context, or changed since. It
// does not say which.
var ErrOpen = errors.New("seal: cannot be opened")

// KeySize is the bytes of a key.
const KeySize = 32

// A sealed secret is: 1 byte format, 4 bytes id of its key, 12 bytes nonce, ciphertext with a 16-byte tag.
const (
	format    = 1
	idSize    = 4
	nonceSize = 12
	headSize  = 1 + idSize + nonceSize
)

// Box seals secrets under its first key and opens those of all its keys. It is safe for concurrent use.
type Box struct{ keys []sealer }

type sealer struct {
	id     [idSize]byte // begins the key's SHA-256, so that a key finds what it sealed
	aead   cipher.AEAD
	macKey []byte
}

// NewBox makes a box of keys in base64 of 32 bytes each, the newest first. To rotate, add a new key at the end of every server's
// list, then move it to the front; an old one may go once nothing that it sealed is left. Without keys there is an error: a
// server that seals must have one.
func NewBox(keys ...string) (*Box, error) {
	if len(keys) == 0 {
		return nil, errors.New("seal: no key")
	}
	b := &Box{}
	for i, text := range keys {
		key, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(key) != KeySize {
			return nil, fmt.Errorf("seal: key %d is not base64 of %d bytes", i+1, KeySize) // the text is a secret
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, err
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		macKey, err := hkdf.Key(sha256.New, key, nil, "holdfast mac", KeySize)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(key)
		s := sealer{id: [idSize]byte(sum[:idSize]), aead: aead, macKey: macKey}
		if slices.ContainsFunc(b.keys, func(other sealer) bool { return other.id == s.id }) {
			return nil, fmt.Errorf("seal: key %d is there twice", i+1)
		}
		b.keys = append(b.keys, s)
	}
	return b, nil
}

// NewKey makes a random key, as NewBox takes it.
func NewKey() string {
	var key [KeySize]byte
	_, _ = rand.Read(key[:]) // never fails
	return base64.StdEncoding.EncodeToString(key[:])
}

// Seal encrypts a secret. It opens only with the same context, which is not secret and not stored: name in it what the
// secret belongs to, so that it cannot be moved to another place.
func (b *Box) Seal(plain, context []byte) []byte {
	k := b.keys[0]
	sealed := make([]byte, headSize, headSize+len(plain)+k.aead.Overhead())
	sealed[0] = format
	copy(sealed[1:], k.id[:])
	_, _ = rand.Read(sealed[1+idSize:]) // never fails
	return k.aead.Seal(sealed, sealed[1+idSize:], plain, context)
}

// Open decrypts what Seal made, or returns ErrOpen.
func (b *Box) Open(sealed, context []byte) ([]byte, error) {
	if len(sealed) < headSize || sealed[0] != format {
		return nil, ErrOpen
	}
	for _, k := range b.keys {
		if [idSize]byte(sealed[1:]) != k.id {
			continue
		}
		if plain, err := k.aead.Open(nil, sealed[1+idSize:headSize], sealed[headSize:], context); err == nil {
			return plain, nil
		}
	}
	return nil, ErrOpen
}

// MACs returns the HMAC-SHA256 of a message under each key of the box, the newest key's first. Only a holder of the key can
// compute one.
func (b *Box) MACs(message []byte) [][]byte {
	sums := make([][]byte, len(b.keys))
	for i, k := range b.keys {
		h := hmac.New(sha256.New, k.macKey)
		h.Write(message)
		sums[i] = h.Sum(nil)
	}
	return sums
}
