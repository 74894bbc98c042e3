package db_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/db"
)

// What Postgres is sent for a []string is what pgx itself would send.
func TestTexts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ours, theirs := b.connect(t, b.URL), b.login
	db.RegisterParams(ours)
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

// Instants are sent as Postgres counts them, as pgx does.
func TestInstants(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ours := b.connect(t, b.URL)
	db.RegisterParams(ours)
	for name, times := range map[string][]time.Time{
		"nil": nil, "none": {}, "never": {{}}, "its epoch": {time.Unix(946684800, 0)}, "before it": {time.Unix(1, 0), time.Unix(-1, 999_999_000)},
		"a zone": {time.Date(2026, 3, 29, 2, 30, 0, 123_456_000, time.FixedZone("", 7200))}, "less than a microsecond": {time.Unix(5, 999)},
	} {
		var got []time.Time
		var dims *string
		if err := ours.QueryRow(b.ctx, "SELECT $1::timestamptz[], array_dims($1::timestamptz[])", times).Scan(&got, &dims); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		same := func(a, b time.Time) bool { return a.Equal(b.Truncate(time.Microsecond)) }
		if !slices.EqualFunc(got, times, same) || (got == nil) != (times == nil) || (dims == nil) != (len(times) == 0) {
			t.Errorf("%s: %v came back as %v", name, times, got)
		}
	}
}

// The buffer of one's own is used for all arguments, whether it suffices or not, and one after the other.
func TestFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ours := b.connect(t, b.URL)
	db.RegisterParams(ours)
	large := strings.Repeat("y", 5000)
	for _, size := range []int{0, 10, 4000, 20_000, 20_000} {
		buffer := make([]byte, 0, size)
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec} {
			var first, last string
			var texts []string
			var number int64
			err := ours.QueryRow(b.ctx, "SELECT $1::text, $2::text[], $3::bigint, $4::text", mode,
				db.First("a", buffer), []string{"b", large}, int64(7), "c").Scan(&first, &texts, &number, &last)
			if err != nil || first != "a" || !slices.Equal(texts, []string{"b", large}) || number != 7 || last != "c" {
				t.Errorf("%d bytes, %v: %q, %.20q, %d, %q, %v", size, mode, first, texts, number, last, err)
			}
		}
		if whole := buffer[:cap(buffer)]; size >= 20_000 && !strings.Contains(string(whole), large) {
			t.Errorf("%d bytes: the buffer was not used", size)
		}
	}
}
