package handlers

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/handlers/problem"
	"holdfast/identity"
)

// Load is a number of unary calls, and the bytes of requests in memory.
type Load struct {
	Calls int
	Bytes int64

	arriving int // streams whose request is being read; as many as there may be calls
}

// Bounds say what may be answered at once for the server, for a tenant and for a user. Zero fields have defaults. A call costs some
// 20 KiB while it waits, and what is over a bound would only wait longer.
type Bounds struct{ Server, Tenant, User Load }

// A user gets a third of what a tenant gets, and has room for the largest request.
func (b Bounds) withDefaults() Bounds {
	or := func(l, d Load) Load { return Load{Calls: cmp.Or(l.Calls, d.Calls), Bytes: cmp.Or(l.Bytes, d.Bytes)} }
	return Bounds{
		Server: or(b.Server, Load{Calls: 4096, Bytes: 64 << 20}),
		Tenant: or(b.Tenant, Load{Calls: 3072, Bytes: 40 << 20}),
		User:   or(b.User, Load{Calls: 1024, Bytes: 24 << 20}),
	}
}

// caller is a user of a tenant. Services have no bound but the tenant's: they call for many users.
type caller struct {
	tenant identity.Tenant
	user   identity.User
}

// admission refuses calls that are over a bound, before their bodies are read: a refusal has to cost far less than an answer. Streams
// count apart, and only while their request is read: then they have a bound of their own in the runtime. Safe for concurrent use.
type admission struct {
	bounds Bounds

	mu      sync.Mutex // guards what follows
	all     Load
	tenants map[identity.Tenant]Load
	users   map[caller]Load
}

func newAdmission(b Bounds) *admission {
	return &admission{bounds: b.withDefaults(), tenants: map[identity.Tenant]Load{}, users: map[caller]Load{}}
}

// admit counts an authenticated call in until it leaves; a stream, until its request has been read.
func (a *admission) admit(c *call, stream bool) error {
	c.countedBy = a
	if stream {
		return c.take(Load{arriving: 1})
	}
	return c.take(Load{Calls: 1})
}

// hold makes the call's charge so many bytes.
func (c *call) hold(total int64) error {
	return c.take(Load{Bytes: total - c.load.Bytes})
}

// take adds to the call's charge, or refuses. What is less than nothing is given back.
func (c *call) take(l Load) error {
	if c.countedBy == nil || l == (Load{}) {
		return nil
	}
	of, what := c.countedBy.add(c.caller, l)
	if of == "" {
		c.load = c.load.plus(l)
		return nil
	}
	p := problem.Later(errorv1.Reason_REASON_OVERLOADED, "too much is waiting for the "+of+"; nothing was done", time.Second)
	if what == "bytes" {
		p.Message = "too many bytes of requests are in memory for the " + of + "; nothing was done"
	}
	p.Detail = &errorv1.Limit{Name: what, Scope: of}
	return p
}

// arrived gives back what a stream took while its request was read.
func (c *call) arrived() { _ = c.take(Load{arriving: -c.load.arriving}) }

// settled ends the call's turn, if it has one.
func (c *call) settled() {
	if c.endTurn != nil {
		c.endTurn()
	}
}

// leave gives everything back.
func (c *call) leave() { _ = c.take(Load{-c.load.Calls, -c.load.Bytes, -c.load.arriving}) }

// add counts l for a caller; it returns what is full, and of what, where l does not fit.
func (a *admission) add(who identity.Identity, l Load) (of, what string) {
	u := caller{who.Tenant, who.User}
	a.mu.Lock()
	defer a.mu.Unlock()
	all, tenant, user := a.all.plus(l), a.tenants[u.tenant].plus(l), a.users[u].plus(l)
	for _, of := range []struct {
		name        string
		load, bound Load
		free        bool
	}{{"server", all, a.bounds.Server, false}, {"tenant", tenant, a.bounds.Tenant, false}, {"user", user, a.bounds.User, who.User == ""}} {
		switch {
		case of.free:
		case l.Calls > 0 && of.load.Calls > of.bound.Calls:
			return of.name, "calls"
		case l.arriving > 0 && of.load.arriving > of.bound.Calls:
			return of.name, "streams"
		case l.Bytes > 0 && of.load.Bytes > of.bound.Bytes:
			return of.name, "bytes"
		}
	}
	a.all = all
	put(a.tenants, u.tenant, tenant)
	if who.User != "" {
		put(a.users, u, user)
	}
	return "", ""
}

