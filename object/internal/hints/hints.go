// Package hints tells the processes on one database of each other's changes and signals.
package hints

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"holdfast/identity"
	"holdfast/object/internal/addr"
)

// Carrier brings short messages to every process on the same database, the sender's own among them. It may lose messages;
// it never alters one. Postgres (db.Notify) and NATS (package natshints) are two. It must be safe for concurrent use.
type Carrier interface {
	// Receive connects, calls connected once messages arrive, and on for each, until the connection is lost or ctx is over.
	Receive(ctx context.Context, connected func(), on func(message string)) error
	// Send hands messages over, each of MaxMessage bytes at most. It returns an error where they may be lost.
	Send(ctx context.Context, messages []string) error
}

// MaxMessage is how long a message to a Carrier is at most: Postgres takes less than 8,000 bytes in a notification.
const MaxMessage = 7900

const (
	// hintDelay is how long hints are gathered: of an object that changes often only its newest version is told.
	hintDelay = 5 * time.Millisecond
	// maxHints bounds the hints that wait to be sent. What is over is lost, and found by polling.
	maxHints = 1 << 16
	// sendTimeout bounds one sending, and so what Close waits for.
	sendTimeout = time.Second
	// Greetings missed before a silent process is no longer thought to be there, and before a silent carrier is
	// thought to be deaf.
	missedGreetings = 4
)

// Config says how processes hear each other.
type Config struct {
	// Carrier brings the messages; nil: there are none.
	Carrier Carrier
	// Sealer seals signals; nil: they stay in this process.
	Sealer Sealer
	// Greet is how often processes tell each other that they are there.
	Greet time.Duration
	Log   *slog.Logger
	// Now is the time.
	Now func() time.Time
	// Metrics takes the metrics; nil: they go nowhere.
	Metrics prometheus.Registerer
}

// Listener is told of what other processes do. It must be safe for concurrent use.
type Listener interface {
	// Changed: an object has this version, or a later one.
	Changed(k addr.Key, v addr.Version)
	// SignalOf returns the prototype of an object's signals, or nil if nobody here watches it or its kind has none.
	SignalOf(k addr.Key) proto.Message
	// Told is a signal about a version of an object.
	Told(k addr.Key, v addr.Version, m proto.Message)
	// Look: hints come from now on, or none come any more. Either way some may have been missed.
	Look()
}

// Hints tells other processes which objects changed here, and a Listener which changed there. Hints only make watchers
// faster: each of them may be lost, and is then made up for by polling.
//
// Each process greets now and then. Its own greeting comes back where the carrier works, so a connection that is dead, or
// that a pooler has swallowed, is found out. Another's says that somebody listens: as long as there is nobody, nothing is
// sent. Safe for concurrent use.
type Hints struct {
	Config

	life     context.Context //nolint:containedctx // the process's own
	listener Listener
	metrics  *metrics
	signals  *signalRelay
	self     string
	signal   chan struct{} // capacity 1: something waits to be sent
	stop     chan struct{} // closed when nothing comes any more
	once     sync.Once     // closes it
	done     sync.WaitGroup

	mu       sync.Mutex // guards what follows; nothing slow happens under it
	pending  map[addr.Key]addr.Version
	greeting bool
	heard    time.Time            // when our own greeting came back last; zero: we are deaf
	peers    map[string]time.Time // when each other process was heard last
}

// New starts to listen and to tell, until Close. life bounds what is sent.
func New(life context.Context, c Config, l Listener) *Hints {
	f := &Hints{
		Config: c, life: life, listener: l, metrics: newMetrics(c.Metrics), self: crand.Text(),
		signal: make(chan struct{}, 1), stop: make(chan struct{}), pending: map[addr.Key]addr.Version{}, peers: map[string]time.Time{},
	}
	f.signals = newSignalRelay(f)
	if f.Carrier == nil {
		return f
	}
	if f.Sealer != nil {
		f.done.Go(f.signals.send)
	}
	f.done.Go(f.send)
	f.done.Go(f.receive)
	return f
}

