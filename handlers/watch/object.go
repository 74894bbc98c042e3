package watch

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
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
	return lives(ctx, k, id, item, tell, follower[S]{recent: recent, show: show})
}

// Begin completes a snapshot with entries that the runtime does not have in it. It may set another version, which is newer.
type Begin[S proto.Message] func(context.Context, *object.Change[S]) error

// ObjectFrom is Object for an item that begins with entries of its own choice.
func ObjectFrom[S proto.Message](
	ctx context.Context, k *object.Kind[S], id object.ID, begin Begin[S], item *watchv1.Item, tell Tell,
	show func(*object.Change[S]) *watchv1.WatchResponse,
) error {
	return lives(ctx, k, id, item, tell, follower[S]{begin: begin, show: show})
}

// follower is what differs from kind to kind.
type follower[S proto.Message] struct {
	recent int
	begin  Begin[S] // nil: a snapshot is complete
	show   func(*object.Change[S]) *watchv1.WatchResponse
}

func lives[S proto.Message](ctx context.Context, k *object.Kind[S], id object.ID, item *watchv1.Item, tell Tell, f follower[S]) error {
	from := parseCursor(item.GetCursor())
	for {
		err := f.follow(ctx, k, id, from, tell)
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
func (f follower[S]) follow(ctx context.Context, k *object.Kind[S], id object.ID, from cursor, tell Tell) error {
	var begun object.Version // what led there was in the snapshot
	for c, err := range k.WatchLife(ctx, id, from.life, from.version, f.recent) {
		switch {
		case err != nil:
			return err
		case c.Deleted:
			return nil
		case c.Heartbeat: // the stream has its own
			continue
		case !c.Reset && (c.Version < begun || c.Version == begun && !c.More && c.Signal == nil):
			continue
		}
		if err := f.tell(ctx, &c, &from, tell); err != nil {
			return err
		}
		if c.Reset {
			begun = c.Version
		}
	}
	return nil
}

// tell sends a change and moves from behind it.
func (f follower[S]) tell(ctx context.Context, c *object.Change[S], from *cursor, tell Tell) error {
	var answer object.Answer
	defer answer.Sent()
	if c.Reset && f.begin != nil {
		if err := f.begin(object.Answering(ctx, &answer), c); err != nil {
			return err
		}
	}
	if c.Signal == nil {
		*from = cursor{c.CreateTime, c.Version}
	}
	r := f.show(c)
	if r == nil {
		return nil
	}
	r.Cursor = from.String()
	return tell(r)
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

// parseCursor returns the zero cursor for a string that is none: beginning again is right for every client. A version alone is one of the
// life that the object has now.
func parseCursor(s string) cursor {
	if version, err := strconv.ParseInt(s, 10, 64); err == nil && version > 0 {
		return cursor{version: object.Version(version)}
	}
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
