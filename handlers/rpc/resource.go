package rpc

import (
	"context"
	"crypto/sha256"
	"encoding/base32"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"holdfast/handlers/problem"
	"holdfast/identity"
	"holdfast/object"
)

// Present makes to what callers see of an object, and returns it: its standing, which is the first six fields of every resource, and
// what its state has under the same names.
func Present[M proto.Message](to M, i object.Info, state proto.Message) M {
	m, fields := to.ProtoReflect(), to.ProtoReflect().Descriptor().Fields()
	m.Set(fields.ByNumber(1), protoreflect.ValueOfString(string(i.ID)))
	m.Set(fields.ByNumber(2), protoreflect.ValueOfString(string(i.Owner)))
	m.Set(fields.ByNumber(3), protoreflect.ValueOfInt64(int64(i.Version)))
	for number, t := range map[protoreflect.FieldNumber]proto.Message{4: Timestamp(i.CreateTime), 5: Timestamp(i.UpdateTime), 6: Timestamp(i.ExpireTime)} {
		if t.ProtoReflect().IsValid() {
			m.Set(fields.ByNumber(number), protoreflect.ValueOfMessage(t.ProtoReflect()))
		}
	}
	Copy(to, state)
	return to
}

// Copy sets the fields of to that from has under the same names: of two messages that are the same thing, stored and as callers see
// it. Messages of one type are shared, so neither is to be changed in place afterwards.
func Copy(to, from proto.Message) { copyFields(to.ProtoReflect(), from.ProtoReflect()) }

// Set is Copy for the named fields, as far as both have them. Those that from does not have set are cleared.
func Set(to, from proto.Message, names ...string) {
	m, source := to.ProtoReflect(), from.ProtoReflect()
	for _, name := range names {
		f, g := m.Descriptor().Fields().ByName(protoreflect.Name(name)), source.Descriptor().Fields().ByName(protoreflect.Name(name))
		if f != nil && g != nil {
			m.Clear(f)
			if source.Has(g) {
				copyField(m, f, source.Get(g))
			}
		}
	}
}

func copyFields(to, from protoreflect.Message) {
	fields := to.Descriptor().Fields()
	from.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f := fields.ByName(f.Name()); f != nil {
			copyField(to, f, v)
		}
		return true
	})
}

func copyField(to protoreflect.Message, f protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch {
	case f.IsList():
		list, from := to.NewField(f).List(), v.List()
		for i := range from.Len() {
			list.Append(copied(from.Get(i), list.NewElement))
		}
		to.Set(f, protoreflect.ValueOfList(list))
	case f.IsMap():
		values := to.NewField(f).Map()
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			values.Set(k, copied(v, values.NewValue))
			return true
		})
		to.Set(f, protoreflect.ValueOfMap(values))
	default:
		to.Set(f, copied(v, func() protoreflect.Value { return to.NewField(f) }))
	}
}

// copied is a value as it fits where empty makes an empty one.
func copied(v protoreflect.Value, empty func() protoreflect.Value) protoreflect.Value {
	from, ok := v.Interface().(protoreflect.Message)
	if !ok {
		return v
	}
	to := empty()
	if to.Message().Descriptor() == from.Descriptor() {
		return v
	}
	copyFields(to.Message(), from)
	return to
}

type deleteRequest interface {
	object.ChangeRequest
	GetIfVersion() int64
}

// Delete removes an object. One that is not there is no error, unless the request names the version that it wants.
func Delete[R, S proto.Message](
	ctx context.Context, k *object.Kind[S], id string, req deleteRequest, reply func(existed bool, version int64) R,
) (R, error) {
	res, err := object.Do(ctx, k, object.ID(id), req, func(tx *object.Tx[S]) (R, error) {
		tx.DeleteObject()
		return reply(true, int64(tx.Info().Version)), nil
	})
	if Absent(err, req) {
		return reply(false, 0), nil
	}
	return res, err
}

// HashID is an id made of text that may have any characters, which an object's id may not.
func HashID(prefix, text string) object.ID {
	sum := sha256.Sum256([]byte(text))
	return object.ID(prefix + Base32(sum[:20]))
}

// Base32 writes bytes in the characters that an object's id may have.
func Base32(b []byte) string {
	return base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding).EncodeToString(b)
}

// RequireService refuses users, and services that act for one, what only services may do.
func RequireService(ctx context.Context, what string) error {
	caller, err := identity.From(ctx)
	if err == nil && !caller.Service {
		err = problem.PermissionDenied("only a service may " + what + ", on its own behalf")
	}
	return err
}
