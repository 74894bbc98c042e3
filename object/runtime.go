package object

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"holdfast/db"
	"holdfast/identity"
	"holdfast/object/internal/bounds"
	"holdfast/object/internal/hints"
	"holdfast/object/internal/quota"
	"holdfast/object/internal/rowjson"
)

// Config sets a runtime's limits. The zero Config has the defaults.
type Config struct {
	Log    *slog.Logger
	Limits Limits
	Quotas Quotas
	// Metrics takes the runtime's metrics; nil: they go nowhere.
	Metrics prometheus.Registerer
	// Tracer makes a span of each transaction that serves a traced call. nil: none.
	Tracer trace.Tracer
	// CacheBytes bounds the cache of decoded states, by estimate. Default 20 MiB.
	CacheBytes int
	// CommitTimeout bounds one batch's transaction. Default 15 s.
	CommitTimeout time.Duration
	// Timers lets this process run due timers, of all tenants. One that does not still sets and clears them.
	Timers bool
	// TimerPoll is how often it looks for timers that other processes have set. Default 500 ms.
	TimerPoll time.Duration
	// PollInterval is how often watchers look for other processes' changes, give or take a tenth. Default 1 s.
	PollInterval time.Duration
	// Carrier brings hints of changes to and from other processes. nil: there are none, or watchers wait for the next poll.
	Carrier Carrier
	// Sealer keeps signals from those who listen to the carrier and are no process of ours, and ids that MakeID makes from being
	// guessed. nil: signals stay in this process, and so does the knowledge of which request made which id.
	Sealer Sealer
	// HintedPollInterval is PollInterval while hints arrive: it finds what they missed. Default 10 s.
	HintedPollInterval time.Duration
	// GreetInterval is how often processes tell each other that they are there. Default 5 s.
	GreetInterval time.Duration
	// Heartbeat is how long a watch stays silent at most. Default 15 s.
	Heartbeat time.Duration
	// WatchAge is how long a watch lasts at most, less up to a tenth. Default 1 h.
	WatchAge time.Duration
}

// Carrier brings short messages to every process on the same database, the sender's own among them. It may lose messages;
// it never alters one. Postgres (db.Notify) and NATS (package natshints) are two. It must be safe for concurrent use.
type Carrier = hints.Carrier

// MaxMessage is how long a message to a Carrier is at most: Postgres takes less than 8,000 bytes in a notification.
const MaxMessage = hints.MaxMessage

// Sealer encrypts and authenticates under keys that all processes on one database share; see seal.Box.
type Sealer = hints.Sealer

// Limits bound what one process takes on. Each is answered with an error that names it.
type Limits struct {
	StateBytes int // of one state as JSON; default 256 KiB
	EntryBytes int // of one entry as JSON; default 1 MiB
	// How many changes, and apart from them reads, may wait.
	PerObject int // default 2,048
	PerTenant int // default 8,192
	PerServer int // default 32,768
	// PerUser leaves room for the tenant's other users, in the mailbox of an object that they share as well; default 1,024.
	PerUser int
	Watches int // default 10,000
	// WatchesPerTenant leaves room for other tenants. Default: four fifths of Watches.
	WatchesPerTenant int
	// WatchesPerUser leaves room for the tenant's other users: some sixty tabs of four watches, or a bot that follows as many
	// objects. Default 256.
	WatchesPerUser int
	// History is how many calls may go back in the history of objects at once; a tenant may make half as many, and a user one.
	// Each takes a connection and a share of the database's time. Default 4.
	History int
	// Answers is how many calls may hold an answer of more than 128 KiB at once; a tenant half as many, and a user an eighth.
	// The others wait. Each costs some times AnswerBytes until it is sent. Default 24.
	Answers int
	// BatchChanges and BatchBytes bound one transaction, in changes and in what they store as JSON: a tenant with more
	// takes turns with the others. A change that is larger by itself goes alone. Defaults 1,024 and 8 MiB.
	BatchChanges, BatchBytes int
}

