package db

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"holdfast/gen/dbsqlc"
)

// Notifications is LISTEN and NOTIFY of one database: each message reaches every process that listens, or is lost. It has
// connections of its own, one that listens and up to two that notify, so that a change never waits for one, and no NOTIFY is part of a change's transaction: there it
// would hold a lock of the whole database through the commit. Its login needs no right at all. It is safe for concurrent use.
type Notifications struct {
	config *pgx.ConnConfig
	sender *pgxpool.Pool
}

// NewNotifications prepares the connections to a Postgres, which must not go through a pooler in transaction mode.
// It connects when it is used.
func NewNotifications(ctx context.Context, url string) (*Notifications, error) {
	c, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("the database URL is not valid: %w", err)
	}
	listener := c.ConnConfig.Copy()
	c.MinConns, c.MinIdleConns, c.MaxConns = 0, 0, senders
	sender, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, err
	}
	return &Notifications{config: listener, sender: sender}, nil
}

// Close closes the sender's connections and waits for them up to closeTimeout; Receive has one of its own, which ends with it.
func (n *Notifications) Close() { closePool(n.sender) }

// senders is how many connections notify: a second one, so that hints need not wait for signals.
const senders = 2

// Send notifies everybody who listens. Each message must be shorter than 8,000 bytes. A connection that was lost since it was last
// used fails at its next use, so there is a try for each and one more; a message may arrive twice.
func (n *Notifications) Send(ctx context.Context, messages []string) (err error) {
	for range senders + 1 {
		err = translate(dbsqlc.New(n.sender).Notify(ctx, messages), false)
		if !errors.Is(err, ErrUnavailable) {
			break
		}
	}
	return err
}

// Receive calls connected when it listens, and on for each message, until the connection is lost or ctx is over.
func (n *Notifications) Receive(ctx context.Context, connected func(), on func(message string)) error {
	conn, err := pgx.ConnectConfig(ctx, n.config)
	if err != nil {
		return translate(err, false)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(ctx)
	}()
	if err := dbsqlc.New(conn).Listen(ctx); err != nil {
		return translate(err, false)
	}
	connected()
	for {
		m, err := conn.WaitForNotification(ctx)
		if err != nil {
			return translate(err, false)
		}
		on(m.Payload)
	}
}
