package holdfast

import (
	"bytes"
	"context"
	"encoding/json"
	"iter"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	errorv1 "holdfast.internal/clients/go/gen/holdfast/error/v1"
	statev1 "holdfast.internal/clients/go/gen/holdfast/state/v1"
	watchv1 "holdfast.internal/clients/go/gen/holdfast/watch/v1"
)

// Object is an object of StateService whose state is an S, as encoding/json has it. It is safe for concurrent use.
type Object[S any] struct {
	client *Client
	ref    *statev1.Ref
}

// NewObject names an object of the client's user, or of the tenant where the client is a service that acts for nobody. It does no I/O.
func NewObject[S any](c *Client, typ, name string) *Object[S] {
	return &Object[S]{c, &statev1.Ref{Type: typ, Name: name}}
}

// Snapshot is an object as it was at one version. An object that is not there has version 0 and the zero state.
type Snapshot[S any] struct {
	State   S
	Version int64
}

// Read returns the object as it is.
func (o *Object[S]) Read(ctx context.Context) (Snapshot[S], error) {
	res, err := o.client.State.Read(ctx, &statev1.ReadRequest{Reads: []*statev1.ReadOne{{Ref: o.ref}}})
	if err != nil {
		return Snapshot[S]{}, err
	}
	return snapshot[S](res.GetObjects()[0])
}

func snapshot[S any](o *statev1.Object) (s Snapshot[S], err error) {
	s.Version = o.GetVersion()
	return s, DecodeState(o, &s.State)
}

// DecodeState reads an object's state into the value that v points to, as json.Unmarshal does. That of an absent object leaves it alone.
func DecodeState(o *statev1.Object, v any) error {
	data := []byte(o.GetStateJson())
	if len(data) == 0 && o.GetState() != nil {
		var err error
		if data, err = protojson.Marshal(o.GetState()); err != nil {
			return err
		}
	}
	if len(data) == 0 {
		return nil
	}
	return json.Unmarshal(data, v)
}

// Tx is a change of an object while a function given to Update makes it.
type Tx[S any] struct {
	// Snapshot is the object before the change; the function changes State.
	Snapshot[S]

	operations []*statev1.Operation
}

// Do adds operations on the object, such as appending an entry. They happen after the state is set, in order, and in the same version.
func (tx *Tx[S]) Do(operations ...*statev1.Operation) {
	tx.operations = append(tx.operations, operations...)
}

// Append adds an entry to the end of a collection, with v as its JSON. It fails where v has none.
func (tx *Tx[S]) Append(collection string, v any) error {
	e, err := entry(collection, "", v)
	tx.Do(&statev1.Operation{Operation: &statev1.Operation_Append{Append: e}})
	return err
}

// Put sets an entry by its key, with v as its JSON. It fails where v has none.
func (tx *Tx[S]) Put(collection, key string, v any) error {
	e, err := entry(collection, key, v)
	tx.Do(&statev1.Operation{Operation: &statev1.Operation_Put{Put: &statev1.Put{Entry: e}}})
	return err
}

func entry(collection, key string, v any) (*statev1.Entry, error) {
	data, err := json.Marshal(v)
	return &statev1.Entry{Collection: collection, Key: key, Value: &statev1.Entry_JsonText{JsonText: string(data)}}, err
}

// Update reads the object, lets change change it, and writes it if nobody else has changed it meanwhile; otherwise it begins again. So
// change may run several times: it must do no I/O and change nothing but tx. An error of change is returned, and then nothing is written.
// The state is written as a whole: fields that S does not have are lost. What changes nothing is not written.
func (o *Object[S]) Update(ctx context.Context, change func(tx *Tx[S]) error) (Snapshot[S], error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.client.options.timeout)
		defer cancel()
	}
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		s, err := o.update(ctx, change)
		if !Is(err, errorv1.Reason_REASON_VERSION_MISMATCH) {
			return s, err
		}
		// With chance in it, so that those who collide do not do it again.
		if sleep(ctx, rand.N(pause)) != nil { //nolint:gosec // it only spreads load
			return s, err
		}
	}
}

func (o *Object[S]) update(ctx context.Context, change func(tx *Tx[S]) error) (Snapshot[S], error) {
	read, err := o.Read(ctx)
	if err != nil {
		return read, err
	}
	before, err := json.Marshal(read.State)
	if err != nil {
		return read, err
	}
	tx := &Tx[S]{Snapshot: read}
	if err := change(tx); err != nil {
		return read, err
	}
	after, err := json.Marshal(tx.State)
	if err != nil {
		return read, err
	}
	var operations []*statev1.Operation
	if !bytes.Equal(before, after) || read.Version == 0 {
		operations = append(operations, &statev1.Operation{Operation: &statev1.Operation_SetStateJson{SetStateJson: string(after)}})
	}
	operations = append(operations, tx.operations...)
	if len(operations) == 0 {
		return tx.Snapshot, nil
	}
	res, err := o.client.State.Apply(ctx, &statev1.ApplyRequest{Ref: o.ref, IfVersion: &read.Version, Operations: operations})
	if err != nil {
		return read, err
	}
	return Snapshot[S]{tx.State, res.GetVersion()}, nil
}

// Delete removes the object with all that it has. One that is not there is no error.
func (o *Object[S]) Delete(ctx context.Context) error {
	_, err := o.client.State.DeleteState(ctx, &statev1.DeleteStateRequest{Ref: o.ref})
	return err
}

// Watch yields the object as it is, and after each change, as Client.Watch does.
func (o *Object[S]) Watch(ctx context.Context) iter.Seq2[Snapshot[S], error] {
	item := &watchv1.Item{ItemId: "object", Of: &watchv1.Item_State{State: &watchv1.StateItem{Ref: o.ref}}}
	return func(yield func(Snapshot[S], error) bool) {
		for view, err := range o.client.Watch(ctx, item) {
			var s Snapshot[S]
			if err == nil && !view.Absent {
				s, err = snapshot[S](view.Things["object"].GetObject())
			}
			if !yield(s, err) || err != nil {
				return
			}
		}
	}
}
