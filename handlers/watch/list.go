package watch

import (
	"cmp"
	"context"

	"google.golang.org/protobuf/proto"

	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/handlers/rpc"
	"holdfast/object"
)

// listPages is how many pages a list is read from at most: a filter may make for pages with nothing in them.
const listPages = 4

// List follows the first objects of a list of a kind. read returns a page.
func List[S proto.Message](
	ctx context.Context, k *object.Kind[S], item *watchv1.Item, tell Tell, read func(size int32, token string) ([]*watchv1.Thing, string, error),
) error {
	limit := cmp.Or(int(item.GetList().GetLimit()), object.DefaultPageSize)
	var d Differ
	return k.WatchList(ctx, func() (differs bool, err error) {
		var things []*watchv1.Thing
		var room object.Room
		token := ""
		for range listPages {
			var page []*watchv1.Thing
			if page, token, err = read(int32(limit-len(things)), token); err != nil { //nolint:gosec // a page's size
				return false, err
			}
			for _, thing := range page {
				if !room.Fits(rpc.AnswerSize(thing)) {
					token = ""
					break
				}
				things = append(things, thing)
			}
			if token == "" || len(things) == limit {
				break
			}
		}
		begins := d.last == nil
		change := d.Diff(things)
		if change == nil || begins && item.GetCursor() == d.cursor() {
			return false, nil
		}
		return true, tell(changed(d.cursor(), change))
	})
}
