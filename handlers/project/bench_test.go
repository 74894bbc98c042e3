package project

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	projectv1 "holdfast/gen/holdfast/project/v1"
)

// The context of a turn, over HTTP, of a tenant with much that has ended and with little, beside pgbench's SELECT of as
// many bytes as the context has: go test -run '^$' -bench Context ./handlers/project
func BenchmarkContext(b *testing.B) {
	size := 0
	for _, much := range []bool{true, false} {
		name := map[bool]string{true: "50 projects, 500 tasks, 2,000 issues", false: "1 project, 20 tasks, 20 issues"}[much]
		tb := setup(b)
		c := tb.as(b, ada)
		tb.fillContext(b, c, much)
		req := &projectv1.GetProjectContextRequest{}
		got := must(c.GetProjectContext(b.Context(), req))(b).GetContext()
		if len(got.GetTasks()) != 20 || len(got.GetIssues()) != 20 || got.GetLastConversation().GetSummary() == "" {
			b.Fatalf("%d tasks, %d issues, %v", len(got.GetTasks()), len(got.GetIssues()), got.GetLastConversation())
		}
		size = proto.Size(got)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				must(c.GetProjectContext(b.Context(), req))(b)
			}
		})
		if !much {
			continue
		}
		same := &projectv1.GetProjectContextRequest{IfEtagNot: got.GetEtag()}
		b.Run(name+", not modified", func(b *testing.B) {
			for b.Loop() {
				must(c.GetProjectContext(b.Context(), same))(b)
			}
		})
		b.Run(name+", 16 callers", func(b *testing.B) {
			b.SetParallelism(8)
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					must(c.GetProjectContext(context.Background(), req))(b)
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "contexts/s")
		})
	}
	b.Run("pgbench", func(b *testing.B) { setup(b).selectOf(b, size) })
}

// fillContext makes a user's active project with 20 open tasks and 20 open issues, and much beside it that no context has.
func (b *bundle) fillContext(t testing.TB, c client, much bool) {
	t.Helper()
	ctx := t.Context()
	projects, tasks, issues := 1, 20, 20
	if much {
		projects, tasks, issues = 50, 500, 2000
	}
	for i := range projects {
		must(c.PutProject(ctx, &projectv1.PutProjectRequest{ProjectId: fmt.Sprint("p", i), Project: &projectv1.Project{
			Title: "A project", Description: strings.Repeat("words ", 50), IssueSources: team(fmt.Sprint("t", i)),
		}}))(t)
	}
	must(c.UpdatePreferences(ctx, active("p0")))(t)
	must(c.UpdatePreferences(ctx, &projectv1.UpdatePreferencesRequest{Preferences: &projectv1.Preferences{Voice: new("Puck"), Language: new("en-GB")}}))(t)
	for i := range tasks {
		status := "COMPLETE" // half of them the active project's
		if i < 20 {
			status = "ACTIVE"
		}
		project := "p0"
		if i >= tasks/2 && much {
			project = fmt.Sprint("p", 1+i%(projects-1))
		}
		must(c.PutTask(ctx, &projectv1.PutTaskRequest{TaskId: fmt.Sprint("k", i), Report: &projectv1.Report{RawStatus: status}, Task: &projectv1.Task{
			Title: "Fix the login of users with two accounts", ProjectId: project, Provider: "codegen", RunId: fmt.Sprint(i), WebUrl: "https://codegen.com/runs/1",
			Summary: strings.Repeat("words ", 30),
		}}))(t)
	}
	for i := 0; i < issues; i += 20 {
		var batch []*structpb.Struct
		for j := i; j < i+20; j++ {
			state, team := "completed", "t0"
			if j < 20 {
				state = "started"
			}
			if j >= issues/2 && much {
				team = fmt.Sprint("t", 1+j%(projects-1))
			}
			issue := linearIssue(fmt.Sprint("i", j), "The login of users with two accounts fails", "2026-11-23T00:00:00Z", state, team)
			issue.Fields["description"] = structpb.NewStringValue(strings.Repeat("words ", 80))
			batch = append(batch, issue)
		}
		b.put(t, batch...)
	}
	must(b.talk(t, ada).CreateConversation(ctx, &conversationv1.CreateConversationRequest{ConversationId: "c1", Conversation: &conversationv1.Conversation{ProjectId: "p0", Title: "Login"}}))(t)
	b.summarise(t, ada, "c1", strings.Repeat("We agreed. ", 40))
}

// selectOf has pgbench select so many bytes by a primary key, with one client.
func (b *bundle) selectOf(t *testing.B, size int) {
	t.Helper()
	programs, _ := filepath.Glob("/usr/lib/postgresql/*/bin/pgbench")
	program, err := exec.LookPath("pgbench")
	if err != nil && len(programs) > 0 {
		program, err = programs[len(programs)-1], nil
	}
	if err != nil {
		t.Skip("pgbench is not there; it comes with Postgres's client programs")
	}
	conn := must(pgx.Connect(t.Context(), b.SuperuserURL))(t)
	defer conn.Close(t.Context())
	for _, sql := range []string{
		"CREATE TABLE IF NOT EXISTS public.bench_context (id integer PRIMARY KEY, body text NOT NULL)",
		"ALTER TABLE public.bench_context ALTER body SET STORAGE EXTERNAL",
		"TRUNCATE public.bench_context",
		fmt.Sprintf("INSERT INTO public.bench_context SELECT i, left(string_agg(md5(i::text || n), ''), %d) FROM generate_series(1, 100) i, generate_series(1, %d) n GROUP BY i", size, size/32+1),
	} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	script := filepath.Join(t.TempDir(), "select.sql")
	if err := os.WriteFile(script, []byte("\\set id random(1, 100)\nSELECT body FROM public.bench_context WHERE id = :id;\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for t.Loop() {
		continue // pgbench has its own loop
	}
	out, err := exec.CommandContext(t.Context(), program, "--no-vacuum", "--protocol=prepared", "--client=1", "--time=3", "--file="+script, b.SuperuserURL).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	found := regexp.MustCompile(`latency average = ([0-9.]+) ms`).FindSubmatch(out)
	if found == nil {
		t.Fatalf("%s", out)
	}
	ms := must(strconv.ParseFloat(string(found[1]), 64))(t)
	t.ReportMetric(ms*1e6, "ns/op")
	t.SetBytes(int64(size))
}
