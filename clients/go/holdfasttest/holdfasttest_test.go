package holdfasttest_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	statev1 "holdfast.internal/clients/go/gen/holdfast/state/v1"
	"holdfast.internal/clients/go/holdfasttest"
)

// Tenants of one server do not meet.
func TestATenantATest(t *testing.T) {
	t.Parallel()
	one, other := holdfasttest.Tenant(t), holdfasttest.Tenant(t)
	if one.URL != other.URL || one.Name == other.Name {
		t.Fatalf("%v and %v", one, other)
	}
	ref := &statev1.Ref{Type: "note", Name: "n"}
	if _, err := one.Client().State.Apply(t.Context(), &statev1.ApplyRequest{Ref: ref}); err != nil {
		t.Fatal(err)
	}
	for absent, a := range map[bool]holdfasttest.Access{false: one, true: other} {
		res, err := a.Client().State.Read(t.Context(), &statev1.ReadRequest{Reads: []*statev1.ReadOne{{Ref: ref}}})
		if err != nil || res.GetObjects()[0].GetAbsent() != absent {
			t.Errorf("%s reads %v, %v", a.Name, res, err)
		}
	}
}

func TestAServerEndsWithItsTest(t *testing.T) { //nolint:tparallel // it looks at what its inner test leaves
	t.Parallel()
	var url string
	t.Run("a test", func(t *testing.T) {
		url = holdfasttest.Start(t).URL
		if !answers(url) {
			t.Error("it does not answer")
		}
	})
	if answers(url) {
		t.Error("it is still there")
	}
}

// The process that started a server is killed, which leaves it no time to do anything.
func TestAServerEndsWithItsProcess(t *testing.T) {
	t.Parallel()
	if os.Getenv("HOLDFASTTEST_KILLED") != "" {
		fmt.Println("url", holdfasttest.Start(t).URL)
		select {}
	}
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAServerEndsWithItsProcess$")
	tmp := t.TempDir()
	c.Env = append(os.Environ(), "HOLDFASTTEST_KILLED=1", "TMPDIR="+tmp)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Whatever the process starts has this too, and it ends when all of them have.
	all, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = theirs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	url := ""
	for s := bufio.NewScanner(out); url == "" && s.Scan(); {
		url, _ = strings.CutPrefix(s.Text(), "url ")
		url = strings.TrimSpace(url)
		if !strings.HasPrefix(url, "http") {
			url = ""
		}
	}
	if url == "" || !answers(url) {
		t.Fatalf("no server at %q", url)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := all.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(all); err != nil {
		t.Errorf("what the process had started is still there after 30 s: %v", err)
	}
	_ = c.Wait()
	if answers(url) {
		t.Error("the server is still there")
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
}

func answers(url string) bool {
	c, err := net.DialTimeout("tcp", strings.TrimPrefix(url, "http://"), 5*time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
