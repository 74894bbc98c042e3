//go:build unix

package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
)

// An attack runs in a process of its own, so that its garbage collector is not in the way of those whose calls are measured.
// Where this variable is set the test binary is an attacker, and the variable has its orders.
const asAttacker = "HOLDFAST_TEST_AS_ATTACKER"

func init() { //nolint:gochecknoinits // as in crash_test.go: before the tests begin
	if text := os.Getenv(asAttacker); text != "" {
		os.Exit(attackAsOrdered(text))
	}
}

// orders are what an attacker is told.
type orders struct {
	Abuse  string
	API    string
	Keys   map[string]string // by who they are of
	Params map[string]string // what the abuse's setup made
	Full   bool              // the sizes of the table in the docs; otherwise those of CI
	For    time.Duration
}

// attacker is one process that attacks.
type attacker struct {
	orders

	ctx context.Context
	url *url.URL

	// missing is how many of the attackers are not in place yet; inPlace is closed when all are.
	missing atomic.Int64
	inPlace chan struct{}

	mu     sync.Mutex // guards counts
	counts map[string]int64
}

// mostPatience is how long an attack may take to be in place.
const mostPatience = 15 * time.Second

func newAttacker() *attacker {
	return &attacker{counts: map[string]int64{}, inPlace: make(chan struct{})}
}

// expect says how many attackers have to be in place before the attack's time begins. It is called first, and once.
func (a *attacker) expect(n int) { a.missing.Store(int64(n)) }

// arrive notes that an attacker is in place, or was turned away.
func (a *attacker) arrive() {
	if a.missing.Add(-1) == 0 {
		close(a.inPlace)
	}
}

// attackAsOrdered attacks until its time is over or its standard input ends, which it does with the test, and prints what
// the server answered.
func attackAsOrdered(text string) int {
	a := newAttacker()
	if err := json.Unmarshal([]byte(text), &a.orders); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	u, err := url.Parse(a.API)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	a.url = u
	ctx, cancel := context.WithTimeout(context.Background(), a.For+mostPatience)
	defer cancel()
	a.ctx = ctx
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1) // the test is over
	}()
	go func() {
		select {
		case <-a.inPlace:
			pause(ctx, a.For)
			cancel()
		case <-ctx.Done():
		}
	}()
	for _, abuse := range abuses() {
		if abuse.name == a.Abuse {
			abuse.attack(a)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := json.NewEncoder(os.Stdout).Encode(a.counts); err != nil {
		return 1
	}
	return 0
}

// attack starts an attacker. outcomes waits for it to end and returns what it counted.
func attack(t *testing.T, o *orders) (outcomes func() map[string]int64) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	// An attacker is on a machine of its own. On this one it has what CPU the server, its database and its callers leave.
	cmd := exec.CommandContext(t.Context(), "chrt", "--idle", "0", self)
	if o.Full {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	}
	cmd.Env = []string{asAttacker + "=" + string(text), "GOMEMLIMIT=1GiB"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if o.Full {
		// Linux may share CPU between sessions first, and within each only then. Where it does not, there is no such file.
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/autogroup", cmd.Process.Pid), []byte("19"), 0o600)
	}
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	stop := sync.OnceValue(func() error {
		select {
		case err := <-over:
			return err
		case <-time.After(o.For + 2*mostPatience):
			_ = stdin.Close()
			_ = cmd.Process.Kill()
			return errors.Join(errors.New("it did not end"), <-over)
		}
	})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = stop()
	})
	return func() map[string]int64 {
		t.Helper()
		if err := stop(); err != nil {
			t.Fatalf("the attacker failed: %v: %s", err, &stderr)
		}
		counts := map[string]int64{}
		if err := json.Unmarshal(stdout.Bytes(), &counts); err != nil {
			t.Fatalf("the attacker said %q: %v", &stdout, err)
		}
		return counts
	}
}

func (a *attacker) size(ci, full int) int {
	if a.Full {
		return full
	}
	return ci
}

