//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/anishathalye/porcupine"
	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"holdfast/db"
	"holdfast/db/embedded"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers"
)

// The faults are tried on three servers, each with a proxy of its own in front of Postgres, under load and with watchers.
const (
	faultServers       = 3
	faultConversations = 4
	faultWriters       = 8
	faultReaders       = 2
	faultWatchers      = 200
	// faultAcknowledged is what the load gets done before a fault, and again after it.
	faultAcknowledged = 150
	faultPatience     = 2 * time.Minute
	faultLogin        = "holdfast"
	faultPassword     = "fault-tests"
)

// system is three servers on one Postgres, all of them processes, and what goes between.
type system struct {
	t        *testing.T // what is started ends with it, whichever fault started it
	dir      string
	postgres *embedded.Server
	port     int
	token    string
	proxies  []*toxiproxy.Proxy
	servers  []*child
	clients  []conversationv1connect.ConversationServiceClient // by server; they stay where a server comes again
	pages    []watchv1connect.WatchServiceClient               // the same
	apis     []*atomic.Pointer[url.URL]
}

// startSystem starts all of it, with the database in a directory. The superuser runs prepare before the schema is made.
func startSystem(t *testing.T, dir string, prepare ...string) *system {
	t.Helper()
	s := &system{t: t, dir: dir}
	s.startPostgres()
	t.Cleanup(func() {
		if err := s.postgres.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	ctx := t.Context()
	s.exec(t, prepare...)
	if err := db.MigrateUp(ctx, s.postgres.AdminURL()); err != nil {
		t.Fatal(err)
	}
	if err := db.EnsureLogin(ctx, s.postgres.AdminURL(), faultLogin, faultPassword); err != nil {
		t.Fatal(err)
	}
	d, err := db.OpenOperator(ctx, s.postgres.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.CreateTenant(ctx, "faults", ""); err != nil {
		t.Fatal(err)
	}
	token, key := handlers.NewKey("faults", "", "")
	if err := d.CreateKey(ctx, key); err != nil {
		t.Fatal(err)
	}
	s.token = token
	proxies := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	for i := range faultServers {
		p := toxiproxy.NewProxy(proxies, fmt.Sprint("server-", i), "127.0.0.1:0", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)))
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Stop)
		s.proxies = append(s.proxies, p)
		s.apis = append(s.apis, &atomic.Pointer[url.URL]{})
		s.servers = append(s.servers, nil)
		s.startServer(i)
		transport := &toServer{api: s.apis[i], next: &http.Transport{}}
		t.Cleanup(transport.next.CloseIdleConnections)
		client := &http.Client{Transport: &bearer{token: token, next: transport}}
		s.clients = append(s.clients, conversationv1connect.NewConversationServiceClient(client, "http://holdfast"))
		s.pages = append(s.pages, watchv1connect.NewWatchServiceClient(client, "http://holdfast"))
	}
	return s
}

