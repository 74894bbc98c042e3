package project

import (
	"fmt"
	"testing"

	"holdfast/object"
)

// Another set of versions is another fingerprint.
func TestFingerprint(t *testing.T) {
	t.Parallel()
	of := func(ids ...string) string {
		var f fingerprint
		for i, id := range ids {
			f.add("k", object.Info{ID: object.ID(id), Version: object.Version(i + 1)})
		}
		return f.etag()
	}
	seen := map[string]string{}
	for _, ids := range [][]string{{}, {"a"}, {"b"}, {"a", "b"}, {"b", "a"}, {"a", "b", "c"}, {"ab"}, {"a", "a"}} {
		v := of(ids...)
		if v == "" || v != of(ids...) {
			t.Errorf("%v: %s and %s", ids, v, of(ids...))
		}
		if other, ok := seen[v]; ok {
			t.Errorf("%v has the fingerprint of %s", ids, other)
		}
		seen[v] = fmt.Sprint(ids)
	}
}