func (a *attacker) count(outcome string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts[outcome]++
}

// hold runs f so many times at once.
func (a *attacker) hold(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}

// loop has so many clients call f again and again until the attack is over. They are in place once each has called it once.
func (a *attacker) loop(n int, f func(i int)) {
	a.expect(n)
	a.hold(n, func(i int) {
		f(i)
		a.arrive()
		for a.ctx.Err() == nil {
			f(i)
		}
	})
}

// How an answer or its absence is counted, beside "<status>" and "<status> <reason>".
const (
	outcomeCut  = "cut"  // the server closed the connection or the stream
	outcomeHeld = "held" // nothing had come by the end of the attack
)

// answered says what a response is: its status and Holdfast's reason, wherever the protocol has it.
func answered(res *http.Response) string {
	body, _ := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	var e struct {
		Code    string
		Details []struct{ Type, Value string }
	}
	status := fmt.Sprint(res.StatusCode)
	if grpc := res.Header.Get("Grpc-Status"); grpc != "" && grpc != "0" {
		return status + " grpc " + grpc
	}
	if len(body) > 5 && body[0]&2 != 0 { // the end of a Connect stream
		var end struct{ Error json.RawMessage }
		if json.Unmarshal(body[5:], &end) == nil && len(end.Error) > 0 {
			body = end.Error
		}
	}
	if json.Unmarshal(body, &e) != nil || e.Code == "" {
		return status
	}
	for _, d := range e.Details {
		var info errdetails.ErrorInfo
		value, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(d.Value, "="))
		if err == nil && strings.HasSuffix(d.Type, "ErrorInfo") && proto.Unmarshal(value, &info) == nil {
			return status + " " + info.GetReason()
		}
	}
	return status + " " + e.Code
}

// client is an HTTP client of its own, whose connections end with the attack.
func (a *attacker) client(h2 bool) *http.Client {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	tr := &http.Transport{Protocols: protocols, MaxIdleConnsPerHost: 100, DisableCompression: true}
	context.AfterFunc(a.ctx, tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// call is one request.
type call struct {
	method string // empty: POST
	path   string
	token  string
	kind   string // its content type; empty: JSON
	header map[string]string
	body   io.Reader
	opened func() // nil, or called with the answer's head
}

const (
	conversations  = "/holdfast.conversation.v1.ConversationService/"
	watchRPC       = "/holdfast.watch.v1.WatchService/Watch"
	sessions       = "/holdfast.session.v1.SessionService/"
	inspector      = "/holdfast.inspect.v1.InspectService/"
	healthCheck    = "/grpc.health.v1.Health/Check"
	reflection     = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
	webhooks       = "/webhooks/linear/"
	contentJSON    = "application/json"
	contentProto   = "application/proto"
	contentConnect = "application/connect+json"
	contentGRPC    = "application/grpc+proto"
)

func (c *call) headers(host string) []hpack.HeaderField {
	method, kind := c.method, c.kind
	if method == "" {
		method = http.MethodPost
	}
	if kind == "" {
		kind = contentJSON
	}
	out := []hpack.HeaderField{
		{Name: ":method", Value: method},
		{Name: ":path", Value: c.path},
		{Name: ":scheme", Value: "http"},
		{Name: ":authority", Value: host},
	}
	if method == http.MethodPost {
		out = append(out, hpack.HeaderField{Name: "content-type", Value: kind})
	}
	if kind == contentGRPC {
		out = append(out, hpack.HeaderField{Name: "te", Value: "trailers"})
	}
	if c.token != "" {
		out = append(out, hpack.HeaderField{Name: "authorization", Value: "Bearer " + c.token})
	}
	for name, value := range c.header {
		out = append(out, hpack.HeaderField{Name: strings.ToLower(name), Value: value})
	}
	return out
}

// send sends a request by a client, and counts and returns what came of it.
func (a *attacker) send(client *http.Client, c *call) string {
	out := a.try(client, c)
	a.count(out)
	return out
}

func (a *attacker) try(client *http.Client, c *call) string {
	req, err := http.NewRequestWithContext(a.ctx, http.MethodPost, a.API+c.path, c.body)
	if err != nil {
		return err.Error()
	}
	for _, h := range c.headers("") {
		switch {
		case h.Name == ":method":
			req.Method = h.Value
		case !strings.HasPrefix(h.Name, ":"):
			req.Header.Set(h.Name, h.Value)
		}
	}
	res, err := client.Do(req)
	if err != nil {
		return a.broken()
	}
	defer res.Body.Close()
	if c.opened != nil {
		c.opened()
	}
	out := answered(res)
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return out + " " + a.broken()
	}
	return out
}

// broken is why there is no answer: the attack is over, or the server has cut it.
func (a *attacker) broken() string {
	if a.ctx.Err() != nil {
		return outcomeHeld
	}
	return outcomeCut
}

// dial opens a TCP connection that ends with the attack, with a receive buffer of some bytes, or the usual one for 0.
func (a *attacker) dial(buffer int) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(a.ctx, "tcp", a.url.Host)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok && buffer > 0 {
		if err := tcp.SetReadBuffer(buffer); err != nil {
			return nil, err
		}
	}
	context.AfterFunc(a.ctx, func() { conn.Close() })
	return conn, nil
}

