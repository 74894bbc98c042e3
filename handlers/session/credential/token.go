// Package credential knows what a session's tokens are, and what they are worth. It is shared by those who verify tokens
// and those who issue them, and is pure: no I/O, no clock.
//
// A token is
//
//	hfa_<object><session>_<generation><random><tag>      hfr_… for a refresh token
//	     26      10        4           32      12 bytes, as base64
//
// The first part, the session id, finds the session: <object> is the id of the object with all of the user's sessions.
// The second part, the secret, proves it: 256 bits that nobody can guess. Of it only the SHA-256 is stored, which is
// enough for a secret of that entropy. The tag tells a token that was issued once from one that never was: reuse of an
// old refresh token ends the session, so nobody may be able to end it with a secret that he made up.
//
// The random bits are HMAC-SHA256 of a random salt, with the credential as its key that the token is issued for: the
// refresh token that is exchanged, or what a user signs in with. So a retry with the same credential gets the same token
// again although it is stored nowhere, and the database alone, which has the salt, makes no token.
package credential

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"log/slog"
	"strings"

	"holdfast/identity"
)

// Class is what a token is for.
type Class string

// The classes, as a token begins.
const (
	Access  Class = "hfa_"
	Refresh Class = "hfr_"
)

const (
	objectLen  = 26
	sessionLen = 36
	randomLen  = sha256.Size
	tagLen     = 12
	secretLen  = 4 + randomLen + tagLen
	tokenLen   = len(Access) + sessionLen + 1 + secretLen*4/3
)

// SaltLen, FamilyKeyLen and SessionRandomLen are how many random bytes a pair of tokens, a session's life and a session's
// id take.
const (
	SaltLen          = 32
	FamilyKeyLen     = 32
	SessionRandomLen = 6
)

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// EncodeID is random bytes as an id has them.
func EncodeID(random []byte) string { return idEncoding.EncodeToString(random) }

// ObjectID is the id of the object that has a user's sessions. A user's id may hold what an object's may not, hence a
// hash. It must never change.
func ObjectID(t identity.Tenant, u identity.User) string {
	sum := sha256.Sum256([]byte("holdfast user_sessions\x00" + string(t) + "\x00" + string(u)))
	return idEncoding.EncodeToString(sum[:16])
}

// NewSessionID is the id of a session of an object, made of SessionRandomLen random bytes.
func NewSessionID(object string, random []byte) string { return object + EncodeID(random) }

// ObjectOf is the id of the object that has the session, or "" for what is no session id.
func ObjectOf(sessionID string) string {
	if len(sessionID) != sessionLen {
		return ""
	}
	for _, c := range []byte(sessionID) {
		if (c < 'a' || c > 'z') && (c < '2' || c > '7') {
			return ""
		}
	}
	return sessionID[:objectLen]
}

// Token is a credential. Printed or logged it does not show.
type Token struct {
	Class   Class
	Session string
	secret  [secretLen]byte
}

// Parse reads a token; ok reports whether it has the form of one.
func Parse(s string) (t Token, ok bool) {
	if !IsOne(s) || len(s) != tokenLen || s[len(Access)+sessionLen] != '_' {
		return Token{}, false
	}
	t = Token{Class: Class(s[:len(Access)]), Session: s[len(Access) : len(Access)+sessionLen]}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(s[tokenLen-secretLen*4/3:])
	if err != nil || ObjectOf(t.Session) == "" {
		return Token{}, false
	}
	copy(t.secret[:], secret)
	return t, true
}

// IsOne reports whether s begins as a session's token does.
func IsOne(s string) bool {
	return strings.HasPrefix(s, string(Access)) || strings.HasPrefix(s, string(Refresh))
}

// Bearer is the token as its owner presents it.
func (t Token) Bearer() string {
	return string(t.Class) + t.Session + "_" + base64.RawURLEncoding.EncodeToString(t.secret[:])
}

// Hash is what is stored of a token.
func (t Token) Hash() []byte {
	sum := sha256.Sum256(t.secret[:])
	return sum[:]
}

// Matches compares a token with a stored hash, in constant time. No hash matches nothing.
func (t Token) Matches(hash []byte) bool { return subtle.ConstantTimeCompare(t.Hash(), hash) == 1 }

// Generation is which of the session's pairs the token says it is of.
func (t Token) Generation() int32 { return int32(binary.BigEndian.Uint32(t.secret[:4])) } //nolint:gosec // wraps after two billion refreshes

// Issued reports whether the session with this family key issued the token at any time.
func (t Token) Issued(familyKey []byte) bool {
	return len(familyKey) == FamilyKeyLen && hmac.Equal(t.secret[secretLen-tagLen:], t.tag(familyKey))
}

func (t Token) tag(familyKey []byte) []byte {
	return mac(familyKey, "holdfast token tag", string(t.Class), t.Session, string(t.secret[:secretLen-tagLen]))[:tagLen]
}

// Key is the key for tokens that this one is exchanged for.
func (t Token) Key() [sha256.Size]byte { return KeyOf(t.Bearer()) }

// String implements fmt.Stringer, and keeps the secret.
func (t Token) String() string { return string(t.Class) + "…" }

// GoString implements fmt.GoStringer, and keeps the secret.
func (t Token) GoString() string { return t.String() }

// LogValue implements slog.LogValuer, and keeps the secret.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// KeyOf is the key for tokens that are issued for a credential: it proves the credential, and is not stored.
func KeyOf(credential string) [sha256.Size]byte {
	return sha256.Sum256([]byte("holdfast session credential\x00" + credential))
}

// Origin is what the tokens of one generation are made of.
type Origin struct {
	Session    string
	Generation int32
	// Key is of the credential that they are issued for.
	Key       [sha256.Size]byte
	Salt      []byte
	FamilyKey []byte
}

// Issue makes the token of a class; the same one each time.
func (o Origin) Issue(c Class) Token {
	t := Token{Class: c, Session: o.Session}
	binary.BigEndian.PutUint32(t.secret[:], uint32(o.Generation)) //nolint:gosec // it is never negative
	copy(t.secret[4:], mac(o.Key[:], "holdfast token", string(c), o.Session, string(t.secret[:4]), string(o.Salt)))
	copy(t.secret[secretLen-tagLen:], t.tag(o.FamilyKey))
	return t
}

// mac is HMAC-SHA256 of the parts, each with its length before it.
func mac(key []byte, parts ...string) []byte {
	h := hmac.New(sha256.New, key)
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		h.Write([]byte(p))
	}
	return h.Sum(nil)
}
