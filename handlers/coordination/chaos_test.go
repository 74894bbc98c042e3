package coordination

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"holdfast/coordclient"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers/coordination/dialect"
)

// memory is a coordinator without a database: the rules by themselves, by the clock of a bubble.
type memory struct {
	coordinationv1connect.CoordinationServiceClient

	mu      sync.Mutex
	config  *storev1.ApiConfig
	state   *storev1.ApiState
	rows    map[string]row
	version int64
}

func (m *memory) change(rule func(*ledger) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &ledger{bucketStore: bucketStore{state: scratch(m.state)}, config: m.config, now: time.Now()}
	if err := rule(l); err != nil {
		return refuse(err)
	}
	m.state = l.state
	m.version++
	return nil
}

func (m *memory) BeginCall(_ context.Context, req *coordinationv1.BeginCallRequest) (res *coordinationv1.BeginCallResponse, err error) {
	err = m.change(func(l *ledger) error {
		b, err := l.begin(m.rows[req.GetKey()], req, "")
		if err != nil {
			return err
		}
		if b.put != nil {
			m.rows[req.GetKey()] = b.put
		}
		res = b.res
		res.Call = shown(b.row)
		return nil
	})
	return res, err
}

func (m *memory) FinishCall(_ context.Context, req *coordinationv1.FinishCallRequest) (res *coordinationv1.FinishCallResponse, err error) {
	err = m.change(func(l *ledger) error {
		done, err := l.settleBy(m.rows[req.GetKey()], req, true)
		if done != nil {
			m.rows[req.GetKey()] = done
		}
		return err
	})
	return &coordinationv1.FinishCallResponse{}, err
}

func (m *memory) Acquire(_ context.Context, req *coordinationv1.AcquireRequest) (res *coordinationv1.AcquireResponse, err error) {
	err = m.change(func(l *ledger) error {
		d := &demand{operation: req.GetOperation(), permits: 1, cost: req.GetCost(), version: m.version}
		v := acquire(l.bucketStore, l.config, d, false, l.now)
		res = &coordinationv1.AcquireResponse{Allowed: v.allowed, GrantId: v.grant.id(), Probe: v.probe, WaitReason: v.reason, RetryAfter: durationpb.New(v.retryAt.Sub(l.now))}
		if v.leases {
			res.Lease = &typev1.Lease{}
		}
		return nil
	})
	return res, err
}

func (m *memory) Report(_ context.Context, req *coordinationv1.ReportRequest) (res *coordinationv1.ReportResponse, err error) {
	err = m.change(func(l *ledger) error {
		g, _ := parseGrant(req.GetGrantId())
		o := observe(req.GetResponse(), g.at, l.now)
		correct(l.bucketStore, l.config, &demand{only: namesOf(l.config.GetPolicies())}, o, true, g.at, l.now)
		h := healthOf(o, req.GetResponse())
		if h == healthUp {
			succeeded(l.state, g.at, l.now)
		}
		breakerHears(l.breaker(l.config, ""), l.config.GetBreaker(), g.generation, h, l.now)
		return nil
	})
	return &coordinationv1.ReportResponse{}, err
}

// refusal is what a provider says that wants to be asked again after so long; from when on is what it then means.
type refusal struct {
	name   string
	answer func(now time.Time, after time.Duration) (status int, header, body string, from time.Time)
}

