package handlers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"holdfast/db/dbtest"
	"holdfast/object"
)

// update writes the golden states of the release in the making anew.
var update = flag.Bool("update", false, "write the golden files of this release again")

// goldenRelease is the directory of the release in the making. The files of one that is out never change: they are what is
// in databases.
const goldenRelease = "0.1"

// golden is an object as a release stores it, with all that it can hold.
type golden struct {
	SchemaVersion int32                      `json:"schema_version"`
	State         json.RawMessage            `json:"state"`
	Entries       map[string]json.RawMessage `json:"entries"`
}

// What any release has stored is read for ever, in full.
func TestGoldenStates(t *testing.T) {
	t.Parallel()
	b := dbtest.New(t)
	rt := object.NewRuntime(b.DB, object.Config{})
	defer rt.Close(context.Background())
	services(t, rt)
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, name := range rt.Kinds() {
		if name == "probe" {
			continue // these tests' own
		}
		k, _ := rt.Kind(name)
		if *update {
			writeGolden(t, k)
		}
		files, err := filepath.Glob(filepath.Join("testdata", "golden", "*", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		if len(files) == 0 {
			t.Errorf("the kind %s has no golden state: go test ./handlers -run TestGoldenStates -update", name)
		}
		for _, file := range files {
			checkGolden(t, b, conn, k, file)
		}
	}
	// And none is left of a kind that is gone: its rows would be.
	files, err := filepath.Glob("testdata/golden/*/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if _, ok := rt.Kind(strings.TrimSuffix(filepath.Base(file), ".json")); !ok {
			t.Errorf("%s is of no kind", file)
		}
	}
}

// checkGolden stores a golden object as its release did. It must be read in full, and be written over, which is refused if
// anything in it is unknown.
func checkGolden(t *testing.T, b *dbtest.Bundle, conn *pgx.Conn, k *object.Kind[proto.Message], file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var g golden
	if err := json.Unmarshal(text, &g); err != nil {
		t.Fatal(err)
	}
	ctx, id := b.AsService(t), object.ID(filepath.Base(filepath.Dir(file)))
	exec := func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql, append([]any{string(b.Tenant), k.Name(), string(id)}, args...)...); err != nil {
			t.Fatal(err)
		}
	}
	exec(`INSERT INTO holdfast.objects
		(tenant_id, kind, object_id, owner_id, base_version, version, schema_version, state, create_time, update_time, activity_time)
		VALUES ($1, $2, $3, '', 0, 1, $4, $5::text::jsonb, now(), now(), now())`, g.SchemaVersion, string(g.State))
	for collection, stored := range g.Entries {
		exec(`INSERT INTO holdfast.entries (tenant_id, kind, object_id, collection, key, owner_id, version, body)
			VALUES ($1, $2, $3, $4, 'golden', '', 1, $5::text::jsonb)`, collection, string(stored))
	}
	snap, err := k.View(ctx, id)
	if err != nil {
		t.Errorf("%s: the state cannot be read: %v", file, err)
		return
	}
	if g.SchemaVersion == k.SchemaVersion() {
		checkSame(t, file+", state", g.State, snap.State)
	}
	for collection, stored := range g.Entries {
		page, err := k.Entries(ctx, id, collection, object.EntriesOptions{})
		if err != nil || len(page.Entries) != 1 {
			t.Errorf("%s: the entry of %s cannot be read: %v, %v", file, collection, page.Entries, err)
			continue
		}
		checkSame(t, file+", "+collection, stored, page.Entries[0].Value)
	}
	_, err = k.Update(ctx, id, func(tx *object.Tx[proto.Message]) error {
		for collection := range g.Entries {
			tx.Put(collection, "golden", tx.Entry(collection, "golden"))
		}
		return nil
	})
	if err != nil {
		t.Errorf("%s: it cannot be written over: %v", file, err)
	}
}

// checkSame fails the test where a message, stored again, is not what it was read from.
func checkSame(t *testing.T, what string, stored []byte, m proto.Message) {
	t.Helper()
	var want, got any
	again, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(stored, &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s, stored again, differs (-stored +again):\n%s", what, diff)
	}
}

func writeGolden(t *testing.T, k *object.Kind[proto.Message]) {
	t.Helper()
	g := golden{SchemaVersion: k.SchemaVersion(), State: fullJSON(t, k.Prototype()), Entries: map[string]json.RawMessage{}}
	for _, c := range k.Collections() {
		g.Entries[c] = fullJSON(t, k.PrototypeOf(c))
	}
	text, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", "golden", goldenRelease, k.Name()+".json")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func fullJSON(t *testing.T, prototype proto.Message) json.RawMessage {
	t.Helper()
	m := prototype.ProtoReflect().New()
	fillAll(m, 0)
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m.Interface())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// fillAll sets every field, of a oneof the last.
func fillAll(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	switch m.Descriptor().FullName() {
	case "google.protobuf.Struct":
		v := m.Mutable(fields.ByName("fields")).Map()
		text := v.NewValue()
		text.Message().Set(text.Message().Descriptor().Fields().ByName("string_value"), protoreflect.ValueOfString("text"))
		v.Set(protoreflect.ValueOfString("key").MapKey(), text)
		return
	case "google.protobuf.Timestamp", "google.protobuf.Duration":
		m.Set(fields.ByName("seconds"), protoreflect.ValueOfInt64(1_900_000_000))
		return
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Message() != nil && depth > 4 {
			continue
		}
		switch {
		case f.IsMap():
			v := m.Mutable(f).Map().NewValue()
			if f.MapValue().Message() != nil {
				fillAll(v.Message(), depth+1)
			} else {
				v = scalar(f.MapValue())
			}
			m.Mutable(f).Map().Set(scalar(f.MapKey()).MapKey(), v)
		case f.IsList():
			v := m.Mutable(f).List().NewElement()
			if f.Message() != nil {
				fillAll(v.Message(), depth+1)
			} else {
				v = scalar(f)
			}
			m.Mutable(f).List().Append(v)
		case f.Message() != nil:
			fillAll(m.Mutable(f).Message(), depth+1)
		default:
			m.Set(f, scalar(f))
		}
	}
}

func scalar(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(f.Enum().Values().Get(f.Enum().Values().Len() - 1).Number())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(7)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(7)
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(7)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(7)
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(0.5)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(0.5)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("bytes"))
	default:
		return protoreflect.ValueOfString("text")
	}
}
