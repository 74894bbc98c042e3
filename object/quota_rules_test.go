package object

import "testing"

func TestWhatAQuotaRefuses(t *testing.T) {
	t.Parallel()
	q := Quota{Objects: 3, Bytes: 1 << 20}
	for _, tt := range []struct {
		name  string
		quota Quota
		used  amount
		grows growth
		over  string // the quota; empty: it passes
	}{
		{"the last object", q, amount{2, 0}, growth{1, 100, 300}, ""},
		{"one object more", q, amount{3, 0}, growth{1, 100, 300}, "objects"},
		{"what was over before", q, amount{9, 0}, growth{1, 100, 300}, "objects"},
		{"no object more", q, amount{9, 0}, growth{0, 100, 300}, ""},
		{"the last byte", q, amount{1, 1<<20 - 400}, growth{0, 100, 300}, ""},
		{"one byte more", q, amount{1, 1<<20 - 399}, growth{0, 100, 300}, "bytes"},
		{"a note alone", q, amount{1, 1 << 20}, growth{0, 0, 256}, "bytes"},
		{"a change that shrinks", q, amount{1, 2 << 20}, growth{0, -1, 300}, ""},
		{"a large change that shrinks", q, amount{1, 2 << 20}, growth{0, -200_000, 201_000}, ""},
		{"a byte less of a large state, which the journal keeps", q, amount{1, 2 << 20}, growth{0, -1, 200_000}, "bytes"},
		{"a small object, in place of nothing", q, amount{1, 2 << 20}, growth{1, -1, 300}, "bytes"},
		{"no limit of objects", Quota{Bytes: 1 << 20}, amount{1 << 40, 0}, growth{1, 100, 300}, ""},
		{"no limit of bytes", Quota{Objects: 3}, amount{1, 1 << 40}, growth{1, 100, 300}, ""},
		{"no limit", Quota{}, amount{1 << 40, 1 << 40}, growth{1, 1 << 30, 300}, ""},
	} {
		got := ""
		if e := tt.quota.over("user", tt.used, tt.grows); e != nil {
			got = e.Name
		}
		if got != tt.over {
			t.Errorf("%s: over %q, want %q", tt.name, got, tt.over)
		}
	}
}