func ceil(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// whole is a refusal in whole seconds.
func whole(status int, header, body string) func(time.Time, time.Duration) (int, string, string, time.Time) {
	return func(now time.Time, after time.Duration) (int, string, string, time.Time) {
		n := ceil(after)
		return status, strings.ReplaceAll(header, "%", fmt.Sprint(n)), strings.ReplaceAll(body, "%", fmt.Sprint(n)), now.Add(min(dialect.MaxWait, time.Duration(n)*time.Second))
	}
}

// milli is one in milliseconds.
func milli(status int, header, body string, format func(time.Duration) string) func(time.Time, time.Duration) (int, string, string, time.Time) {
	return func(now time.Time, after time.Duration) (int, string, string, time.Time) {
		after = after.Round(time.Millisecond)
		text := format(after)
		return status, strings.ReplaceAll(header, "%", text), strings.ReplaceAll(body, "%", text), now.Add(min(dialect.MaxWait, after))
	}
}

// at is one that names a time.
func at(status int, header, body string, resolution time.Duration, format func(time.Time) string) func(time.Time, time.Duration) (int, string, string, time.Time) {
	return func(now time.Time, after time.Duration) (int, string, string, time.Time) {
		from := now.Add(min(after, dialect.MaxWait-resolution)).Truncate(resolution).Add(resolution)
		text := format(from)
		return status, strings.ReplaceAll(header, "%", text), strings.ReplaceAll(body, "%", text), from
	}
}

func inSeconds(d time.Duration) string { return fmt.Sprintf("%.3f", d.Seconds()) }
func inMillis(d time.Duration) string  { return fmt.Sprint(d.Milliseconds()) }
func layout(l string) func(time.Time) string {
	return func(t time.Time) string { return t.UTC().Format(l) }
}

// leapSecond writes the first second of a minute as the second 60 of the minute before.
func leapSecond(t time.Time) string {
	if t = t.UTC(); t.Second() == 0 {
		return t.Add(-time.Second).Format("Mon, 02 Jan 2006 15:04:") + "60 GMT"
	}
	return t.Format(http.TimeFormat)
}

const exhausted = `{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"GenerateRequestsPerMinutePerProjectPerModel","quotaDimensions":{"model":"m"}}]},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"%s"}]}}`

var refusalsOfAllKinds = []refusal{
	{"seconds", whole(429, "Retry-After: %", "")},
	{"doubled", whole(429, "Retry-After: %\r\nRetry-After: %", "")},
	{"fractional", milli(429, "Retry-After: %", "", inSeconds)},
	{"date", at(429, "Retry-After: %", "", time.Second, layout(http.TimeFormat))},
	{"RFC 850", at(429, "Retry-After: %", "", time.Second, layout("Monday, 02-Jan-06 15:04:05 GMT"))},
	{"asctime", at(429, "Retry-After: %", "", time.Second, layout(time.ANSIC))},
	{"second 60", at(429, "Retry-After: %", "", time.Second, leapSecond)},
	{"no zone", at(429, "Retry-After: %", "", time.Millisecond, layout("2006-01-02T15:04:05.000"))},
	{"milliseconds", milli(429, "Retry-After: 999\r\nRetry-After-Ms: %", "", inMillis)},
	{"Azure", milli(429, "X-Ms-Retry-After-Ms: %", "", inMillis)},
	{"IETF", whole(429, `RateLimit: "default";r=0;t=%`, "")},
	{"IETF 07", whole(429, `RateLimit: limit=9, remaining=0, reset=%`, "")},
	{"IETF 06", whole(429, "RateLimit-Limit: 10, 10;w=60\r\nRateLimit-Remaining: 0\r\nRateLimit-Reset: %", "")},
	{"reset alone", whole(429, "X-RateLimit-Reset: %", "")},
	{"GitHub", at(403, "X-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: %", "", time.Second, func(t time.Time) string { return fmt.Sprint(t.Unix()) })},
	{"Discord", at(429, "X-RateLimit-Remaining: 0\r\nX-RateLimit-Reset: %", "", time.Millisecond, func(t time.Time) string { return fmt.Sprintf("%d.%03d", t.Unix(), t.Nanosecond()/1e6) })},
	{"Linear", at(400, "X-RateLimit-Requests-Remaining: 0\r\nX-RateLimit-Requests-Reset: %", `{"errors":[{"extensions":{"code":"RATELIMITED"}}]}`, time.Millisecond, func(t time.Time) string { return fmt.Sprint(t.UnixMilli()) })},
	{"OpenAI", milli(429, "X-RateLimit-Remaining-Requests: 0\r\nX-RateLimit-Reset-Requests: %", `{"error":{"code":"rate_limit_exceeded"}}`, time.Duration.String)},
	{"Anthropic", at(429, "Anthropic-RateLimit-Requests-Remaining: 0\r\nAnthropic-RateLimit-Requests-Reset: %", "", time.Second, layout(time.RFC3339))},
	{"Jira", at(429, "X-RateLimit-Reset: %", "", time.Minute, layout("2006-01-02T15:04Z"))},
	{"Google", milli(429, "", exhausted, inSeconds)},
	{"GraphQL", milli(200, "Content-Type: application/json", `{"data":null,"errors":[{"extensions":{"code":"RATELIMITED","retryAfterMs":%}}]}`, inMillis)},
	{"a message", milli(429, "", `{"error":{"message":"Rate limit reached. Please try again in %."}}`, time.Duration.String)},
	{"a body", milli(429, "", `{"message":"slow","retry_after":%}`, inSeconds)},
	{"overloaded", whole(503, "Retry-After: %", `{"error":{"type":"overloaded_error"}}`)},
	{"529", whole(529, "Retry-After: %", "")},
}

// unread are refusals of which nobody can tell for how long they hold.
var unread = []string{"", "Retry-After: soon\r\n", "Retry-After: -5\r\n", "Retry-After: 0\r\n", "X-RateLimit-Reset: never\r\n", "Retry-After: Mon, 23 Nov 2020 10:00:00 GMT\r\n", `RateLimit: "open;r=0` + "\r\n"}

// chaos is a provider that answers as its dice fall, and notes what it has done and when it wanted to be left alone.
type chaos struct {
	t    *testing.T
	mu   sync.Mutex
	dice *rand.Rand
	left int // answers that are not good
	done map[string]int
	log  []string
	// from and until are between which times the next request may come, where not zero.
	from, until time.Time
	said        time.Time // when the provider said it
	hops        int
	unclear     bool // it also said something at that time that nobody can read
	graphQL     bool
}

// dial is a connection to the provider, for one request.
func (p *chaos) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		r, err := http.ReadRequest(bufio.NewReader(far))
		if err != nil {
			return
		}
		body, _ := io.ReadAll(r.Body)
		p.answer(far, r, string(body))
	}()
	return near, nil
}

