package object

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/identity"
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

// fanout tells other processes which objects changed here, and the hub which changed there. Hints only make watchers
// faster: each of them may be lost, and is then made up for by polling.
//
// Each process greets now and then. Its own greeting comes back where the carrier works, so a connection that is dead, or
// that a pooler has swallowed, is found out. Another's says that somebody listens: as long as there is nobody, nothing is
// sent. Safe for concurrent use.
type fanout struct {
	rt      *Runtime
	carrier Carrier
	signals *signalRelay
	self    string
	greet   time.Duration
	signal  chan struct{} // capacity 1: something waits to be sent
	stop    chan struct{} // closed when nothing comes any more
	once    sync.Once     // closes it
	done    sync.WaitGroup

	mu       sync.Mutex // guards what follows; nothing slow happens under it
	pending  map[key]Version
	greeting bool
	heard    time.Time            // when our own greeting came back last; zero: we are deaf
	peers    map[string]time.Time // when each other process was heard last
}

func newFanout(rt *Runtime, c Config) *fanout {
	f := &fanout{
		rt: rt, carrier: c.Carrier, self: rand.Text(), greet: c.GreetInterval,
		signal: make(chan struct{}, 1), stop: make(chan struct{}), pending: map[key]Version{}, peers: map[string]time.Time{},
	}
	f.signals = newSignalRelay(f, c.Sealer)
	if f.carrier == nil {
		return f
	}
	if f.signals.sealer != nil {
		f.done.Go(f.signals.send)
	}
	f.done.Go(f.send)
	f.done.Go(f.receive)
	return f
}

// close sends what waits and ends.
func (f *fanout) close() {
	f.once.Do(func() { close(f.stop) })
	f.done.Wait()
}

// changed notes that an object has a new version here.
func (f *fanout) changed(k key, v Version) {
	if f.carrier == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.peers) == 0 {
		return
	}
	if _, ok := f.pending[k]; !ok && len(f.pending) >= maxHints {
		f.rt.metrics.hintsLost.Inc()
		return
	}
	f.pending[k] = v
	f.wake()
}

func (f *fanout) wake() {
	select {
	case f.signal <- struct{}{}:
	default:
	}
}

// inCompany reports whether there are other processes.
func (f *fanout) inCompany() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.peers) > 0
}

// hearing reports whether hints arrive here.
func (f *fanout) hearing() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.heard.IsZero()
}

// send sends what gathers, and greets.
func (f *fanout) send() {
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
			greet.Reset(jitter(f.greet))
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
		ctx, cancel := context.WithTimeout(context.WithoutCancel(f.rt.life), sendTimeout)
		if err := f.carrier.Send(ctx, messages); err != nil {
			f.rt.metrics.hintsLost.Add(float64(hints))
		} else {
			f.rt.metrics.hintsSent.Add(float64(hints))
		}
		cancel()
	}
}

// take empties what waits into messages.
func (f *fanout) take() (messages []string, hints int) {
	f.mu.Lock()
	var pending map[key]Version
	greeting := f.greeting
	if len(f.pending) > 0 {
		pending, f.pending = f.pending, map[key]Version{}
	}
	f.greeting = false
	maps.DeleteFunc(f.peers, func(_ string, heard time.Time) bool { return f.gone(heard) })
	f.rt.metrics.peers.Set(float64(len(f.peers)))
	f.mu.Unlock()
	if len(pending) == 0 && !greeting {
		return nil, 0
	}
	return encodeHints(f.self, pending), len(pending)
}

// gone reports whether a peer, heard last at a time, has been silent for too long while we heard ourselves. While we are deaf no peer is
// gone, and all are told what we write. The caller holds mu.
func (f *fanout) gone(heard time.Time) bool {
	return f.heard.Sub(heard) > missedGreetings*f.greet
}

// receive listens until close, and connects again where the connection is lost or deaf.
func (f *fanout) receive() {
	const least, most = 100 * time.Millisecond, 5 * time.Second
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.rt.life))
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
		f.rt.log.WarnContext(ctx, "no hints of other processes' changes; watchers poll until there are", "error", err)
		wait := time.NewTimer(jitter(again))
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
func (f *fanout) listen(ctx context.Context) (bool, error) {
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
			silence := time.NewTimer(missedGreetings * f.greet)
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
	err := f.carrier.Receive(ctx, f.hello, func(message string) {
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
func (f *fanout) hello() {
	f.mu.Lock()
	f.greeting = true
	f.mu.Unlock()
	f.wake()
}

// on takes a message, and reports whether it was our own.
func (f *fanout) on(message string) (own bool) {
	from, hints, _ := strings.Cut(message, "\n")
	now := f.rt.db.Now()
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
			f.rt.metrics.hearing.Set(1)
			f.rt.hub.lookNow() // what was told while we were deaf
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
		f.rt.cache.outdated(k, v)
		f.rt.hub.hinted(k, v)
	}
	f.rt.metrics.hintsReceived.Add(float64(n))
	return false
}

// maxPeers bounds what strangers on the carrier can make us remember.
const maxPeers = 1000

func (f *fanout) deafen() {
	f.mu.Lock()
	f.heard = time.Time{}
	f.mu.Unlock()
	f.rt.metrics.hearing.Set(0)
	f.rt.hub.lookNow() // from now on it has to look more often
}

// encodeHints writes messages: the sender, then, one a line, tenant, kind, id and version, separated by tabs, which none of
// them can hold. Tenant and kind are left out where they are those of the line before. Without hints it is a greeting.
func encodeHints(from string, hints map[key]Version) (messages []string) {
	keys := slices.SortedFunc(maps.Keys(hints), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.tenant, b.tenant), cmp.Compare(a.kind, b.kind))
	})
	b := []byte(from)
	var last key
	for _, k := range keys {
		version := strconv.FormatInt(int64(hints[k]), 10)
		if len(b)+len(k.tenant)+len(k.kind)+len(k.id)+len(version)+4 > MaxMessage {
			messages = append(messages, string(b))
			b, last = append(b[:0], from...), key{}
		}
		b = append(b, '\n')
		if k.tenant != last.tenant || k.kind != last.kind {
			b = append(append(append(append(b, k.tenant...), '\t'), k.kind...), '\t')
		}
		b = append(append(append(b, k.id...), '\t'), version...)
		last = k
	}
	return append(messages, string(b))
}

// decodeHints reads what follows the sender in a message. What it does not understand it leaves out: it may be a newer
// release's.
func decodeHints(lines string) iter.Seq2[key, Version] {
	return func(yield func(key, Version) bool) {
		var k key
		for line := range strings.SplitSeq(lines, "\n") {
			parts := strings.Split(line, "\t")
			switch len(parts) {
			case 4:
				k.tenant, k.kind = identity.Tenant(parts[0]), parts[1]
			case 2:
			default:
				continue
			}
			k.id = ID(parts[len(parts)-2])
			v, err := strconv.ParseInt(parts[len(parts)-1], 10, 64)
			if err == nil && !yield(k, Version(v)) {
				return
			}
		}
	}
}
