package coordination

import (
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	storev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/object/objecttest"
)

// What is stored and what is asked for have the same fields, but for those of calls that callers see in another form or not at all.
func TestNothingIsForgottenInConversion(t *testing.T) {
	t.Parallel()
	for stored, asked := range map[proto.Message]proto.Message{
		&storev1.ApiConfig{}: &coordinationv1.ApiConfig{}, &storev1.Breaker{}: &coordinationv1.Breaker{},
		&storev1.UsageDay{}: &coordinationv1.UsageDay{}, &storev1.SyncState{}: &coordinationv1.SyncState{},
		&storev1.LiveSession{}: &coordinationv1.LiveSession{}, &storev1.LiveCounts{}: &coordinationv1.LiveCounts{},
		&storev1.Call{}: &coordinationv1.Call{},
	} {
		alike(t, stored.ProtoReflect().Descriptor(), asked.ProtoReflect().Descriptor())
	}
	rapid.Check(t, func(t *rapid.T) {
		c := &storev1.ApiConfig{}
		objecttest.Fill(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)), c)
		if got := as[*storev1.ApiConfig](as[*coordinationv1.ApiConfig](c)); !proto.Equal(got, c) {
			t.Fatalf("%v\nbecame\n%v", c, got)
		}
	})
	if as[*coordinationv1.Outcome]((*storev1.Outcome)(nil)) != nil {
		t.Error("nothing became something")
	}
}

// alike checks that two messages have the same fields of the same types.
func alike(t *testing.T, a, b protoreflect.MessageDescriptor) {
	t.Helper()
	if a.FullName() == b.FullName() {
		return
	}
	without := map[protoreflect.Name][]protoreflect.Name{"Call": {
		"lease", "holder", "request_id", "lease_expire_time", "fencing_token", "attempt_token", "breaker_generation",
	}, "Breaker": {"window_time", "past_calls", "past_failures", "probes_begun", "probes_succeeded"}}[a.Name()]
	for _, pair := range [2][2]protoreflect.MessageDescriptor{{a, b}, {b, a}} {
		for i := range pair[0].Fields().Len() {
			f := pair[0].Fields().Get(i)
			g := pair[1].Fields().ByName(f.Name())
			switch {
			case slices.Contains(without, f.Name()):
			case g == nil || f.Kind() != g.Kind() || f.Cardinality() != g.Cardinality() || f.IsMap() != g.IsMap():
				t.Errorf("%s is not in %s as it is", f.FullName(), pair[1].FullName())
			case f.Message() != nil && pair[0] == a:
				alike(t, f.Message(), g.Message())
			case f.Enum() != nil:
				for j := range f.Enum().Values().Len() {
					v := f.Enum().Values().Get(j)
					if w := g.Enum().Values().ByName(v.Name()); w == nil || w.Number() != v.Number() {
						t.Errorf("%s is not in %s", v.FullName(), g.Enum().FullName())
					}
				}
			}
		}
	}
}
