//go:build unix

package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	sessionv1 "holdfast/gen/holdfast/session/v1"
	"holdfast/gen/holdfast/session/v1/sessionv1connect"
	typev1 "holdfast/gen/holdfast/type/v1"
)

// steppableMain is main with a clock that standard input sets. (A fault test of a whole machine would set the kernel's clock,
// which all others share.)
func steppableMain() {
	var step atomic.Int64
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			by, err := time.ParseDuration(lines.Text())
			if err != nil {
				panic(err)
			}
			step.Store(int64(by))
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	now := func() time.Time { return time.Now().Add(time.Duration(step.Load())) }
	os.Exit((&console{os.Stdin, os.Stdout, os.Stderr, os.LookupEnv, now}).run(ctx, os.Args[1:]))
}

// steppedDatabase puts a clock that can be set in the place of the only one that the schema's functions, defaults and policies read.
var steppedDatabase = []string{
	"CREATE TABLE clock_step AS SELECT interval '0' AS step",
	"GRANT SELECT ON clock_step TO PUBLIC",
	"SET allow_system_table_mods = on",
	"ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO machine_timestamp",
	`CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql
	 AS 'SELECT pg_catalog.machine_timestamp() + step FROM public.clock_step'`,
}

// presence is a session of a user, with a connection that says again and again that it is there.
type presence struct {
	client     sessionv1connect.SessionServiceClient
	session    string
	connection string
	stop       context.CancelFunc
	done       sync.WaitGroup
}

// startPresence signs a user in, by one of the servers.
func startPresence(t *testing.T, s *system, server int) *presence {
	t.Helper()
	client := func(token string) sessionv1connect.SessionServiceClient {
		transport := &toServer{api: s.apis[server], next: &http.Transport{}}
		t.Cleanup(transport.next.CloseIdleConnections)
		return sessionv1connect.NewSessionServiceClient(&http.Client{Transport: &bearer{token: token, next: transport}}, "http://holdfast")
	}
	created, err := client(s.token).CreateSession(t.Context(), &sessionv1.CreateSessionRequest{User: "ada"})
	if err != nil {
		t.Fatal(err)
	}
	p := &presence{client: client(created.GetTokens().GetAccessToken()), session: created.GetSession().GetSessionId()}
	opened, err := p.client.PutConnection(t.Context(), &sessionv1.PutConnectionRequest{Connection: &sessionv1.Connection{Modality: typev1.Modality_MODALITY_VOICE}})
	if err != nil {
		t.Fatal(err)
	}
	p.connection = opened.GetConnection().GetConnectionId()
	var ctx context.Context
	ctx, p.stop = context.WithCancel(t.Context())
	p.done.Go(func() {
		for ctx.Err() == nil {
			p.beat(t, ctx)
			pause(ctx, 10*time.Millisecond)
		}
	})
	t.Cleanup(func() { p.stop(); p.done.Wait() })
	return p
}

// beat is one heartbeat. It may fail for the moment, but never because the session or the connection is over.
func (p *presence) beat(t *testing.T, ctx context.Context) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := p.client.PutConnection(ctx, &sessionv1.PutConnectionRequest{UserActive: true, Connection: &sessionv1.Connection{ConnectionId: p.connection}})
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated, connect.CodeNotFound, connect.CodeFailedPrecondition, connect.CodePermissionDenied:
		t.Errorf("a heartbeat: %v", err)
	default:
	}
	return err == nil
}

// end says that the session lives.
func (p *presence) end(t *testing.T) {
	t.Helper()
	p.stop()
	p.done.Wait()
	awaitTrue(t, "a last heartbeat", func() bool { return p.beat(t, t.Context()) || t.Failed() })
	got, err := p.client.GetSession(t.Context(), &sessionv1.GetSessionRequest{})
	if err != nil || got.GetSession().GetSessionId() != p.session || got.GetSession().GetEndReason() != 0 {
		t.Errorf("the session is now %v, %v", got, err)
	}
}

// stamped says that each server stamps what it stores with the database's time, which is so far from ours.
func (s *system) stamped(t *testing.T, by time.Duration) {
	t.Helper()
	for i, c := range s.clients {
		awaitTrue(t, fmt.Sprintf("server %d by %v from now", i, by), func() bool {
			res, err := c.CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{Shared: true})
			return err == nil && (time.Until(res.GetConversation().GetUpdateTime().AsTime())-by).Abs() < 10*time.Minute
		})
	}
}

// TestFaultsOfClocks has clocks step under load: that of one of the servers, which takes its estimate of the database's time along,
// and the database's. After each of them all holds that holds after any other fault (TestFaults), and no session is over before
// its time.
func TestFaultsOfClocks(t *testing.T) { //nolint:paralleltest // the machine is loaded enough
	if testing.Short() {
		t.Skip("half a minute of load and faults")
	}
	const victim = 1
	s := startSystem(t, filepath.Join(openDir(t), "postgres"), steppedDatabase...)
	for _, fault := range []struct {
		name     string
		sessions bool // none may end
		hit      func(t *testing.T, d *drill)
	}{
		{"server-clock", true, func(t *testing.T, d *drill) {
			for _, at := range []time.Duration{50 * time.Hour, -50 * time.Hour, 50 * time.Hour, 150 * time.Hour, 0} {
				if _, err := fmt.Fprintln(s.servers[victim].stdin, at); err != nil {
					t.Fatal(err)
				}
				d.more(t, 100)
				s.stamped(t, 0)
			}
		}},
		// Sessions end rightly: by the database's clock it is three hours later.
		{"database-clock", false, func(t *testing.T, d *drill) {
			for _, at := range []time.Duration{3 * time.Hour, -3 * time.Hour, 3 * time.Hour, 0} {
				s.exec(t, fmt.Sprintf("UPDATE clock_step SET step = make_interval(secs => %f)", at.Seconds()))
				d.more(t, 100)
				s.stamped(t, at)
			}
		}},
	} {
		t.Run(fault.name, func(t *testing.T) { //nolint:paralleltest // one after the other, on one system
			var user *presence
			if fault.sessions {
				user = startPresence(t, s, victim)
			}
			d := startDrill(t, s)
			d.more(t, faultAcknowledged)
			fault.hit(t, d)
			took := d.recovered(t)
			d.more(t, faultAcknowledged)
			d.end(t)
			if user != nil {
				user.end(t)
			}
			t.Logf("%s: every writer goes on after %v", fault.name, took.Round(time.Millisecond))
		})
	}
	for _, c := range s.servers {
		c.end(t)
	}
}