// Close sends what waits and ends.
func (f *Hints) Close() {
	f.once.Do(func() { close(f.stop) })
	f.done.Wait()
}

// Changed notes that an object has a new version here. It never blocks.
func (f *Hints) Changed(k addr.Key, v addr.Version) {
	if f.Carrier == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.peers) == 0 {
		return
	}
	if _, ok := f.pending[k]; !ok && len(f.pending) >= maxHints {
		f.metrics.hintsLost.Inc()
		return
	}
	f.pending[k] = v
	f.wake()
}

func (f *Hints) wake() {
	select {
	case f.signal <- struct{}{}:
	default:
	}
}

// Peers is how many other processes are thought to be there.
func (f *Hints) Peers() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.peers)
}

// Hearing reports whether hints arrive here.
func (f *Hints) Hearing() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.heard.IsZero()
}

// send sends what gathers, and greets.
func (f *Hints) send() {
	greet := time.NewTimer(0)
	defer greet.Stop()
	for last := false; !last; {
		select {
		case <-f.stop:
			last = true
		case <-greet.C:
			f.mu.Lock()
			f.greeting = true
			f.mu.Unlock()
			greet.Reset(Jitter(f.Greet))
		case <-f.signal:
			gather := time.NewTimer(hintDelay)
			select {
			case <-gather.C:
			case <-f.stop:
				gather.Stop()
				last = true
			}
		}
		messages, hints := f.take()
		if len(messages) == 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(f.life), sendTimeout)
		if err := f.Carrier.Send(ctx, messages); err != nil {
			f.metrics.hintsLost.Add(float64(hints))
		} else {
			f.metrics.hintsSent.Add(float64(hints))
		}
		cancel()
	}
}

// take empties what waits into messages.
func (f *Hints) take() (messages []string, hints int) {
	f.mu.Lock()
	var pending map[addr.Key]addr.Version
	greeting := f.greeting
	if len(f.pending) > 0 {
		pending, f.pending = f.pending, map[addr.Key]addr.Version{}
	}
	f.greeting = false
	maps.DeleteFunc(f.peers, func(_ string, heard time.Time) bool { return f.gone(heard) })
	f.metrics.peers.Set(float64(len(f.peers)))
	f.mu.Unlock()
	if len(pending) == 0 && !greeting {
		return nil, 0
	}
	return encodeHints(f.self, pending), len(pending)
}

// gone reports whether a peer, heard last at a time, has been silent for too long while we heard ourselves. While we are deaf no peer is
// gone, and all are told what we write. The caller holds mu.
func (f *Hints) gone(heard time.Time) bool {
	return f.heard.Sub(heard) > missedGreetings*f.Greet
}

// receive listens until close, and connects again where the connection is lost or deaf.
func (f *Hints) receive() {
	const least, most = 100 * time.Millisecond, 5 * time.Second
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.life))
	defer cancel()
	f.done.Go(func() {
		<-f.stop
		cancel()
	})
	again := least
	for {
		worked, err := f.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		if worked {
			again = least
		}
		f.Log.WarnContext(ctx, "no hints of other processes' changes; watchers poll until there are", "error", err)
		wait := time.NewTimer(Jitter(again))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		again = min(2*again, most)
	}
}

// errDeaf: we greeted and did not hear it.
var errDeaf = errors.New("object: what is sent does not arrive; LISTEN needs a connection to Postgres itself, not through a pooler")

// listen receives until the connection is lost, or found to be deaf. It reports whether anything arrived.
func (f *Hints) listen(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer f.deafen()
	heard := make(chan struct{}, 1)
	var worked atomic.Bool // on may be called by any goroutine
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel(nil)
	watching.Go(func() {
		for {
			silence := time.NewTimer(missedGreetings * f.Greet)
			select {
			case <-heard:
			case <-silence.C:
				cancel(errDeaf)
			case <-ctx.Done():
			}
			silence.Stop()
			if ctx.Err() != nil {
				return
			}
		}
	})
	err := f.Carrier.Receive(ctx, f.hello, func(message string) {
		if f.on(message) {
			worked.Store(true)
			select {
			case heard <- struct{}{}:
			default:
			}
		}
	})
	return worked.Load(), errors.Join(err, context.Cause(ctx))
}