// head is a request's head in HTTP/1.1; length is the Content-Length, or for -1 it comes in chunks.
func (a *attacker) head(c *call, length int64) []byte {
	fields := c.headers(a.url.Host)
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s %s HTTP/1.1\r\nhost: %s\r\n", fields[0].Value, fields[1].Value, a.url.Host)
	for _, f := range fields[4:] {
		fmt.Fprintf(&out, "%s: %s\r\n", f.Name, f.Value)
	}
	if length < 0 {
		out.WriteString("transfer-encoding: chunked\r\n\r\n")
	} else {
		fmt.Fprintf(&out, "content-length: %d\r\n\r\n", length)
	}
	return out.Bytes()
}

// trickle writes filler bytes to w: so many at once, and then one each pause until the attack ends. It ends when it cannot write.
func (a *attacker) trickle(w io.Writer, atOnce int, pause time.Duration) {
	arrive := sync.OnceFunc(a.arrive)
	defer arrive()
	filler := bytes.Repeat([]byte(" "), 32<<10)
	for atOnce > 0 {
		n, err := w.Write(filler[:min(atOnce, len(filler))])
		if err != nil {
			return
		}
		atOnce -= n
	}
	arrive()
	if pause == 0 {
		return
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-a.ctx.Done():
			return
		case <-tick.C:
			if _, err := w.Write(filler[:1]); err != nil {
				return
			}
		}
	}
}

// stall sends a request over HTTP/1.1 whose body is never finished, and returns what came of it.
func (a *attacker) stall(c *call, declared int64, sent int, pause time.Duration) string {
	conn, err := a.dial(0)
	if err != nil {
		return a.broken()
	}
	defer conn.Close()
	if _, err := conn.Write(a.head(c, declared)); err != nil {
		return a.broken()
	}
	writing := make(chan struct{})
	go func() {
		defer close(writing)
		var w io.Writer = conn
		if declared < 0 {
			w = chunks{conn}
		}
		a.trickle(w, sent, pause)
	}()
	out := a.answer(conn)
	conn.Close()
	<-writing
	return out
}

// answer reads an answer, or waits for the end of the connection.
func (a *attacker) answer(conn net.Conn) string {
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return a.broken()
	}
	defer res.Body.Close()
	return answered(res)
}

// chunks writes each piece as a chunk.
type chunks struct{ io.Writer }