func (p *chaos) notef(format string, args ...any) {
	p.log = append(p.log, fmt.Sprintf(format, args...))
}

// answer answers one request. A request's body is its key.
func (p *chaos) answer(w io.Writer, r *http.Request, key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.notef("%s %s %s at %v", r.Method, r.URL, key, now)
	if now.Before(p.from) && now.After(p.said) { // what was on its way when it was said is nobody's fault
		p.t.Errorf("a request came %v before its time", p.from.Sub(now))
	}
	if !p.until.IsZero() && now.After(p.until) {
		p.t.Errorf("a request came %v later than it might have", now.Sub(p.until))
	}
	if now.After(p.said) {
		p.from, p.until, p.said, p.unclear = time.Time{}, time.Time{}, now, false
	}
	reply := func(status int, header, body string) {
		if header != "" && !strings.HasSuffix(header, "\r\n") {
			header += "\r\n"
		}
		p.notef("  %d %q %.80q", status, header, body)
		fmt.Fprintf(w, "HTTP/1.1 %d x\r\nDate: %s\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s", status, time.Now().UTC().Format(http.TimeFormat), header, len(body), body)
	}
	do := func() {
		if r.Method == http.MethodPost {
			if p.done[key]++; p.done[key] > 1 {
				p.t.Errorf("%s happened again", key)
			}
		}
	}
	if p.left--; p.left < 0 {
		do()
		p.good(w, reply)
		return
	}
	switch p.dice.IntN(9) {
	case 0, 1, 2, 3:
		kind := refusalsOfAllKinds[p.dice.IntN(len(refusalsOfAllKinds))]
		if kind.name == "GraphQL" && !p.graphQL {
			kind = refusalsOfAllKinds[0]
		}
		after := time.Duration(p.dice.ExpFloat64() * float64([]time.Duration{time.Second, time.Minute, time.Hour, 10 * 24 * time.Hour}[p.dice.IntN(4)]))
		after = min(max(after, 50*time.Millisecond), 40*24*time.Hour)
		status, header, body, from := kind.answer(now, after)
		p.notef("  %s: %v", kind.name, after)
		if p.from.IsZero() || from.After(p.from) {
			p.from = from
			if p.until = from.Add(from.Sub(now)/10 + 20*time.Millisecond); p.unclear {
				p.until = time.Time{}
			}
		}
		reply(status, header, body)
	case 4:
		p.from, p.until, p.unclear = later(p.from, now.Add(firstBackoff/2)), time.Time{}, true
		reply([]int{429, 529}[p.dice.IntN(2)], unread[p.dice.IntN(len(unread))], "")
	case 5: // whether or not it was done, nobody knows
		if p.dice.IntN(2) == 0 {
			do()
		}
		if p.dice.IntN(3) == 0 {
			p.notef("  cut")
			return
		}
		reply([]int{500, 502, 503, 504, 408, 520}[p.dice.IntN(6)], "Content-Type: text/html", "upstream connect error or disconnect/reset before headers")
	case 6:
		reply([]int{401, 402, 403, 409, 423}[p.dice.IntN(5)], "", "{}")
	case 7:
		if p.hops++; p.hops > 5 { // net/http follows ten
			do()
			reply(200, "", "ok")
			return
		}
		reply([]int{307, 308}[p.dice.IntN(2)], fmt.Sprintf("Location: http://provider/%d%s", p.dice.IntN(100), p.path()), "")
	default: // slow
		p.notef("  slow")
		slow := time.Duration(p.dice.IntN(20)) * time.Second
		p.mu.Unlock()
		time.Sleep(slow) //nolint:forbidigo // in a bubble
		p.mu.Lock()
		do()
		p.good(w, reply)
	}
}

// path is where the provider is: GraphQL's errors come with any status.
func (p *chaos) path() string {
	if p.graphQL {
		return "/graphql"
	}
	return "/api"
}

