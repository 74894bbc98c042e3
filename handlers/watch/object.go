package watch

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/object"
)

// Object follows an object and the newest entries of its kind's Recent collection, through all of its lives: while it is not there,
// it is absent. show turns a change into a message; nil: into none.
func Object[S proto.Message](
	ctx context.Context, k *object.Kind[S], id object.ID, recent int, item *watchv1.Item, tell Tell,
	show func(*object.Change[S]) *watchv1.WatchResponse,
) error {
	from := parseCursor(item.GetCursor())
	for {
		err := follow(ctx, k, id, recent, from, tell, show)
		if err != nil && !errors.Is(err, object.ErrNotFound) {
			return err
		}
		// The caller forgets what it had, so its old cursor is of no use, not even if this object is restored.
		if err := tell(changed(start, &watchv1.Changed{Reset_: true, Absent: true})); err != nil {
			return err
		}
		if err := k.Await(ctx, id); err != nil {
			return err
		}
		from = cursor{}
	}
}

// follow follows an object until it is deleted, and then returns nil.
func follow[S proto.Message](
	ctx context.Context, k *object.Kind[S], id object.ID, recent int, from cursor, tell Tell, show func(*object.Change[S]) *watchv1.WatchResponse,
) error {
	for c, err := range k.WatchLife(ctx, id, from.life, from.version, recent) {
		switch {
		case err != nil:
			return err
		case c.Deleted:
			return nil
		case c.Heartbeat: // the stream has its own
			continue
		}
		if c.Signal == nil {
			from = cursor{c.CreateTime, c.Version}
		}
		r := show(&c)
		if r == nil {
			continue
		}
		r.Cursor = from.String()
		if err := tell(r); err != nil {
			return err
		}
	}
	return nil
}

// Change is the message of a change but for its things.
func Change[S proto.Message](c *object.Change[S]) *watchv1.Changed {
	return &watchv1.Changed{Reset_: c.Reset, More: c.More, Version: int64(c.Version)}
}

// Changed is the message of a change; Object sets its cursor.
func Changed(c *watchv1.Changed) *watchv1.WatchResponse { return changed("", c) }

func changed(cursor string, c *watchv1.Changed) *watchv1.WatchResponse {
	return &watchv1.WatchResponse{Cursor: cursor, Event: &watchv1.WatchResponse_Changed{Changed: c}}
}

// cursor is a place in the history of an object: a version of the object that was created at life.
type cursor struct {
	life    time.Time
	version object.Version
}

// start is a cursor of nothing: the item begins with what is there.
const start = "0"

func (c cursor) String() string {
	if c.version == 0 {
		return start
	}
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %d", c.life.UnixMicro(), c.version))
}

// parseCursor returns the zero cursor for a string that is none: beginning again is right for every client.
func parseCursor(s string) cursor {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return cursor{}
	}
	var life, version int64
	if _, err := fmt.Sscanf(string(b), "%d %d", &life, &version); err != nil || version <= 0 {
		return cursor{}
	}
	return cursor{time.UnixMicro(life), object.Version(version)}
}
