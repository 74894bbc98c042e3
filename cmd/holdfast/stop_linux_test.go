package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/db"
	"holdfast/db/embedded"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/handlers"
)

// A server ends soon after SIGTERM although Postgres no longer answers: an orchestrator would kill it after ten seconds.
func TestFaultAServerStopsWhilePostgresHangs(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	p, err := embedded.Start(ctx, embedded.Options{Ephemeral: true, BinDir: os.Getenv("HOLDFAST_POSTGRES_BIN")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := db.MigrateUp(ctx, p.AdminURL()); err != nil {
		t.Fatal(err)
	}
	if err := db.EnsureLogin(ctx, p.AdminURL(), faultLogin, faultPassword); err != nil {
		t.Fatal(err)
	}
	u := p.URL("postgres", url.UserPassword(faultLogin, faultPassword))
	d, err := db.OpenOperator(ctx, p.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.CreateTenant(ctx, "stop", ""); err != nil {
		t.Fatal(err)
	}
	token, key := handlers.NewKey("stop", "", "")
	if err := d.CreateKey(ctx, key); err != nil {
		t.Fatal(err)
	}
	c := spawn(t, map[string]string{"DATABASE_URL": u, "HOLDFAST_ADDR": "127.0.0.1:0"}, "serve")
	api := c.await(t, c.stderr, `"ready".*"api":"([^"]+)"`)

	const atOnce = 50
	client := clientOf(t, api, token)
	writing, cancel := context.WithCancel(ctx)
	var writers, started sync.WaitGroup
	defer writers.Wait()
	defer cancel()
	started.Add(atOnce)
	for range atOnce {
		writers.Go(func() {
			first := sync.OnceFunc(started.Done)
			defer first()
			for writing.Err() == nil {
				if _, err := client.CreateConversation(writing, &conversationv1.CreateConversationRequest{Shared: true}); err != nil {
					return
				}
				first()
			}
		})
	}
	started.Wait()
	freeze(t, p.PID())
	// A call that waits for Postgres shows that it is so.
	stuck, unstick := context.WithTimeout(ctx, time.Second)
	if _, err := client.CreateConversation(stuck, &conversationv1.CreateConversationRequest{Shared: true}); err == nil {
		t.Error("Postgres is stopped, and answers")
	}
	unstick()

	told := time.Now()
	c.stop()
	<-c.done
	// It is bounded by nine seconds. What a busy machine adds is less than the 15 s that pgx takes for each connection.
	took := time.Since(told)
	t.Logf("the server ended %v after SIGTERM", took)
	if took > 15*time.Second {
		t.Error("that is too late")
	}
}

// freeze stops a process and its children until the test is over.
func freeze(t *testing.T, pid int) {
	t.Helper()
	stop := func(pid int) {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Logf("%d: %v", pid, err) // a child that has ended meanwhile
			return
		}
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	}
	stop(pid) // it starts no more of them
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		children, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		for child := range strings.FieldsSeq(string(children)) {
			var pid int
			if _, err := fmt.Sscan(child, &pid); err != nil {
				t.Fatal(err)
			}
			stop(pid)
		}
	}
}