// Runtime runs objects: it serializes their changes, commits them in groups, caches and publishes what comes of them.
// It is safe for concurrent use.
type Runtime struct {
	db            *db.DB
	log           *slog.Logger
	limits        Limits
	commitTimeout time.Duration
	encoder       rowjson.Encoder
	macs          func(message []byte) [][]byte // Sealer.MACs
	cache         *cache
	hub           *hub
	hints         *hints.Hints
	// Changes and views that users wait for, and calls that go back in history.
	changing, viewing, history *bounds.Gate

	large   *bounds.Large // reads of large answers
	metrics *metrics
	tracer  trace.Tracer
	usage   *quota.Usage
	timers  *scheduler
	life    context.Context //nolint:containedctx // the runtime's own: it ends when Close gives up waiting
	end     context.CancelFunc
	workers sync.WaitGroup

	mu      sync.Mutex // guards what follows; nothing slow happens under it
	closed  bool
	lanes   map[identity.Tenant]*lane
	boxes   map[key]*mailbox
	kinds   map[string]*kind
	turn    []*lane // lanes with ready mailboxes and room for a batch, in the order that they are served
	waiting int     // changes in all mailboxes
	running int     // batches in flight
	reads   map[identity.Tenant]*readLane
	reading int // views that wait or run

	catchUpLanes map[identity.Tenant]*catchUpLane
}

const (
	// maxBatch is how many objects, or views, share one transaction.
	maxBatch = 256
	// lanesInFlight is how many batches of one tenant may be in flight: while one commits the next is computed. Four
	// were slower than two.
	lanesInFlight = 2
)

// NewRuntime starts a runtime; Close ends it.
func NewRuntime(d *db.DB, c Config) *Runtime {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	defD := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.Limits.StateBytes, 256<<10)
	def(&c.Limits.EntryBytes, 1<<20)
	def(&c.Limits.PerObject, 2048)
	def(&c.Limits.PerTenant, 8192)
	def(&c.Limits.PerServer, 32768)
	def(&c.Limits.Watches, 10_000)
	def(&c.Limits.PerUser, 1024)
	def(&c.Limits.WatchesPerTenant, c.Limits.Watches-c.Limits.Watches/5)
	def(&c.Limits.WatchesPerUser, 256)
	def(&c.Limits.History, 4)
	def(&c.Limits.Answers, 24)
	def(&c.Limits.BatchChanges, 1024)
	def(&c.Limits.BatchBytes, 8<<20)
	def(&c.CacheBytes, 20<<20)
	defD(&c.CommitTimeout, 15*time.Second)
	defD(&c.TimerPoll, 500*time.Millisecond)
	defD(&c.PollInterval, time.Second)
	defD(&c.HintedPollInterval, 10*time.Second)
	defD(&c.GreetInterval, 5*time.Second)
	defD(&c.Heartbeat, 15*time.Second)
	defD(&c.WatchAge, time.Hour)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	macs := ownMACs()
	if c.Sealer != nil {
		macs = c.Sealer.MACs
	}
	rt := &Runtime{
		macs: macs,
		db:   d, log: c.Log, limits: c.Limits, commitTimeout: c.CommitTimeout, cache: newCache(c.CacheBytes),
		lanes: map[identity.Tenant]*lane{}, boxes: map[key]*mailbox{}, kinds: map[string]*kind{}, reads: map[identity.Tenant]*readLane{},
		catchUpLanes: map[identity.Tenant]*catchUpLane{},
		changing:     bounds.NewGate(bounds.Most{User: c.Limits.PerUser}), viewing: bounds.NewGate(bounds.Most{User: c.Limits.PerUser}),
		history: bounds.NewGate(bounds.Most{User: 1, Tenant: max(1, c.Limits.History/2), Server: c.Limits.History}),
	}
	rt.life, rt.end = context.WithCancel(context.Background())
	rt.metrics, rt.tracer = newMetrics(rt, c.Metrics), c.Tracer
	rt.large = bounds.NewLarge(bounds.Most{User: max(1, c.Limits.Answers/8), Tenant: max(1, c.Limits.Answers/2), Server: c.Limits.Answers},
		func(what string) { rt.metrics.refused.WithLabelValues(what).Inc() })
	rt.usage = quota.NewUsage(rt.life, d, c.Log, c.Quotas)
	if c.Metrics != nil {
		c.Metrics.MustRegister(quota.NewFullTenants(rt.usage))
	}
	rt.hub = newHub(rt, c)
	rt.hints = hints.New(rt.life, hints.Config{
		Carrier: c.Carrier, Sealer: c.Sealer, Greet: c.GreetInterval, Log: c.Log, Now: d.Now, Metrics: c.Metrics,
	}, rt.hub)
	rt.timers = newScheduler(rt, c)
	return rt
}