func (c chunks) Write(p []byte) (int, error) {
	if _, err := fmt.Fprintf(c.Writer, "%x\r\n%s\r\n", len(p), p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// frames is an HTTP/2 connection by hand: its streams send and take what an attacker likes.
type frames struct {
	*http2.Framer

	a *attacker

	mu      sync.Mutex // guards writing and what follows
	block   bytes.Buffer
	encoder *hpack.Encoder
	next    uint32
	live    map[uint32]string // by stream, its status as far as it is known
}

// h2 opens a connection that grants the server only the windows of the standard, 64 KiB, unless the settings say otherwise, and
// never more.
func (a *attacker) h2(settings ...http2.Setting) (*frames, error) {
	conn, err := a.dial(4 << 10)
	if err != nil {
		return nil, err
	}
	f := &frames{Framer: http2.NewFramer(conn, conn), a: a, next: 1, live: map[uint32]string{}}
	f.encoder = hpack.NewEncoder(&f.block)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return nil, err
	}
	err = f.WriteSettings(settings...)
	return f, err
}

// open begins a stream, with a body, which ends it, or without one, and then it stays open.
func (f *frames) open(c *call, body []byte) (stream uint32, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.block.Reset()
	for _, h := range c.headers(f.a.url.Host) {
		if err := f.encoder.WriteField(h); err != nil {
			return 0, err
		}
	}
	stream = f.next
	f.next += 2
	f.live[stream] = ""
	first, rest := true, f.block.Bytes()
	for first || len(rest) > 0 {
		part := rest[:min(len(rest), 16<<10)]
		rest = rest[len(part):]
		if first {
			err = f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: part, EndHeaders: len(rest) == 0})
		} else {
			err = f.WriteContinuation(stream, len(rest) == 0, part)
		}
		if err != nil {
			return 0, err
		}
		first = false
	}
	if body != nil {
		err = f.WriteData(stream, true, body)
	}
	return stream, err
}

// read reads frames until the connection ends, and counts how each stream did: by its status, as cut, or as held at the end of
// the attack. It answers settings and pings, as it must, and grants no windows.
func (f *frames) read() {
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			break
		}
		f.mu.Lock()
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = f.WritePing(true, frame.Data)
			}
		case *http2.MetaHeadersFrame:
			if f.live[frame.StreamID] == "" {
				f.live[frame.StreamID] = frame.PseudoValue("status")
			}
			if frame.StreamEnded() {
				f.ended(frame.StreamID, "")
			}
		case *http2.DataFrame:
			if frame.StreamEnded() {
				f.ended(frame.StreamID, "")
			}
		case *http2.RSTStreamFrame:
			f.ended(frame.StreamID, outcomeCut)
		default:
		}
		f.mu.Unlock()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for stream := range f.live {
		f.ended(stream, f.a.broken())
	}
}

// ended counts a stream, once; without an outcome it is the status that was answered. f.mu is held.
func (f *frames) ended(stream uint32, outcome string) {
	status, live := f.live[stream]
	if !live {
		return
	}
	if outcome == "" {
		outcome = status
	}
	f.a.count(outcome)
	delete(f.live, stream)
}

// bomb is a gzip stream of so many bytes of spaces, in members of 16 MiB.
func bomb(unpacked int) []byte {
	const member = 16 << 20
	var one bytes.Buffer
	w, _ := gzip.NewWriterLevel(&one, gzip.BestCompression)
	_, _ = w.Write(bytes.Repeat([]byte(" "), member))
	_ = w.Close()
	return bytes.Repeat(one.Bytes(), max(1, unpacked/member))
}

// enveloped is a message as Connect's streams and gRPC have it.
func enveloped(flags byte, length int, message []byte) []byte {
	out := append([]byte{flags}, binary.BigEndian.AppendUint32(nil, uint32(length))...)
	return append(out, message...)
}

// outcomesWith are the counts of outcomes that begin with one of some words.
func outcomesWith(counts map[string]int64, prefixes ...string) (n int64) {
	for outcome := range maps.Keys(counts) {
		for _, p := range prefixes {
			if strings.HasPrefix(outcome, p) {
				n += counts[outcome]
				break
			}
		}
	}
	return n
}