// exec runs statements as the superuser.
func (s *system) exec(t *testing.T, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.postgres.AdminURL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// toServer sends requests to where a server is now.
type toServer struct {
	api  *atomic.Pointer[url.URL]
	next *http.Transport
}

// RoundTrip implements [http.RoundTripper].
func (s *toServer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Host = s.api.Load().Host
	return s.next.RoundTrip(r)
}

func (s *system) startPostgres() {
	t := s.t
	t.Helper()
	p, err := embedded.Start(context.WithoutCancel(t.Context()), embedded.Options{
		Dir: s.dir, Port: s.port, BinDir: os.Getenv("HOLDFAST_POSTGRES_BIN"),
		Parameters: map[string]string{"max_connections": "100", "shared_buffers": "32MB", "max_wal_size": "48MB", "min_wal_size": "32MB", "wal_recycle": "off"},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.postgres, s.port = p, p.Port()
}

// startServer starts a server, or starts it again.
func (s *system) startServer(i int) {
	t := s.t
	t.Helper()
	u := "postgres://" + faultLogin + ":" + faultPassword + "@" + s.proxies[i].Listen + "/postgres?sslmode=disable"
	c := spawn(t, map[string]string{"DATABASE_URL": u, "HOLDFAST_ADDR": "127.0.0.1:0", "HOLDFAST_MAX_CONNS": "8", "HOLDFAST_SEAL_KEYS": sealKey, asHoldfast: steppable}, "serve")
	api, err := url.Parse(c.await(t, c.stderr, `"ready".*"api":"([^"]+)"`))
	if err != nil {
		t.Fatal(err)
	}
	s.servers[i] = c
	s.apis[i].Store(api)
}

// drill is the load on a system, and all that its callers and watchers were told.
type drill struct {
	*system

	began         time.Time
	conversations []string
	acknowledged  atomic.Int64
	retries       atomic.Int64
	streams       atomic.Int64
	resets        atomic.Int64
	stop          chan struct{}
	working       sync.WaitGroup
	watching      sync.WaitGroup
	lastBegun     []atomic.Int64 // by writer: when the newest acknowledged request was sent first, in ns since began

	mu      sync.Mutex // guards what follows
	history []porcupine.Operation
	final   map[string]int64  // how many messages a conversation has, once no more will come
	over    chan struct{}     // closed when final is known
	names   map[string]string // of each acknowledged message, where it is
}

// What the checker sees of a conversation: a log that is appended to, and of which the length and the last element are read.
type (
	logCall struct {
		conversation, text string // empty text: a read
	}
	logState struct {
		length int64
		last   string
	}
)

// logModel explains a history of logs. A request that was repeated until it was acknowledged happened once, between its first
// sending and the acknowledgement.
func logModel() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			by := map[string][]porcupine.Operation{}
			for _, op := range history {
				c, _ := op.Input.(logCall)
				by[c.conversation] = append(by[c.conversation], op)
			}
			var out [][]porcupine.Operation
			for _, ops := range by {
				out = append(out, ops)
			}
			return out
		},
		Init: func() any { return logState{} },
		Step: func(state, input, output any) (bool, any) {
			was, _ := state.(logState)
			in, _ := input.(logCall)
			out, _ := output.(logState)
			if in.text == "" {
				return out == was, was
			}
			return out.length == was.length+1, logState{out.length, in.text}
		},
	}
}