// Close refuses new work, ends the watches, and waits for the changes that were accepted until ctx is over.
func (rt *Runtime) Close(ctx context.Context) error {
	rt.mu.Lock()
	rt.closed = true
	rt.mu.Unlock()
	rt.hub.close()
	rt.timers.close()
	drained := make(chan struct{})
	go func() {
		rt.workers.Wait()
		close(drained)
	}()
	defer rt.end()
	defer rt.hints.Close()
	defer rt.usage.Close(ctx)
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
		rt.end()
		<-drained // every statement of theirs is bounded by life
		return ctx.Err()
	}
}

// lane is one tenant's queue of ready mailboxes.
type lane struct {
	tenant   identity.Tenant
	ready    []*mailbox
	waiting  int
	inFlight int
	queued   bool // in Runtime.turn
	// stuck are mailboxes of objects whose lock could not be taken in time. They go one at a time, beside the batches in flight, so that
	// the lane's other objects wait for none of them.
	stuck    []*mailbox
	stuckOne bool // is in flight
	// groups are complete: each change of theirs is the next of its mailbox. grouped: the last batch was of groups.
	groups  []*group
	grouped bool
}

// mailbox holds the changes that wait for one object. While busy, a batch has the object.
type mailbox struct {
	key   key
	kind  *kind
	lane  *lane
	queue []*change
	ready bool // in a list of its lane
	busy  bool // also while the next change waits for the others of its group
}

// submit puts a change in its object's mailbox and waits for what comes of it.
func (rt *Runtime) submit(ctx context.Context, k *kind, id ID, c *change) error {
	if err := id.Check(); err != nil {
		return err
	}
	key := k.at(c.caller.Tenant, id)
	if c.caller.User != "" {
		if full := rt.changing.Enter(c.caller); full != "" {
			return rt.overloaded(full)
		}
		defer rt.changing.Leave(c.caller)
	}
	if err := rt.enqueue(key, k, c); err != nil { //nolint:contextcheck // a batch serves many changes
		return err
	}
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		rt.withdraw(key, c)
		return ctx.Err()
	}
}

// withdraw makes room for others where nobody waits for a change any more, unless it is on its way already.
func (rt *Runtime) withdraw(key key, c *change) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	b := rt.boxes[key]
	if b == nil {
		return
	}
	if i := slices.Index(b.queue, c); i >= 0 {
		// An empty mailbox may stay where it is: the next batch passes over it.
		b.queue = slices.Delete(b.queue, i, i+1)
		b.lane.waiting--
		rt.waiting--
	}
}

func (rt *Runtime) enqueue(key key, k *kind, c *change) error {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	if err := rt.full(key, 1); err != nil {
		return err
	}
	rt.add(key, k, c)
	rt.start()
	return nil
}

// full returns why the object's mailbox takes no more, where so many changes come in at once. The caller holds mu, as that of add and start.
func (rt *Runtime) full(key key, changes int) error {
	l, b := rt.lanes[key.Tenant], rt.boxes[key]
	switch {
	case rt.closed:
		return ErrClosed
	case b != nil && len(b.queue) >= rt.limits.PerObject:
		return rt.overloaded("object")
	case l != nil && l.waiting+changes > rt.limits.PerTenant:
		return rt.overloaded("tenant")
	case rt.waiting+changes > rt.limits.PerServer:
		return rt.overloaded("server")
	}
	return nil
}

// add puts a change in its object's mailbox.
func (rt *Runtime) add(key key, k *kind, c *change) *mailbox {
	l, b := rt.lanes[key.Tenant], rt.boxes[key]
	if l == nil {
		l = &lane{tenant: key.Tenant}
		rt.lanes[key.Tenant] = l
	}
	if b == nil {
		b = &mailbox{key: key, kind: k, lane: l}
		rt.boxes[key] = b
	}
	b.queue = append(b.queue, c)
	c.queued = rt.db.Now()
	l.waiting++
	rt.waiting++
	if !b.ready && !b.busy {
		b.ready = true
		l.ready = append(l.ready, b)
		rt.offer(l)
	}
	return b
}

// start starts a worker where there is work for one.
func (rt *Runtime) start() {
	if rt.running < rt.maxRunning() && len(rt.turn) > 0 {
		rt.running++
		rt.workers.Add(1)
		go rt.write()
	}
}