// hello greets as soon as can be.
func (f *Hints) hello() {
	f.mu.Lock()
	f.greeting = true
	f.mu.Unlock()
	f.wake()
}

// on takes a message, and reports whether it was our own.
func (f *Hints) on(message string) (own bool) {
	from, hints, _ := strings.Cut(message, "\n")
	now := f.Now()
	f.mu.Lock()
	if own = from == f.self; own {
		deaf := f.heard.IsZero()
		f.heard = now
		if deaf {
			for peer := range f.peers {
				f.peers[peer] = now // their silence begins with our hearing
			}
		}
		f.mu.Unlock()
		if deaf {
			f.metrics.hearing.Set(1)
			f.listener.Look() // what was told while we were deaf
		}
		return true
	}
	_, known := f.peers[from]
	if known || len(f.peers) < maxPeers {
		f.peers[from] = now
	}
	f.mu.Unlock()
	if !known {
		f.hello() // it does not know yet that we listen
	}
	if lines, ok := strings.CutPrefix(hints, signalsMark); ok {
		f.signals.on(lines)
		return false
	}
	n := 0
	for k, v := range decodeHints(hints) {
		n++
		f.listener.Changed(k, v)
	}
	f.metrics.hintsReceived.Add(float64(n))
	return false
}

// maxPeers bounds what strangers on the carrier can make us remember.
const maxPeers = 1000

func (f *Hints) deafen() {
	f.mu.Lock()
	f.heard = time.Time{}
	f.mu.Unlock()
	f.metrics.hearing.Set(0)
	f.listener.Look() // from now on it has to look more often
}

// encodeHints writes messages: the sender, then, one a line, tenant, kind, id and version, separated by tabs, which none of
// them can hold. Tenant and kind are left out where they are those of the line before. Without hints it is a greeting.
func encodeHints(from string, hints map[addr.Key]addr.Version) (messages []string) {
	keys := slices.SortedFunc(maps.Keys(hints), func(a, b addr.Key) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Kind, b.Kind))
	})
	b := []byte(from)
	var last addr.Key
	for _, k := range keys {
		version := strconv.FormatInt(int64(hints[k]), 10)
		if len(b)+len(k.Tenant)+len(k.Kind)+len(k.ID)+len(version)+4 > MaxMessage {
			messages = append(messages, string(b))
			b, last = append(b[:0], from...), addr.Key{}
		}
		b = append(b, '\n')
		if k.Tenant != last.Tenant || k.Kind != last.Kind {
			b = append(append(append(append(b, k.Tenant...), '\t'), k.Kind...), '\t')
		}
		b = append(append(append(b, k.ID...), '\t'), version...)
		last = k
	}
	return append(messages, string(b))
}

// decodeHints reads what follows the sender in a message. What it does not understand it leaves out: it may be a newer
// release's.
func decodeHints(lines string) iter.Seq2[addr.Key, addr.Version] {
	return func(yield func(addr.Key, addr.Version) bool) {
		var k addr.Key
		for line := range strings.SplitSeq(lines, "\n") {
			parts := strings.Split(line, "\t")
			switch len(parts) {
			case 4:
				k.Tenant, k.Kind = identity.Tenant(parts[0]), parts[1]
			case 2:
			default:
				continue
			}
			k.ID = addr.ID(parts[len(parts)-2])
			v, err := strconv.ParseInt(parts[len(parts)-1], 10, 64)
			if err == nil && !yield(k, addr.Version(v)) {
				return
			}
		}
	}
}

// Jitter is d give or take a tenth.
func Jitter(d time.Duration) time.Duration { return d*9/10 + rand.N(d/5+1) } //nolint:gosec // no secret
