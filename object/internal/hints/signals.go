package hints

import (
	"context"
	"encoding/base64"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"holdfast/identity"
	"holdfast/object/internal/addr"
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

// signal is a message that waits to be sent. It is for those who are at the object's version.
type signal struct {
	message proto.Message
	version addr.Version
}

// signalRelay sends signals to the watchers of other processes over the carrier, in messages of their own, so that no hint
// waits for them. They may be lost. Listening to a database or to a NATS subject must not reveal a tenant's objects, so each signal is
// sealed for one version of one object. Safe for concurrent use.
type signalRelay struct {
	f    *Hints
	wake chan struct{} // capacity 1: something waits

	mu      sync.Mutex // guards pending; nothing slow happens under it
	pending map[addr.Key]signal
}

func newSignalRelay(f *Hints) *signalRelay {
	return &signalRelay{f: f, wake: make(chan struct{}, 1), pending: map[addr.Key]signal{}}
}

// Signal tells other processes a signal about a version of an object, if there are any. It never blocks.
func (f *Hints) Signal(k addr.Key, v addr.Version, m proto.Message) {
	if f.Sealer == nil || f.Carrier == nil || f.Peers() == 0 {
		return
	}
	s := f.signals
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.pending[k]; !ok && len(s.pending) >= maxSignals {
		s.f.metrics.signalsLost.Inc()
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
		s.pending = map[addr.Key]signal{}
		s.mu.Unlock()
		messages, lines := encodeSignals(s.f.self, s.f.Sealer, pending)
		ctx, cancel := context.WithTimeout(s.f.life, sendTimeout)
		if s.f.Carrier.Send(ctx, messages) != nil {
			lines = 0
		}
		cancel()
		s.f.metrics.signalsSent.Add(float64(lines))
		s.f.metrics.signalsLost.Add(float64(len(pending) - lines))
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
	if s.f.Sealer == nil {
		return
	}
	for line := range strings.SplitSeq(message, "\n") {
		parts := strings.Split(line, "\t")
		if len(parts) != signalParts {
			continue
		}
		k := addr.Key{Tenant: identity.Tenant(parts[0]), Kind: parts[1], ID: addr.ID(parts[2])}
		prototype := s.f.listener.SignalOf(k)
		if prototype == nil {
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
		plain, err := s.f.Sealer.Open(sealed, signalContext(k, addr.Version(version)))
		if err != nil {
			continue
		}
		m := prototype.ProtoReflect().New().Interface()
		if proto.Unmarshal(plain, m) != nil {
			continue
		}
		s.f.metrics.signalsReceived.Inc()
		s.f.listener.Told(k, addr.Version(version), m)
	}
}

// signalParts is the number of fields in a signal's line: tenant, kind, id, version and sealed message.
const signalParts = 5

// encodeSignals writes up to maxSignalBytes of messages, one signal a line, one tenant after the other in turn. It returns the
// messages and the number of signals in them.
func encodeSignals(from string, sealer Sealer, pending map[addr.Key]signal) (messages []string, held int) {
	byTenant := map[identity.Tenant][]addr.Key{}
	for k := range pending { // in random order, so that every object has its turn
		byTenant[k.Tenant] = append(byTenant[k.Tenant], k)
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
func encodeSignal(k addr.Key, told signal, sealer Sealer, most int) (line string, ok bool) {
	if proto.Size(told.message) > most {
		return "", false
	}
	plain, err := proto.Marshal(told.message)
	if err != nil {
		return "", false
	}
	sealed := base64.RawStdEncoding.EncodeToString(sealer.Seal(plain, signalContext(k, told.version)))
	line = "\n" + strings.Join([]string{string(k.Tenant), k.Kind, string(k.ID), strconv.FormatInt(int64(told.version), 10), sealed}, "\t")
	return line, len(line) <= most
}

// signalContext returns the context that a signal is sealed for.
func signalContext(k addr.Key, v addr.Version) []byte {
	return []byte(strings.Join([]string{"signal", string(k.Tenant), k.Kind, string(k.ID), strconv.FormatInt(int64(v), 10)}, "\x00"))
}