// overloaded is the refusal of what is over a bound. What it names is full.
func (rt *Runtime) overloaded(what string) error {
	rt.metrics.refused.WithLabelValues(what).Inc()
	return &OverloadedError{What: what, RetryAfter: retryAfter}
}

// overloadedOf is overloaded for what is counted apart, and names whose bound it is over.
func (rt *Runtime) overloadedOf(what, whose string) error {
	rt.metrics.refused.WithLabelValues(what).Inc()
	return &OverloadedError{What: what, Of: whose, RetryAfter: time.Second}
}

const retryAfter = 100 * time.Millisecond

// maxRunning leaves connections for reads.
func (rt *Runtime) maxRunning() int { return max(1, rt.db.MaxConns()*3/4) }

// offer queues the lane for a worker, if it has something to do and room to do it.
func (rt *Runtime) offer(l *lane) {
	if !l.queued && (len(l.ready)+len(l.groups) > 0 && l.inFlight < lanesInFlight || len(l.stuck) > 0 && !l.stuckOne) {
		l.queued = true
		rt.turn = append(rt.turn, l)
	}
}

// write runs batches until no lane has one.
func (rt *Runtime) write() {
	defer rt.workers.Done()
	for {
		rt.mu.Lock()
		batch := rt.take()
		if batch == nil {
			rt.running--
			rt.mu.Unlock()
			return
		}
		rt.mu.Unlock()
		rt.commit(batch)
		rt.release(batch)
	}
}

// take claims the next lane's ready objects with what waits for them, as far as one batch goes. The caller holds mu.
func (rt *Runtime) take() []*work {
	if len(rt.turn) == 0 {
		return nil
	}
	l := rt.turn[0]
	rt.turn = rt.turn[1:]
	l.queued = false
	left := rt.limits.BatchChanges
	var batch []*work
	n, from, most, stuck := 0, &l.ready, maxBatch, len(l.stuck) > 0 && !l.stuckOne
	if stuck {
		from, most = &l.stuck, 1
	} else if batch = l.takeGroups(rt.limits.BatchBytes); batch != nil {
		left, most = left-len(batch), 0
	}
	for ; n < len(*from) && len(batch) < most && left > 0; n++ {
		b := (*from)[n]
		b.ready = false
		k := ahead(b.queue, left)
		switch {
		case len(b.queue) == 0: // all were withdrawn
			delete(rt.boxes, b.key)
			continue
		case k == 0:
			l.arrive(b)
			continue
		}
		left -= k
		batch = append(batch, &work{box: b, kind: b.kind, changes: b.queue[:k:k], alone: stuck})
		if b.queue = b.queue[k:]; len(b.queue) == 0 {
			b.queue = nil
		}
		b.busy = true
	}
	*from = append((*from)[:0], (*from)[n:]...)
	taken := rt.limits.BatchChanges - left
	l.waiting -= taken
	rt.waiting -= taken
	if len(batch) == 0 {
		if rt.offer(l); l.idle() {
			delete(rt.lanes, l.tenant)
		}
		return rt.take()
	}
	if l.stuckOne = l.stuckOne || stuck; !stuck {
		l.inFlight++
	}
	rt.offer(l)
	rt.metrics.batch(rt.db.Now(), batch, taken)
	return batch
}

func (l *lane) idle() bool {
	return l.inFlight == 0 && !l.stuckOne && l.waiting == 0 && len(l.ready) == 0 && len(l.stuck) == 0
}

// release gives the batch's objects back.
func (rt *Runtime) release(batch []*work) {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	l := batch[0].box.lane
	if batch[0].alone {
		l.stuckOne = false
	} else {
		l.inFlight--
	}
	for _, w := range batch {
		b := w.box
		b.busy = false
		if len(w.later) > 0 {
			b.queue = slices.Concat(w.later, b.queue)
			l.waiting += len(w.later)
			rt.waiting += len(w.later)
		}
		switch {
		case len(b.queue) > 0 && w.contended:
			b.ready = true
			l.stuck = append(l.stuck, b)
		case len(b.queue) > 0:
			b.ready = true
			l.ready = append(l.ready, b)
		default:
			delete(rt.boxes, b.key)
		}
	}
	rt.offer(l)
	if l.idle() {
		delete(rt.lanes, l.tenant)
	}
}
