package hints

import (
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/identity"
	"holdfast/object/internal/addr"
	"holdfast/seal"
)

// Hints go into messages of bounded length, and come out of them as they were.
func TestHintMessages(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 128)
	hints := map[addr.Key]addr.Version{}
	for i := range 500 {
		id := addr.ID("c" + strconv.Itoa(i))
		hints[addr.Key{Tenant: "t1", Kind: "conversation", ID: id}] = addr.Version(i + 1)
		hints[addr.Key{Tenant: "t1", Kind: "project", ID: id}] = 1 << 60
		hints[addr.Key{Tenant: "t2", Kind: "conversation", ID: id}] = 1
	}
	for i := range 100 {
		suffix := fmt.Sprintf("%03d", i)
		hints[addr.Key{Tenant: identity.Tenant("t" + long[:124]), Kind: "k" + suffix, ID: addr.ID(long[3:] + suffix)}] = 7
	}
	got := map[addr.Key]addr.Version{}
	for _, m := range encodeHints("me", hints) {
		if len(m) > MaxMessage {
			t.Errorf("a message has %d bytes", len(m))
		}
		from, lines, _ := strings.Cut(m, "\n")
		if from != "me" {
			t.Errorf("from %q", from)
		}
		maps.Insert(got, decodeHints(lines))
	}
	if !maps.Equal(got, hints) {
		t.Errorf("%d hints became %d others", len(hints), len(got))
	}
	if m := encodeHints("me", nil); len(m) != 1 || m[0] != "me" {
		t.Errorf("a greeting is %q", m)
	}
	// What a newer release may say is left out; the rest is understood.
	some := maps.Collect(decodeHints("t\tk\ta\t1\nb\tx\nnew\tform\tof\thint\tthat is longer\nc\t3\n"))
	want := map[addr.Key]addr.Version{{Tenant: "t", Kind: "k", ID: "a"}: 1, {Tenant: "t", Kind: "k", ID: "c"}: 3}
	if !maps.Equal(some, want) {
		t.Errorf("got %v", some)
	}
}

// Of signals of many objects a part of each tenant's is sent, within the bound.
func TestSignalsAreShared(t *testing.T) {
	t.Parallel()
	box, err := seal.NewBox(seal.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	pending := map[addr.Key]signal{}
	for tenant, n := range map[identity.Tenant]int{"big": 3000, "small": 3, "other": 3} {
		for i := range n {
			pending[addr.Key{Tenant: tenant, Kind: "k", ID: addr.ID(strconv.Itoa(i))}] = signal{&typepb.EnumValue{Name: strings.Repeat("x", 500)}, 1}
		}
	}
	messages, held := encodeSignals("me", box, pending)
	size, of := 0, map[string]int{}
	for _, m := range messages {
		size += len(m)
		if len(m) > MaxMessage {
			t.Errorf("a message has %d bytes", len(m))
		}
		for line := range strings.SplitSeq(m, "\n") {
			if tenant, _, ok := strings.Cut(line, "\t"); ok {
				of[tenant]++
			}
		}
	}
	if size > 40<<10 || of["small"] != 3 || of["other"] != 3 || of["big"] < 20 || held != of["small"]+of["other"]+of["big"] {
		t.Errorf("%d bytes hold %d signals: %v", size, held, of)
	}
}