func TestLogModel(t *testing.T) {
	t.Parallel()
	op := func(from, to int64, text string, out logState) porcupine.Operation {
		return porcupine.Operation{Input: logCall{"c", text}, Call: from, Output: out, Return: to}
	}
	for name, c := range map[string]struct {
		history []porcupine.Operation
		fine    bool
	}{
		"in order":         {[]porcupine.Operation{op(1, 2, "x", logState{1, ""}), op(3, 4, "", logState{1, "x"})}, true},
		"side by side":     {[]porcupine.Operation{op(1, 5, "x", logState{2, ""}), op(2, 4, "y", logState{1, ""})}, true},
		"a stale read":     {[]porcupine.Operation{op(1, 2, "x", logState{1, ""}), op(3, 4, "", logState{})}, false},
		"one place twice":  {[]porcupine.Operation{op(1, 2, "x", logState{1, ""}), op(3, 4, "y", logState{1, ""})}, false},
		"a gap":            {[]porcupine.Operation{op(1, 2, "x", logState{2, ""})}, false},
		"out of real time": {[]porcupine.Operation{op(1, 2, "x", logState{2, ""}), op(3, 4, "y", logState{1, ""})}, false},
	} {
		if got := porcupine.CheckOperations(logModel(), c.history); got != c.fine {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func startDrill(t *testing.T, s *system) *drill {
	t.Helper()
	d := &drill{
		system: s, began: time.Now(), stop: make(chan struct{}), over: make(chan struct{}),
		lastBegun: make([]atomic.Int64, faultWriters), final: map[string]int64{}, names: map[string]string{},
	}
	for i := range faultConversations {
		id := fmt.Sprintf("%s-%d", filepath.Base(t.Name()), i)
		if _, err := s.clients[0].CreateConversation(t.Context(), &conversationv1.CreateConversationRequest{ConversationId: id, Shared: true}); err != nil {
			t.Fatal(err)
		}
		d.conversations = append(d.conversations, id)
	}
	for w := range faultWriters {
		d.working.Go(func() { d.write(t, w) })
	}
	for r := range faultReaders {
		d.working.Go(func() { d.read(t, r) })
	}
	for w := range faultWatchers {
		d.watching.Go(func() { d.watch(t, w) })
	}
	return d
}

func (d *drill) now() int64 { return int64(time.Since(d.began)) }

func (d *drill) stopping() bool {
	select {
	case <-d.stop:
		return true
	default:
		return false
	}
}

// pause is what a client waits before it tries again.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// write appends message after message, each repeated, at whatever server, until it is acknowledged.
func (d *drill) write(t *testing.T, w int) {
	at := w
	for n := 0; !d.stopping(); n++ {
		req := &conversationv1.AppendRequest{
			ConversationId: d.conversations[(w+n)%len(d.conversations)], RequestId: fmt.Sprintf("%s.%d.%d", filepath.Base(t.Name()), w, n),
			Messages: []*conversationv1.Message{{Role: conversationv1.Role_ROLE_USER, Text: fmt.Sprint(w, ".", n)}},
		}
		from := d.now()
		for deadline := time.Now().Add(faultPatience); ; at++ {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			res, err := d.clients[at%len(d.clients)].Append(ctx, req)
			cancel()
			if err == nil {
				seq := res.GetMessages()[0].GetSeq()
				d.note(t, w, req, from, int64(seq))
				break
			}
			if t.Context().Err() != nil || time.Now().After(deadline) {
				t.Errorf("writer %d: %v", w, err)
				return
			}
			d.retries.Add(1)
			pause(t.Context(), 20*time.Millisecond)
		}
	}
}

func (d *drill) note(t *testing.T, w int, req *conversationv1.AppendRequest, from, seq int64) {
	text := req.GetMessages()[0].GetText()
	d.mu.Lock()
	defer d.mu.Unlock()
	where := fmt.Sprint(req.GetConversationId(), "/", seq)
	if other, twice := d.names[where]; twice {
		t.Errorf("%s was acknowledged as %s, which is %s", text, where, other)
	}
	d.names[where] = text
	d.history = append(d.history, porcupine.Operation{
		ClientId: w, Input: logCall{req.GetConversationId(), text}, Call: from, Output: logState{length: seq}, Return: d.now(),
	})
	d.lastBegun[w].Store(from)
	d.acknowledged.Add(1)
}

// read reads the end of a conversation, at any server that answers.
func (d *drill) read(t *testing.T, r int) {
	for n := 0; !d.stopping(); n++ {
		id := d.conversations[n%len(d.conversations)]
		from := d.now()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		res, err := d.clients[(r+n)%len(d.clients)].GetConversation(ctx, &conversationv1.GetConversationRequest{ConversationId: id, MessageLimit: 1})
		cancel()
		if err == nil {
			out := logState{length: int64(res.GetConversation().GetMessageCount())}
			if m := res.GetMessages(); len(m) > 0 {
				out.last = m[0].GetText()
			}
			d.mu.Lock()
			d.history = append(d.history, porcupine.Operation{ClientId: faultWriters + r, Input: logCall{conversation: id}, Call: from, Output: out, Return: d.now()})
			d.mu.Unlock()
		}
		pause(t.Context(), 5*time.Millisecond)
	}
}

// watch follows a conversation from its beginning to its end, at one server after the other.
func (d *drill) watch(t *testing.T, w int) {
	id := d.conversations[w%len(d.conversations)]
	var cursor string
	var version, seen int64
	deadline := time.Now().Add(5 * faultPatience)
	for at := w / len(d.conversations); ; at++ {
		err := d.follow(t, t.Context(), at%len(d.clients), id, &cursor, &version, &seen)
		d.mu.Lock()
		final, over := d.final[id]
		d.mu.Unlock()
		if over && seen == final {
			return
		}
		if t.Context().Err() != nil || time.Now().After(deadline) || t.Failed() {
			t.Errorf("watcher %d has seen %d of %d messages: %v", w, seen, final, err)
			return
		}
		pause(t.Context(), 20*time.Millisecond)
	}
}

// follow reads one stream until it ends, or all was seen.
func (d *drill) follow(t *testing.T, ctx context.Context, at int, id string, cursor *string, version, seen *int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := d.pages[at].Watch(ctx, watchOf(id, *cursor))
	if err != nil {
		return err
	}
	defer stream.Close()
	d.streams.Add(1)
	ended := make(chan struct{})
	defer close(ended)
	var ending sync.WaitGroup
	defer ending.Wait()
	ending.Go(func() { // once it is known where the end is, who is there need not wait for a message
		select {
		case <-d.over:
		case <-ended:
			return
		}
		timer := time.NewTimer(time.Second)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-ended:
		}
	})
	for stream.Receive() {
		m := stream.Msg().GetChanged()
		if m == nil {
			continue // a heartbeat
		}
		c, messages := things(m)
		v := m.GetVersion()
		switch {
		case v <= *version:
			t.Errorf("%s: version %d comes after %d", id, v, *version)
			return nil
		case m.GetReset_():
			d.resets.Add(1)
			*seen = int64(c.GetMessageCount())
		default:
			for _, msg := range messages {
				if *seen++; int64(msg.GetSeq()) != *seen {
					t.Errorf("%s: message %d comes where %d should", id, msg.GetSeq(), *seen)
					return nil
				}
			}
		}
		if *seen != int64(c.GetMessageCount()) {
			t.Errorf("%s: at version %d there are %d messages, %d were told", id, v, c.GetMessageCount(), *seen)
			return nil
		}
		*version, *cursor = v, stream.Msg().GetCursor()
	}
	return stream.Err()
}

// things are the conversation and the messages of a change.
func things(c *watchv1.Changed) (conversation *conversationv1.Conversation, messages []*conversationv1.Message) {
	for _, t := range c.GetPut() {
		if t.GetConversation() != nil {
			conversation = t.GetConversation()
		} else if t.GetMessage() != nil {
			messages = append(messages, t.GetMessage())
		}
	}
	return conversation, messages
}

// more waits until so many more messages are acknowledged.
func (d *drill) more(t *testing.T, n int64) {
	t.Helper()
	target := d.acknowledged.Load() + n
	awaitTrue(t, fmt.Sprint(n, " more messages"), func() bool { return d.acknowledged.Load() >= target })
}

// recovered waits until every writer has got something done that it began after now.
func (d *drill) recovered(t *testing.T) time.Duration {
	t.Helper()
	from := d.now()
	for w := range d.lastBegun {
		awaitTrue(t, "recovery", func() bool { return d.lastBegun[w].Load() > from })
	}
	return time.Duration(d.now() - from)
}

func awaitTrue(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(faultPatience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: still waiting after %v", what, faultPatience)
		}
	}
}

// end stops the load, and checks what is stored, what the callers were told, and what the watchers saw.
func (d *drill) end(t *testing.T) {
	t.Helper()
	close(d.stop)
	d.working.Wait()
	var messages int64
	for _, id := range d.conversations {
		var stored, version int64
		for more := true; more; {
			page, err := d.clients[0].ListMessages(t.Context(), &conversationv1.ListMessagesRequest{ConversationId: id, AfterSeq: int32(stored), PageSize: 200})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range page.GetMessages() {
				if stored++; int64(m.GetSeq()) != stored {
					t.Fatalf("%s: message %d is in place %d", id, m.GetSeq(), stored)
				}
				where := fmt.Sprint(id, "/", stored)
				if d.names[where] != m.GetText() {
					t.Errorf("%s is %q, and %q was acknowledged there", where, m.GetText(), d.names[where])
				}
				delete(d.names, where)
			}
			more, version = page.GetNextPageToken() != "", page.GetVersion()
		}
		if version != stored+1 { // the first is its creation
			t.Errorf("%s has %d messages and is at version %d", id, stored, version)
		}
		messages += stored
		d.mu.Lock()
		d.final[id] = stored
		d.mu.Unlock()
	}
	for where, text := range d.names {
		t.Errorf("%s was acknowledged as %s and is not there", text, where)
	}
	close(d.over)
	d.watching.Wait()
	for _, part := range logModel().Partition(d.history) {
		if result := porcupine.CheckOperationsTimeout(logModel(), part, time.Minute); result != porcupine.Ok {
			t.Errorf("the history of a conversation, %d operations, is %s", len(part), result)
		}
	}
	t.Logf("%d messages acknowledged and found once each, %d operations linearizable; %d requests repeated; %d watchers by %d streams, %d snapshots",
		messages, len(d.history), d.retries.Load(), faultWatchers, d.streams.Load(), d.resets.Load())
}

// TestFaults has each fault happen to a system under load. After each of them every acknowledged change is there exactly once,
// versions have no gap, the histories are linearizable, and each watcher has seen every message in order.
func TestFaults(t *testing.T) { //nolint:paralleltest // the machine is loaded enough
	if testing.Short() {
		t.Skip("a minute of load and faults")
	}
	s := startSystem(t, filepath.Join(openDir(t), "postgres"))
	for _, fault := range []struct {
		name string
		hit  func(*testing.T, *drill) (healed time.Duration)
	}{
		{"server-killed", func(t *testing.T, d *drill) time.Duration {
			d.servers[1].kill()
			took := d.recovered(t)
			d.startServer(1)
			return took
		}},
		{"postgres-stopped-at-once", func(t *testing.T, d *drill) time.Duration {
			d.stopPostgresAtOnce(t)
			d.startPostgres()
			return d.recovered(t)
		}},
		{"connections-cut", func(t *testing.T, d *drill) time.Duration {
			// At any moment, so also between a COMMIT and its answer: object's tests do that to each round trip.
			for n := range 20 {
				p := d.proxies[n%len(d.proxies)]
				p.Stop()
				if err := p.Start(); err != nil {
					t.Fatal(err)
				}
				d.more(t, 5)
			}
			return d.recovered(t)
		}},
		{"partition", func(t *testing.T, d *drill) time.Duration {
			d.part(t, 0)
			d.more(t, faultAcknowledged) // the others go on
			d.heal(t, 0)
			return d.recovered(t)
		}},
		{"partition-of-all", func(t *testing.T, d *drill) time.Duration {
			for i := range d.proxies {
				d.part(t, i)
			}
			pause(t.Context(), time.Second)
			for i := range d.proxies {
				d.heal(t, i)
			}
			return d.recovered(t)
		}},
	} {
		t.Run(fault.name, func(t *testing.T) { //nolint:paralleltest // one after the other, on one system
			d := startDrill(t, s)
			d.more(t, faultAcknowledged)
			took := fault.hit(t, d)
			d.more(t, faultAcknowledged)
			d.end(t)
			t.Logf("%s: every writer goes on after %v", fault.name, took.Round(time.Millisecond))
		})
	}
	for _, c := range s.servers {
		c.end(t)
	}
}

// TestDiskFull fills the disk that the database is on. Postgres refuses changes, or ends; once there is room again, all goes on
// with all that was acknowledged.
func TestDiskFull(t *testing.T) { //nolint:paralleltest // the machine is loaded enough
	if testing.Short() {
		t.Skip("some seconds of load on a full disk")
	}
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("a small disk can be mounted by root on Linux only")
	}
	disk := filepath.Join(openDir(t), "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=220m", "tmpfs", disk).CombinedOutput(); err != nil {
		t.Skipf("this machine lets nobody mount a small disk: %s", out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "--lazy", disk).CombinedOutput(); err != nil {
			t.Errorf("umount: %s", out)
		}
	})
	s := startSystem(t, filepath.Join(disk, "postgres"))
	d := startDrill(t, s)
	d.more(t, faultAcknowledged)
	ballast := filepath.Join(disk, "ballast")
	for f := 0; ; f++ { // what Postgres frees meanwhile is taken, too
		if err := fill(fmt.Sprint(ballast, f)); err != nil {
			t.Fatal(err)
		}
		refused := d.retries.Load()
		pause(t.Context(), 500*time.Millisecond)
		if d.retries.Load() >= refused+faultWriters {
			break
		}
	}
	files, err := filepath.Glob(ballast + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	pause(t.Context(), time.Second) // one that gives up does so now
	ended := false
	select {
	case <-s.postgres.Done():
		ended = true
		if err := s.postgres.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.startPostgres()
	default:
	}
	took := d.recovered(t)
	d.more(t, faultAcknowledged)
	d.end(t)
	t.Logf("every writer goes on %v after there was room; Postgres had ended: %t", took.Round(time.Millisecond), ended)
	for _, c := range s.servers {
		c.end(t)
	}
}