func (l Load) plus(m Load) Load {
	return Load{l.Calls + m.Calls, l.Bytes + m.Bytes, l.arriving + m.arriving}
}

func put[K comparable](loads map[K]Load, k K, l Load) {
	if l == (Load{}) {
		delete(loads, k)
		return
	}
	loads[k] = l
}

// Bounds of each of Options.Routes. Of a route's callers it is not known yet whose they are, but each tenant's webhooks have a path of
// their own.
const (
	defaultRouteCalls        = 64
	defaultRouteCallsPerPath = 16
	routeBytes               = 32 << 20
	routeBytesPerPath        = 16 << 20
)

// places bound the bodies of a route that are in memory, by number and by bytes, for a path and for all. A body takes its place with
// the first read, so a handler that refuses by the headers takes none. One that needs a place when there is none puts out the body
// that has been arriving for longest: slow bodies do not keep a quick one out. Safe for concurrent use.
type places struct {
	most, mostPerPath int

	mu     sync.Mutex // guards what follows
	bodies []*placed  // the oldest first
}

// placed is a body on a route.
type placed struct {
	io.ReadCloser

	in      *places
	call    *call
	path    string
	control *http.ResponseController

	// The rest is guarded by in.
	entered, arrived, out bool
	bytes                 int64
}

// errPutOut is what a handler gets from a body without a place.
var errPutOut = problem.Later(errorv1.Reason_REASON_OVERLOADED, "too much at once; send it again", time.Second)

// route gives next bodies that take places.
func (p *places) route(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := &placed{ReadCloser: r.Body, in: p, call: callFrom(r.Context()), path: r.URL.Path, control: http.NewResponseController(w)}
		defer b.leave()
		in := r.WithContext(r.Context())
		in.Body = b
		next.ServeHTTP(w, in)
	})
}

// Read implements [io.Reader]. The error of a body without a place is a [problem.Error].
func (b *placed) Read(to []byte) (int, error) {
	if !b.room(0, false) {
		return 0, b.refused()
	}
	n, err := b.ReadCloser.Read(to)
	if !b.room(int64(n), errors.Is(err, io.EOF)) {
		return 0, b.refused()
	}
	return n, err //nolint:wrapcheck // it is an io.Reader
}

func (b *placed) refused() error {
	b.call.reason = problem.Name(errPutOut.Reason)
	return errPutOut
}

// room takes the body's place, if it has none, and room for so many bytes more. It returns false where there is none.
func (b *placed) room(more int64, arrived bool) bool {
	p := b.in
	p.mu.Lock()
	defer p.mu.Unlock()
	if !b.entered {
		b.entered = true
		p.bodies = append(p.bodies, b)
	}
	b.bytes += more
	b.arrived = b.arrived || arrived
	for !b.out {
		all, here, bytes, bytesHere := len(p.bodies), 0, int64(0), int64(0)
		for _, o := range p.bodies {
			bytes += o.bytes
			if o.path == b.path {
				here++
				bytesHere += o.bytes
			}
		}
		full := here > p.mostPerPath || bytesHere > routeBytesPerPath
		if !full && all <= p.most && bytes <= routeBytes {
			return true
		}
		// The oldest that is still arriving makes room.
		i := slices.IndexFunc(p.bodies, func(o *placed) bool { return !o.arrived && (!full || o.path == b.path) })
		if i < 0 {
			i = slices.Index(p.bodies, b)
		}
		o := p.bodies[i]
		p.bodies = slices.Delete(p.bodies, i, i+1)
		o.out = true
		_ = o.control.SetReadDeadline(time.Unix(1, 0)) // ends a Read under way
	}
	return false
}

func (b *placed) leave() {
	b.in.mu.Lock()
	defer b.in.mu.Unlock()
	b.in.bodies = slices.DeleteFunc(b.in.bodies, func(o *placed) bool { return o == b })
}
