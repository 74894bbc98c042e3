package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"holdfast/db/dbtest"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
)

// What one tenant exports another imports, and finds there through the API: state, messages, history and all.
func TestExportAndImport(t *testing.T) {
	t.Parallel()
	from, to := dbtest.New(t), dbtest.New(t)
	env := map[string]string{"HOLDFAST_MIGRATE_DATABASE_URL": from.MigrateURL, "DATABASE_URL": from.URL, "HOLDFAST_ADDR": "127.0.0.1:0"}
	must := func(stdin string, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		lookup := func(name string) (string, bool) { v, ok := env[name]; return v, ok }
		if code := Main(t.Context(), args, strings.NewReader(stdin), &out, &errs, lookup); code != 0 {
			t.Fatalf("%v ended with %d: %s", args, code, &errs)
		}
		return out.String()
	}
	p := start(t, env, "serve")
	api := p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
	ours := clientOf(t, api, strings.TrimSpace(must("", "key", "create", "--tenant", string(from.Tenant), "--user", "ada")))
	theirs := clientOf(t, api, strings.TrimSpace(must("", "key", "create", "--tenant", string(to.Tenant), "--user", "ada")))

	if _, err := ours.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: "c1", Conversation: &conversationv1.Conversation{Title: "Auth \"refactor\" 日"}}); err != nil {
		t.Fatal(err)
	}
	appending := &conversationv1.AppendRequest{
		ConversationId: "c1", RequestId: "r1", Messages: []*conversationv1.Message{{Role: conversationv1.Role_ROLE_USER, Text: "Hello\n"}},
	}
	appended, err := ours.Append(t.Context(), appending)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "export.ndjson")
	exported := must("", "export", "--tenant", string(from.Tenant))
	if err := os.WriteFile(file, []byte(exported), 0o600); err != nil {
		t.Fatal(err)
	}
	if said := must("", "import", "--tenant", string(to.Tenant), file); !strings.HasPrefix(said, "imported 1 entries, 2 events, 1 objects") {
		t.Errorf("import says %q", said)
	}
	if again := must("", "export", "--tenant", string(to.Tenant)); again != exported {
		t.Errorf("what was imported exports to\n%s\nand not to\n%s", again, exported)
	}
	must(exported, "import", "--tenant", string(to.Tenant), "-")

	read := &conversationv1.GetConversationRequest{ConversationId: "c1", MessageLimit: 10}
	want, err := ours.GetConversation(t.Context(), read)
	if err != nil {
		t.Fatal(err)
	}
	got, err := theirs.GetConversation(t.Context(), read)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	replayed, err := theirs.Append(t.Context(), appending)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(appended, replayed, protocmp.Transform()); diff != "" {
		t.Errorf("the retry of a request that was imported: %s", diff)
	}
	p.end(t)
}

// What a user made goes, also the user's key; what another user has stays.
func TestErase(t *testing.T) {
	t.Parallel()
	b := dbtest.Own(t)
	env := map[string]string{"HOLDFAST_MIGRATE_DATABASE_URL": b.MigrateURL, "DATABASE_URL": b.URL, "HOLDFAST_ADDR": "127.0.0.1:0"}
	must := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := run(t, env, args...)
		if code != 0 {
			t.Fatalf("%v ended with %d: %s", args, code, stderr)
		}
		return strings.TrimSpace(stdout)
	}
	p := start(t, env, "serve")
	api := p.await(t, p.stderr, `"ready".*"api":"([^"]+)"`)
	tenant := string(b.Tenant)
	for _, user := range []string{"ada@example.com", "bob@example.com"} {
		c := clientOf(t, api, must("key", "create", "--tenant", tenant, "--user", user))
		if _, err := c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: user[:3], Conversation: &conversationv1.Conversation{Title: "Ask ada@example.com"}}); err != nil {
			t.Fatal(err)
		}
	}
	if said := must("erase", "--tenant", tenant, "--user", "ada@example.com"); !strings.Contains(said, "1 api_keys, 1 events, 1 objects") || !strings.Contains(said, "out of 1 objects of others and 1 events") {
		t.Errorf("erase says %q", said)
	}
	if exported := must("export", "--tenant", tenant); strings.Contains(exported, "ada@") || !strings.Contains(exported, "bob@example.com") {
		t.Errorf("what is left is %s", exported)
	}
	if keys := must("key", "list", "--tenant", tenant); strings.Contains(keys, "ada@") {
		t.Errorf("keys: %s", keys)
	}
	if said := must("erase", "--tenant", tenant, "--user", "ada@example.com"); !strings.Contains(said, "deleted no rows; took the user out of 0 objects") {
		t.Errorf("again it says %q", said)
	}
	p.end(t)
}