// good answers with what was asked for: at once, or as a stream of any kind.
func (p *chaos) good(w io.Writer, reply func(int, string, string)) {
	kinds := []string{"", "text/event-stream", "TEXT/EVENT-STREAM", "application/x-ndjson", "application/json", "application/connect+json", "application/grpc-web", "application/octet-stream"}
	kind := kinds[p.dice.IntN(len(kinds))]
	if kind == "" {
		reply(200, "", "ok")
		return
	}
	p.notef("  stream: %s", kind)
	fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n", kind)
	p.mu.Unlock()
	time.Sleep(streamFor) //nolint:forbidigo // in a bubble
	p.mu.Lock()
	fmt.Fprint(w, "1\r\nk\r\n0\r\n\r\n")
}

const streamFor = 30 * time.Second

// The chaos provider, by 1,000 scripts: what was done was done once, nothing came before its time, and nobody waited for more than
// a tenth longer than the provider asked.
func TestChaos(t *testing.T) {
	t.Parallel()
	const scripts, shares = 1000, 4
	for share := range shares {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			t.Parallel()
			for seed := share; seed < scripts; seed += shares {
				synctest.Test(t, func(t *testing.T) { script(t, uint64(seed)) })
				if t.Failed() {
					return
				}
			}
		})
	}
}

func script(t *testing.T, seed uint64) {
	t.Helper()
	dice := rand.New(rand.NewPCG(seed, 0))
	time.Sleep(time.Until(epoch.Add(time.Duration(dice.Int64N(int64(time.Hour)))))) //nolint:forbidigo // in a bubble: bubbles begin in 2000, when seconds since 1970 had nine digits
	p := &chaos{t: t, dice: rand.New(rand.NewPCG(seed, 1)), left: dice.IntN(8), graphQL: dice.IntN(3) == 0, done: map[string]int{}}
	config := &storev1.ApiConfig{MaxAttempts: 1000, Breaker: &storev1.BreakerConfig{Disabled: true}, Retention: durationpb.New(90 * 24 * time.Hour)}
	if dice.IntN(2) == 0 {
		minute := sliding(1000, time.Minute)
		minute.Dimension = "requests"
		config.Policies = []policy{minute}
	}
	m := &memory{config: config, state: &storev1.ApiState{}, rows: map[string]row{}}
	c := coordclient.Client{Service: m}
	base := &http.Transport{DisableKeepAlives: true, DialContext: p.dial}
	client := &http.Client{Transport: c.Transport("any", coordclient.Options{
		Base: base, MaxWait: 300 * 24 * time.Hour, OnError: func(err error) { t.Error(err) },
		Reconcile: func(ctx context.Context, r *coordinationv1.Call) error {
			err := c.Reconcile(ctx, "any", r, func(context.Context, *coordinationv1.Call, time.Time) (coordclient.Finding, error) {
				p.mu.Lock()
				defer p.mu.Unlock()
				if p.done[r.GetKey()] > 0 {
					return coordclient.Finding{Outcome: &coordinationv1.Outcome{HttpStatus: 200}}, nil
				}
				return coordclient.Finding{DidNotHappen: true}, nil
			})
			if _, busy := errors.AsType[*coordclient.InFlightError](err); busy {
				time.Sleep(time.Second) //nolint:forbidigo // in a bubble
				return nil
			}
			return err
		},
	})}
	var all sync.WaitGroup
	for i := range 1 + dice.IntN(3) {
		key, reads := fmt.Sprint("key-", i/2), i == 2 && dice.IntN(2) == 0
		all.Go(func() { insist(t, client, p, key, reads) })
	}
	all.Wait()
	for key, n := range p.done {
		if n != 1 {
			t.Errorf("%s happened %d times", key, n)
		}
	}
	if t.Failed() {
		t.Logf("script %d:\n%s", seed, strings.Join(p.log, "\n"))
	}
}

// insist sends a request until it is answered well, as often as it takes.
func insist(t *testing.T, client *http.Client, p *chaos, key string, reads bool) {
	t.Helper()
	for range 60 {
		method := http.MethodPost
		if reads {
			method = http.MethodGet
		}
		req, err := http.NewRequestWithContext(coordclient.WithKey(t.Context(), key), method, "http://provider"+p.path(), strings.NewReader(key))
		if err != nil {
			t.Error(err)
			return
		}
		res, err := client.Do(req)
		switch _, doubt := errors.AsType[*coordclient.UnknownError](err); {
		case doubt:
			continue
		case err != nil && reads: // cut
			continue
		case err != nil:
			if _, cut := errors.AsType[*coordclient.TruncatedError](err); !cut {
				t.Errorf("%s: %v", key, err)
			}
			return
		}
		began := time.Now()
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if took := time.Since(began); err == nil && len(res.TransferEncoding) > 0 && took < streamFor && !p.graphQL {
			t.Errorf("a stream was held back: its body took %v", took)
		}
		if res.StatusCode == http.StatusOK && (string(text) == "ok" || res.Header.Get(coordclient.ReplayedHeader) != "") {
			return
		}
	}
	t.Errorf("%s: no end", key)
}
