package seal_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"holdfast/seal"
)

func box(t *testing.T, keys ...string) *seal.Box {
	t.Helper()
	b, err := seal.NewBox(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSealed(t *testing.T) {
	t.Parallel()
	oldKey, newKey := seal.NewKey(), seal.NewKey()
	before, after, other := box(t, oldKey), box(t, newKey, oldKey), box(t, newKey)
	secret, place := []byte("a handle"), []byte("tenant/conversation/c1")
	sealed := before.Seal(secret, place)
	if bytes.Contains(sealed, secret) || bytes.Equal(sealed, before.Seal(secret, place)) {
		t.Errorf("sealed: %q", sealed)
	}
	for name, tt := range map[string]struct {
		box           *seal.Box
		sealed, place []byte
		ok            bool
	}{
		"the same key":      {before, sealed, place, true},
		"a rotated key":     {after, sealed, place, true},
		"another key":       {other, sealed, place, false},
		"another place":     {before, sealed, []byte("tenant/conversation/c2"), false},
		"cut":               {before, sealed[:len(sealed)-1], place, false},
		"too short":         {before, sealed[:5], place, false},
		"nothing":           {before, nil, place, false},
		"a newer format":    {before, append([]byte{2}, sealed[1:]...), place, false},
		"a changed nonce":   {before, flip(sealed, 7), place, false},
		"a changed text":    {before, flip(sealed, len(sealed)-1), place, false},
		"sealed by the new": {after, after.Seal(secret, place), place, true},
	} {
		got, err := tt.box.Open(tt.sealed, tt.place)
		if tt.ok && (err != nil || !bytes.Equal(got, secret)) || !tt.ok && !errors.Is(err, seal.ErrOpen) {
			t.Errorf("%s: opens as %q, %v", name, got, err)
		}
	}
	if _, err := before.Open(after.Seal(secret, place), place); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("the old key alone opens what the new one sealed: %v", err)
	}
	if got, err := before.Open(before.Seal(nil, nil), nil); err != nil || len(got) != 0 {
		t.Errorf("the empty secret opens as %q, %v", got, err)
	}
}

func flip(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}

func TestKeys(t *testing.T) {
	t.Parallel()
	key := seal.NewKey()
	for name, keys := range map[string][]string{
		"none": nil, "empty": {""}, "short": {"AAAA"}, "no base64": {strings.Repeat("!", 44)}, "twice": {key, key},
	} {
		if _, err := seal.NewBox(keys...); err == nil || strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
