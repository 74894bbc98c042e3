package project

import (
	"fmt"
	"testing"

	"holdfast/object"
)

// Another set of versions is another fingerprint.
func TestFingerprint(t *testing.T) {
	t.Parallel()
	of := func(ids ...string) int64 {
		var f fingerprint
		for i, id := range ids {
			f.add("k", object.Info{ID: object.ID(id), Version: object.Version(i + 1)})
		}
		return f.version()
	}
	seen := map[int64]string{}
	for _, ids := range [][]string{{}, {"a"}, {"b"}, {"a", "b"}, {"b", "a"}, {"a", "b", "c"}, {"ab"}, {"a", "a"}} {
		v := of(ids...)
		if v < 1 || v != of(ids...) {
			t.Errorf("%v: %d and %d", ids, v, of(ids...))
		}
		if other, ok := seen[v]; ok {
			t.Errorf("%v has the fingerprint of %s", ids, other)
		}
		seen[v] = fmt.Sprint(ids)
	}
}
