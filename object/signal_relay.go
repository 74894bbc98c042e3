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

// Sealer encrypts and authenticates under keys that all processes on one database share. Open needs the context that Seal was given.
// MACs authenticates a message under each of the keys, the newest first. seal.Box is a Sealer. It must be safe for concurrent use.
type Sealer interface {
	Seal(plain, context []byte) []byte
	Open(sealed, context []byte) ([]byte, error)
	MACs(message []byte) [][]byte
}

const (
	// signalPause is the pause after each send: a process sends at most twenty signals a second of each object, the newest ones.
	signalPause = 50 * time.Millisecond
	// maxSignalBytes is the most that one send takes, so 640 KB a second. The rest is lost, shared equally among tenants.
	maxSignalBytes = 32 << 10
	// maxSignals bounds the objects with a waiting signal.
	maxSignals = 4096
	// signalsMark follows the sender in a message of signals. A release without signals finds no hint in such a message.
	signalsMark = "signals\n"
)

// signalRelay sends signals to the watchers of other processes over the fan-out's carrier, in messages of their own, so that no hint
// waits for them. They may be lost. Listening to a database or to a NATS subject must not reveal a tenant's objects, so each signal is
// sealed for one version of one object. Safe for concurrent use.
type signalRelay struct {
	f      *fanout
	sealer Sealer        // nil: nothing is sent or understood
	wake   chan struct{} // capacity 1: something waits

	mu      sync.Mutex // guards pending; nothing slow happens under it
	pending map[key]signal
}

func newSignalRelay(f *fanout, sealer Sealer) *signalRelay {
	return &signalRelay{f: f, sealer: sealer, wake: make(chan struct{}, 1), pending: map[key]signal{}}
}

// add queues a signal if there are other processes. It never blocks.
func (s *signalRelay) add(kind *kind, k key, v Version, m proto.Message) {
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

// send sends queued signals, with pauses, until the fan-out is closed. Signals that are queued then are lost.
func (s *signalRelay) send() {
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

// on receives the signals in a message from another process. It skips those that were sealed under other keys.
func (s *signalRelay) on(message string) {
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

// signalParts is the number of fields in a signal's line: tenant, kind, id, version and sealed message.
const signalParts = 5

// encodeSignals writes up to maxSignalBytes of messages, one signal a line, one tenant after the other in turn. It returns the
// messages and the number of signals in them.
func encodeSignals(from string, sealer Sealer, pending map[key]signal) (messages []string, held int) {
	byTenant := map[identity.Tenant][]key{}
	for k := range pending { // in random order, so that every object has its turn
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

// encodeSignal writes a line; ok is false if it is longer than most.
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

// signalContext returns the context that a signal is sealed for.
func signalContext(k key, v Version) []byte {
	return []byte(strings.Join([]string{"signal", string(k.tenant), k.kind, string(k.id), strconv.FormatInt(int64(v), 10)}, "\x00"))
}
