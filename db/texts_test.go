package db_test

import (
	"slices"
	"strings"
	"testing"

	"holdfast/db"
)

// What Postgres is sent for a []string is what pgx itself would send.
func TestTexts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ours, theirs := b.connect(t, b.URL), b.login
	db.RegisterTexts(ours)
	for name, texts := range map[string][]string{
		"nil": nil, "none": {}, "one": {"a"}, "an empty one": {""}, "several empty": {"", "", ""},
		"odd":  {`"`, `\`, "{}", "NULL", ",", "a b", "\n", "ünïcødé 😀", "'", "$1"},
		"many": strings.Split(strings.Repeat("a,", 10_000), ","), "large": {strings.Repeat("x", 1<<20), "y"},
	} {
		var got, want []string
		var gotDims, wantDims *string
		const sql = "SELECT $1::text[], array_dims($1::text[])"
		if err := ours.QueryRow(b.ctx, sql, texts).Scan(&got, &gotDims); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := theirs.QueryRow(b.ctx, sql, texts).Scan(&want, &wantDims); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, texts) || (got == nil) != (want == nil) || (gotDims == nil) != (wantDims == nil) ||
			gotDims != nil && *gotDims != *wantDims {
			t.Errorf("%s: it came back as %.100q", name, got)
		}
	}
	// Other ways to give an array, and to take one, are pgx's as before.
	type defined string
	var back []defined
	if err := ours.QueryRow(b.ctx, "SELECT $1::text[]", []defined{"a", `"`}).Scan(&back); err != nil || !slices.Equal(back, []defined{"a", `"`}) {
		t.Errorf("a defined type came back as %q, %v", back, err)
	}
	var pointers []*string
	if err := ours.QueryRow(b.ctx, "SELECT ARRAY['a', NULL]").Scan(&pointers); err != nil || len(pointers) != 2 || pointers[1] != nil {
		t.Errorf("an array with NULL came back as %v, %v", pointers, err)
	}
	for _, bad := range []string{"a\x00", "\xff"} {
		if _, err := ours.Exec(b.ctx, "SELECT $1::text[]", []string{bad}); sqlState(err) != "22021" {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := ours.Ping(b.ctx); err != nil {
		t.Error(err)
	}
}
