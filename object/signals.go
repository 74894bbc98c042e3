package object

import (
	"context"
	"encoding/base64"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/identity"
)

// Sealer encrypts and authenticates, under keys that all processes on one database share. What it sealed opens only in the same
// context. MACs authenticates a message under each of the keys, the newest first. Package seal's Box is one. It must be safe for
// concurrent use.
type Sealer interface {
	Seal(plain, context []byte) []byte
	Open(sealed, context []byte) ([]byte, error)
	MACs(message []byte) [][]byte
}

const (
	// signalPause is how long a process is silent after it has sent signals: so it sends at most twenty a second of each
	// object, the newest of what is told.
	signalPause = 50 * time.Millisecond
	// maxSignalBytes is what it sends at once, so 640 KB a second. What is over is lost, of each tenant alike.
	maxSignalBytes = 32 << 10
	// maxSignals bounds the objects whose signals wait.
	maxSignals = 4096
	// signalsMark begins a message of signals, after its sender. A release that knows none finds no hint in it.
	signalsMark = "signals\n"
)

// signals brings signals to watchers at other processes. They go the way of the hints, in messages and on a connection of their
// own, so that no hint waits for them, and may be lost. Who may listen to a database, or to a subject of NATS, may not for that
// read each tenant's objects: so they are sealed, for one version of one object. Safe for concurrent use.
type signals struct {
	f      *fanout
	sealer Sealer        // nil: nothing is sent or understood
	wake   chan struct{} // capacity 1: something waits

	mu      sync.Mutex // guards pending; nothing slow happens under it
	pending map[key]signal
}

func newSignals(f *fanout, sealer Sealer) *signals {
	return &signals{f: f, sealer: sealer, wake: make(chan struct{}, 1), pending: map[key]signal{}}
}

// add takes a signal for other processes, if there are any. It does not wait.
func (s *signals) add(kind *kind, k key, v Version, m proto.Message) {
	if s.sealer == nil || s.f.carrier == nil || kind.signal == nil || !s.f.inCompany() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.pending[k]; !ok && len(s.pending) >= maxSignals {
		s.f.rt.metrics.signalsLost.Inc()
		return
	}
	s.pending[k] = signal{m, v}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// send sends what waits, and pauses, until the fan-out is closed. What waits then is lost.
func (s *signals) send() {
	pause := time.NewTimer(signalPause)
	defer pause.Stop()
	for {
		select {
		case <-s.wake:
		case <-s.f.stop:
			return
		}
		s.mu.Lock()
		pending := s.pending
		s.pending = map[key]signal{}
		s.mu.Unlock()
		messages, lines := encodeSignals(s.f.self, s.sealer, pending)
		ctx, cancel := context.WithTimeout(s.f.rt.life, sendTimeout)
		if s.f.carrier.Send(ctx, messages) != nil {
			lines = 0
		}
		cancel()
		s.f.rt.metrics.signalsSent.Add(float64(lines))
		s.f.rt.metrics.signalsLost.Add(float64(len(pending) - lines))
		pause.Reset(signalPause)
		select {
		case <-pause.C:
		case <-s.f.stop:
			return
		}
	}
}

// on takes what follows the mark in a message of another process. What is not sealed by one that shares our keys is left out.
func (s *signals) on(message string) {
	if s.sealer == nil {
		return
	}
	for line := range strings.SplitSeq(message, "\n") {
		parts := strings.Split(line, "\t")
		if len(parts) != signalParts {
			continue
		}
		k := key{identity.Tenant(parts[0]), parts[1], ID(parts[2])}
		kind := s.f.rt.hub.kindOfWatched(k)
		if kind == nil || kind.signal == nil {
			continue
		}
		version, err := strconv.ParseInt(parts[3], 10, 64)
		if err != nil {
			continue
		}
		sealed, err := base64.RawStdEncoding.DecodeString(parts[4])
		if err != nil {
			continue
		}
		plain, err := s.sealer.Open(sealed, signalContext(k, Version(version)))
		if err != nil {
			continue
		}
		m := kind.signal.ProtoReflect().New().Interface()
		if proto.Unmarshal(plain, m) != nil {
			continue
		}
		s.f.rt.metrics.signalsReceived.Inc()
		s.f.rt.hub.tell(k, signal{m, Version(version)})
	}
}

// signalParts are those of a signal's line: tenant, kind, id, version, and what is sealed.
const signalParts = 5

// encodeSignals writes messages, one signal a line, as far as the bound goes: one of each tenant in turn. It returns how many
// signals they hold.
func encodeSignals(from string, sealer Sealer, pending map[key]signal) (messages []string, held int) {
	byTenant := map[identity.Tenant][]key{}
	for k := range pending { // in no order, so each has its turn
		byTenant[k.tenant] = append(byTenant[k.tenant], k)
	}
	header := from + "\n" + strings.TrimSuffix(signalsMark, "\n")
	var b strings.Builder
	b.WriteString(header)
	left := maxSignalBytes
	for len(byTenant) > 0 {
		for tenant, keys := range byTenant {
			k := keys[0]
			if byTenant[tenant] = keys[1:]; len(keys) == 1 {
				delete(byTenant, tenant)
			}
			line, ok := encodeSignal(k, pending[k], sealer, min(left, MaxMessage-len(header)))
			if !ok {
				continue
			}
			if b.Len()+len(line) > MaxMessage {
				messages = append(messages, b.String())
				b.Reset()
				b.WriteString(header)
			}
			b.WriteString(line)
			left -= len(line)
			held++
		}
	}
	if b.Len() > len(header) {
		messages = append(messages, b.String())
	}
	return messages, held
}

// encodeSignal writes a line; ok is false where it would be longer than most.
func encodeSignal(k key, told signal, sealer Sealer, most int) (line string, ok bool) {
	if proto.Size(told.message) > most {
		return "", false
	}
	plain, err := proto.Marshal(told.message)
	if err != nil {
		return "", false
	}
	sealed := base64.RawStdEncoding.EncodeToString(sealer.Seal(plain, signalContext(k, told.version)))
	line = "\n" + strings.Join([]string{string(k.tenant), k.kind, string(k.id), strconv.FormatInt(int64(told.version), 10), sealed}, "\t")
	return line, len(line) <= most
}

// signalContext is what a signal is sealed for.
func signalContext(k key, v Version) []byte {
	return []byte(strings.Join([]string{"signal", string(k.tenant), k.kind, string(k.id), strconv.FormatInt(int64(v), 10)}, "\x00"))
}
