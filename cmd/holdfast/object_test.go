package main

import (
	"strings"
	"testing"
)

func TestObject(t *testing.T) {
	t.Parallel()
	server := dev(t)
	env := map[string]string{"HOLDFAST_API": server.API, "HOLDFAST_TOKEN": server.Token}
	if code, _, stderr := run(t, env, "replay", "--speed", "0", recording); code != 0 {
		t.Fatal(stderr)
	}
	do := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := run(t, env, append([]string{"object"}, args...)...)
		if code != 0 {
			t.Fatalf("object %v ended with %d: %s", args, code, stderr)
		}
		return stdout
	}
	if kinds := do("list"); !strings.Contains(kinds, "conversation\n") {
		t.Errorf("kinds: %s", kinds)
	}
	list := strings.Fields(do("list", "conversation"))
	if len(list) < 6 || list[0] != "ID" {
		t.Fatalf("conversations: %v", list)
	}
	id := list[4]
	if len(do("list", "conversation", "--by-id", "--prefix", "no-such-")) > len("ID  OWNER  VERSION  UPDATED\n") {
		t.Error("a prefix of none finds some")
	}
	for _, c := range []struct {
		args string
		says []string
	}{
		{"get conversation " + id + " --collection messages", []string{`"last_seq": "9"`, `"collection": "messages"`, `"entry_count"`}},
		{"get conversation " + id + " --at 1", []string{`"version": "1"`}},
		{"events conversation " + id, []string{"VERSION", "created", "messages/000000000008"}},
		{"diff conversation " + id + " 1", []string{`"from_version": "1"`, `"key": "000000000001"`}},
		{"restore conversation " + id + " 1", []string{"as it was at version 1; it is at version"}},
		{"timers conversation", []string{"KIND"}},
	} {
		got := do(strings.Fields(c.args)...)
		for _, want := range c.says {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", c.args, want, got)
			}
		}
	}
	if now := do("get", "conversation", id); strings.Contains(now, `"last_seq"`) {
		t.Errorf("after the restore: %s", now)
	}
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"get conversation none", 1, "not_found"},
		{"get no-such-kind x", 1, "there is no kind"},
		{"restore conversation " + id + " yesterday", 2, "no version, such as 3"},
		{"retry conversation " + id + " none", 1, "no timer of that name"},
		{"get conversation x --token=", 2, "no API key"},
		{"get conversation x --api http://127.0.0.1:1", 1, "is there a server"},
	} {
		code, _, stderr := run(t, env, append([]string{"object"}, strings.Fields(c.args)...)...)
		if strings.Contains(c.args, "--token=") {
			code, _, stderr = run(t, nil, "object", "get", "conversation", "x")
		}
		if code != c.code || !strings.Contains(stderr, c.says) {
			t.Errorf("%s ended with %d: %s", c.args, code, stderr)
		}
	}
}
