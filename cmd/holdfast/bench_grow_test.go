package main

import (
	"context"
	"log/slog"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"holdfast/cmd/holdfast/internal/load"
	"holdfast/seal"
)

// benchOf is a bench of a Postgres that ends with the test, and of so many servers on it, in this process.
func benchOf(t *testing.T, servers int) (*bench, *sandbox) {
	t.Helper()
	box, err := openSandbox(t.Context(), os.LookupEnv, sandboxOptions{MaxConns: 2, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := box.close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	b := &bench{
		benchCmd: benchCmd{Duration: time.Second, MaxRequests: 200}, began: time.Now(), log: t.Output(), report: &benchReport{},
		system: &benchSystem{token: box.token, pgbenchURL: box.ownerURL, pgbenchDir: box.postgres.BinDir()},
	}
	env := map[string]string{"HOLDFAST_DATABASE_URL": box.url, "HOLDFAST_SEAL_KEYS": seal.NewKey()}
	for range servers {
		p := start(t, env, "serve", "--addr", "127.0.0.1:0")
		u, err := url.Parse(p.await(t, p.stderr, `"msg":"ready","api":"([^"]+)"`))
		if err != nil {
			t.Fatal(err)
		}
		target := &load.Target{URL: u, Codec: load.Proto}
		b.system.targets = append(b.system.targets, target)
	}
	b.system.target = b.system.targets[0]
	return b, box
}

func TestBenchTurns(t *testing.T) {
	t.Parallel()
	b, _ := benchOf(t, 2)
	b.Duration = time.Minute // the requests end it
	rows, err := runTurns(4)(t.Context(), b, scenario{name: "turns-4"})
	if err != nil || len(rows) != 1 || len(rows[0].Errors) != 0 {
		t.Fatalf("%v, %v", rows, err)
	}
	if want := (benchVerified{Messages: 200, Conversations: 4}); b.report.Verified != want {
		t.Errorf("verified %v, want %v", b.report.Verified, want)
	}
}

// What is stored past the API is, row by row, what the API stores, but for ids and times.
func TestBenchGrowCopiesRows(t *testing.T) {
	t.Parallel()
	b, box := benchOf(t, 1)
	g := &grower{
		bench: b, scenario: scenario{name: "grow"}, size: growth{name: "few", objects: 5, messages: 3, long: 2 * readLimit},
		seen: map[string]*load.Session{}, meters: map[string]*load.Meter{},
	}
	if err := g.fill(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer g.template.Close()

	// A third message through the API makes the template what the copies of three messages are.
	if err := g.template.Append(t.Context(), g.began); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), box.ownerURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows := func(id string) (all []string) {
		t.Helper()
		for _, table := range []string{"objects", "entries", "events", "terms", "timers"} {
			found, err := conn.Query(t.Context(), `SELECT (to_jsonb(x) - ARRAY['object_id', 'create_time', 'update_time', 'activity_time', 'expire_time', 'event_time']
				#- '{body,create_time}' #- '{body,update_time}')::text FROM holdfast.`+table+` x WHERE object_id = $1 ORDER BY 1`, id)
			if err != nil {
				t.Fatal(err)
			}
			texts, err := pgx.CollectRows(found, pgx.RowTo[string])
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, texts...)
		}
		return all
	}
	want := rows(g.template.Conversation)
	if len(want) != 1+3+4 {
		t.Errorf("%d rows through the API: %v", len(want), want)
	}
	if diff := cmp.Diff(want, rows(g.id("5"))); diff != "" {
		t.Errorf("(-API +copy)\n%s", diff)
	}

	if err := growUntil(t.Context(), time.Now(), []*grower{g}); err != nil {
		t.Fatal(err)
	}
	measured, err := g.finish(t.Context())
	if err != nil || len(measured) != len(growKinds) {
		t.Errorf("%v, %v", measured, err)
	}
}
