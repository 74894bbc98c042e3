// Package natshints brings hints of changed objects between processes over NATS, as an [object.Carrier]: for those who run
// NATS already, or whose Postgres should not carry them.
package natshints

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Subject is where messages go unless the configuration says otherwise. Servers on other databases need another.
const Subject = "holdfast.hints"

// Config says how to reach NATS.
type Config struct {
	// URL is one server's or several, separated by commas; it may hold a user and password, or a token.
	URL string
	// Credentials is a file with a user's JWT and key. Optional.
	Credentials string
	// Subject defaults to Subject.
	Subject string
}

// Carrier sends and receives messages on one subject of NATS. It is safe for concurrent use.
type Carrier struct {
	config Config

	mu   sync.Mutex // guards what follows
	conn *nats.Conn // nil: not connected
}

// New makes a carrier. It connects when Receive is called.
func New(c Config) *Carrier {
	if c.Subject == "" {
		c.Subject = Subject
	}
	return &Carrier{config: c}
}

// errNotConnected: nothing can be sent before Receive has connected.
var errNotConnected = errors.New("natshints: not connected")

// errTooSlow: messages came faster than they were taken, and some were dropped.
var errTooSlow = errors.New("natshints: messages were dropped")

const connectTimeout = 5 * time.Second

// Receive connects, calls connected when messages arrive, and on for each, until the connection is lost or ctx is over.
func (c *Carrier) Receive(ctx context.Context, connected func(), on func(message string)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	options := []nats.Option{
		nats.Name("holdfast"),
		nats.Timeout(connectTimeout),
		// The caller connects again: it has to know that messages were lost.
		nats.NoReconnect(),
		nats.ClosedHandler(func(n *nats.Conn) { cancel(fmt.Errorf("natshints: the connection is lost: %w", n.LastError())) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrSlowConsumer) {
				err = errTooSlow
			}
			cancel(err)
		}),
	}
	if c.config.Credentials != "" {
		options = append(options, nats.UserCredentials(c.config.Credentials))
	}
	conn, err := nats.Connect(c.config.URL, options...)
	if err != nil {
		return fmt.Errorf("natshints: %w", err)
	}
	defer conn.Close()
	sub, err := conn.SubscribeSync(c.config.Subject)
	if err != nil {
		return fmt.Errorf("natshints: %w", err)
	}
	if err := conn.FlushTimeout(connectTimeout); err != nil {
		return fmt.Errorf("natshints: %w", err)
	}
	c.use(conn)
	defer c.use(nil)
	connected()
	for {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		on(string(m.Data))
	}
}

func (c *Carrier) use(conn *nats.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
}

// Send publishes messages. It does not wait until they are out.
func (c *Carrier) Send(_ context.Context, messages []string) error {
	c.mu.Lock()
	conn := c.conn
	c.mu.Unlock()
	if conn == nil {
		return errNotConnected
	}
	for _, m := range messages {
		if err := conn.Publish(c.config.Subject, []byte(m)); err != nil {
			return fmt.Errorf("natshints: %w", err)
		}
	}
	return nil
}