// fill writes a file until there is no room for more.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		if errors.Is(err, syscall.ENOSPC) {
			return nil
		}
		return err
	}
	defer f.Close()
	chunk := make([]byte, 64<<10)
	for {
		if _, err := f.Write(chunk); errors.Is(err, syscall.ENOSPC) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// stopPostgresAtOnce has it stop without a checkpoint, as a crash does.
func (s *system) stopPostgresAtOnce(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(s.postgres.PID(), syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	<-s.postgres.Done()
	if err := s.postgres.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// part makes all that is sent between a server and Postgres disappear, and leaves the connections open.
func (s *system) part(t *testing.T, i int) {
	t.Helper()
	for _, stream := range []string{"upstream", "downstream"} {
		toxic := `{"name": "` + stream + `", "type": "timeout", "stream": "` + stream + `", "attributes": {"timeout": 0}}`
		if _, err := s.proxies[i].Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			t.Fatal(err)
		}
	}
}

// heal lets through what is sent from now on. What was sent is lost, so the connections are.
func (s *system) heal(t *testing.T, i int) {
	t.Helper()
	s.proxies[i].Toxics.ResetToxics(t.Context())
	s.proxies[i].Stop()
	if err := s.proxies[i].Start(); err != nil {
		t.Fatal(err)
	}
}
