package objecttest

import (
	"context"

	"google.golang.org/protobuf/proto"

	"holdfast/object"
)

// Restore makes an object what it was at a moment; see Kind.Restore.
func Restore[S proto.Message](ctx context.Context, k *object.Kind[S], id object.ID, at object.Moment, more ...object.UpdateOption) (snap object.Snapshot[S], err error) {
	err = k.Restore(ctx, id, at, func(p *object.Past, opts ...object.UpdateOption) (err error) {
		snap, err = k.Update(ctx, id, func(tx *object.Tx[S]) error { return tx.Become(p) }, append(opts, more...)...)
		return err
	})
	return snap, err
}

// Fork creates an object as another one was at a moment; see Kind.PastWhole.
func Fork[S proto.Message](ctx context.Context, k *object.Kind[S], id object.ID, at object.Moment, as object.ID) (object.Snapshot[S], error) {
	p, err := k.PastWhole(ctx, id, at)
	if err != nil {
		return object.Snapshot[S]{}, err
	}
	return k.Update(ctx, as, func(tx *object.Tx[S]) error { return tx.Become(p) }, object.Create())
}

// ViewAt reads an object as it was at a moment; see Kind.Past.
func ViewAt[S proto.Message](ctx context.Context, k *object.Kind[S], id object.ID, at object.Moment) (object.Snapshot[S], error) {
	p, err := k.Past(ctx, id, at)
	if err != nil {
		return object.Snapshot[S]{}, err
	}
	state, err := p.State()
	if err != nil {
		return object.Snapshot[S]{}, err
	}
	return object.Snapshot[S]{Info: p.Info(id), State: state.(S)}, nil
}

// Delete deletes an object.
func Delete[S proto.Message](ctx context.Context, k *object.Kind[S], id object.ID, opts ...object.UpdateOption) error {
	_, err := k.Update(ctx, id, func(tx *object.Tx[S]) error {
		tx.DeleteObject()
		return nil
	}, opts...)
	return err
}
