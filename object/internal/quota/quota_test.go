package quota

import "testing"

func TestWhatAQuotaRefuses(t *testing.T) {
	t.Parallel()
	q := Quota{Objects: 3, Bytes: 1 << 20}
	for _, tt := range []struct {
		name  string
		quota Quota
		used  Amount
		grows Growth
		over  string // the quota; empty: it passes
	}{
		{"the last object", q, Amount{2, 0}, Growth{1, 100, 300}, ""},
		{"one object more", q, Amount{3, 0}, Growth{1, 100, 300}, "objects"},
		{"what was over before", q, Amount{9, 0}, Growth{1, 100, 300}, "objects"},
		{"no object more", q, Amount{9, 0}, Growth{0, 100, 300}, ""},
		{"the last byte", q, Amount{1, 1<<20 - 400}, Growth{0, 100, 300}, ""},
		{"one byte more", q, Amount{1, 1<<20 - 399}, Growth{0, 100, 300}, "bytes"},
		{"a note alone", q, Amount{1, 1 << 20}, Growth{0, 0, 256}, "bytes"},
		{"a change that shrinks", q, Amount{1, 2 << 20}, Growth{0, -1, 300}, ""},
		{"a large change that shrinks", q, Amount{1, 2 << 20}, Growth{0, -200_000, 201_000}, ""},
		{"a byte less of a large state, which the journal keeps", q, Amount{1, 2 << 20}, Growth{0, -1, 200_000}, "bytes"},
		{"a small object, in place of nothing", q, Amount{1, 2 << 20}, Growth{1, -1, 300}, "bytes"},
		{"no limit of objects", Quota{Bytes: 1 << 20}, Amount{1 << 40, 0}, Growth{1, 100, 300}, ""},
		{"no limit of bytes", Quota{Objects: 3}, Amount{1, 1 << 40}, Growth{1, 100, 300}, ""},
		{"no limit", Quota{}, Amount{1 << 40, 1 << 40}, Growth{1, 1 << 30, 300}, ""},
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
