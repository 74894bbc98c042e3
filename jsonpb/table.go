package jsonpb

import (
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Codec reads and writes proto JSON. It is safe for concurrent use.
type Codec struct {
	protoNames bool

	tables sync.Map // protoreflect.MessageDescriptor -> *table
}

// Option adjusts a Codec.
type Option func(*Codec)

// ProtoNames makes the codec write the names of fields as the proto file has them, and not in lowerCamelCase. Both are read.
func ProtoNames() Option { return func(c *Codec) { c.protoNames = true } }

// New returns a codec without tables; each is made when a message of its type first comes.
func New(options ...Option) *Codec {
	c := &Codec{}
	for _, o := range options {
		o(c)
	}
	return c
}

// form is how messages of a type look in JSON.
type form int

const (
	object    form = iota // an object of fields
	foreign               // protojson's business
	timestamp             // google.protobuf.Timestamp, Struct, Value and ListValue
	structure
	value
	listValue
)

// forms are those of the well-known types.
var forms = map[protoreflect.FullName]form{ //nolint:gochecknoglobals // never changed
	"google.protobuf.Timestamp": timestamp, "google.protobuf.Struct": structure, "google.protobuf.Value": value, "google.protobuf.ListValue": listValue,
	"google.protobuf.Any": foreign, "google.protobuf.Duration": foreign, "google.protobuf.Empty": foreign, "google.protobuf.FieldMask": foreign,
	"google.protobuf.BoolValue": foreign, "google.protobuf.BytesValue": foreign, "google.protobuf.DoubleValue": foreign, "google.protobuf.FloatValue": foreign,
	"google.protobuf.Int32Value": foreign, "google.protobuf.Int64Value": foreign, "google.protobuf.StringValue": foreign,
	"google.protobuf.UInt32Value": foreign, "google.protobuf.UInt64Value": foreign,
}

// table is what is known of a message type.
type table struct {
	form   form
	fields []*field          // as the proto file orders them
	byName map[string]*field // by either name
}

// field is a field of a message. For a list it describes the elements, for a map its values.
type field struct {
	protoreflect.FieldDescriptor

	kind      protoreflect.Kind
	name      string // in JSON
	written   string // with quotes and colon
	index     int    // in the table
	oneof     int    // index of the oneof in the message; -1: none
	list      bool
	key       protoreflect.FieldDescriptor // of a map; nil: it is none
	message   *table                       // nil: not of a message type
	enum      protoreflect.EnumDescriptor  // nil: not of an enum type
	nullValue bool                         // the enum is google.protobuf.NullValue
}

// table returns the table of a message type.
func (c *Codec) table(d protoreflect.MessageDescriptor) *table {
	if t, ok := c.tables.Load(d); ok {
		return t.(*table) //nolint:forcetypeassert // nothing else is stored
	}
	made := map[protoreflect.MessageDescriptor]*table{}
	t := c.makeTable(d, made)
	for d, t := range made {
		c.tables.Store(d, t)
	}
	return t
}

// makeTable makes the table of a type and of all types that it leads to.
func (c *Codec) makeTable(d protoreflect.MessageDescriptor, made map[protoreflect.MessageDescriptor]*table) *table {
	if t := made[d]; t != nil {
		return t
	}
	t := &table{form: forms[d.FullName()]}
	made[d] = t
	if t.form != object {
		return t
	}
	if d.ExtensionRanges().Len() > 0 || d.RequiredNumbers().Len() > 0 {
		t.form = foreign
	}
	t.byName = map[string]*field{}
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		f := &field{FieldDescriptor: fd, name: fd.JSONName(), index: i, oneof: -1, list: fd.IsList()}
		t.byName[fd.TextName()] = f
		if o := fd.ContainingOneof(); o != nil {
			f.oneof = o.Index()
		}
		single := fd
		if fd.IsMap() {
			f.key, single = fd.MapKey(), fd.MapValue()
		}
		f.kind, f.enum = single.Kind(), single.Enum()
		f.nullValue = f.enum != nil && f.enum.FullName() == "google.protobuf.NullValue"
		if m := single.Message(); m != nil {
			f.message = c.makeTable(m, made)
			if f.message.form == foreign && forms[m.FullName()] == object {
				t.form = foreign // protojson's check for required fields begins at the top
			}
		}
		name := f.name
		if c.protoNames {
			name = fd.TextName()
		}
		f.written = string(append(AppendString(nil, name), ':'))
		t.fields = append(t.fields, f)
	}
	for _, f := range t.fields {
		t.byName[f.name] = f
	}
	return t
}
