package object

import "holdfast/object/internal/hints"

// Carrier brings short messages to every process on the same database, the sender's own among them. It may lose messages;
// it never alters one. Postgres (db.Notify) and NATS (package natshints) are two. It must be safe for concurrent use.
type Carrier = hints.Carrier

// MaxMessage is how long a message to a Carrier is at most: Postgres takes less than 8,000 bytes in a notification.
const MaxMessage = hints.MaxMessage

// Sealer encrypts and authenticates under keys that all processes on one database share; see seal.Box.
type Sealer = hints.Sealer
