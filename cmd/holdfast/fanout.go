package main

import (
	"context"

	"holdfast/db"
	"holdfast/object"
	"holdfast/object/natshints"
)

// fanoutConfig says how servers on one database tell each other of changes. Hints only make watchers faster: with none of
// these ways they poll.
type fanoutConfig struct {
	Fanout      string `help:"How servers tell each other of changes, for watchers: postgres (LISTEN and NOTIFY), nats, or local where there is one server; watchers also poll." enum:"postgres,nats,local" env:"HOLDFAST_FANOUT" default:"postgres"`
	ListenURL   string `help:"Where --fanout postgres listens: Postgres itself, where the database URL is a pooler's. Default: the database URL." name:"listen-url" env:"HOLDFAST_LISTEN_URL" placeholder:"URL"`
	NATSURL     string `help:"The servers of --fanout nats, separated by commas." name:"nats-url" env:"HOLDFAST_NATS_URL" placeholder:"URL"`
	NATSCreds   string `help:"A file with the credentials for NATS." name:"nats-creds" env:"HOLDFAST_NATS_CREDS" placeholder:"FILE"`
	NATSSubject string `help:"The subject that the servers of this database share." name:"nats-subject" env:"HOLDFAST_NATS_SUBJECT" default:"holdfast.hints" placeholder:"SUBJECT"`
}

func (c fanoutConfig) check() error {
	switch {
	case c.Fanout == "nats" && c.NATSURL == "":
		return wrongUsage("--fanout nats needs --nats-url, such as nats://127.0.0.1:4222")
	case c.Fanout != "nats" && c.NATSURL+c.NATSCreds != "":
		return wrongUsage("--nats-url and --nats-creds go with --fanout nats")
	case c.Fanout != "postgres" && c.ListenURL != "":
		return wrongUsage("--listen-url goes with --fanout postgres")
	}
	return nil
}

// carrier is nil for local. close is called after the last use of the carrier.
func (c fanoutConfig) carrier(ctx context.Context) (carrier object.Carrier, closeIt func(), err error) {
	switch c.Fanout {
	case "postgres":
		n, err := db.NewNotifications(ctx, c.ListenURL)
		if err != nil {
			return nil, nil, wrongUsage("--listen-url: %v", err)
		}
		return n, n.Close, nil
	case "nats":
		return natshints.New(natshints.Config{URL: c.NATSURL, Credentials: c.NATSCreds, Subject: c.NATSSubject}), func() {}, nil
	default:
		return nil, func() {}, nil
	}
}
