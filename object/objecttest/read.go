package objecttest

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"holdfast/object"
)

func readTests[S proto.Message]() tests[S] {
	return tests[S]{
		"NotModified":    (*suite[S]).testNotModified,
		"Recent":         (*suite[S]).testRecent,
		"AnotherProcess": (*suite[S]).testReadAnotherProcess,
		"Entries":        (*suite[S]).testEntries,
		"List":           (*suite[S]).testList,
		"ListByTerms":    (*suite[S]).testListByTerms,
		"BadPageToken":   (*suite[S]).testBadPageToken,
		"NewerSchema":    (*suite[S]).testNewerSchema,
	}
}

func (s *suite[S]) testNotModified(t *testing.T) {
	created := s.create(t, "a", "x")
	for _, warm := range []bool{true, false} {
		if !warm {
			s.restart(t, object.Config{})
		}
		snap, err := s.kind.View(s.ctx, "a", object.IfVersionNot(1), object.WithRecent(3))
		if err != nil || !snap.NotModified || snap.Info != created.Info || any(snap.State) != any(*new(S)) || snap.Recent != nil {
			t.Errorf("in memory %t: %+v, %v", warm, snap, err)
		}
		snap, err = s.kind.View(s.ctx, "a", object.IfVersionNot(2))
		if err != nil || snap.NotModified || s.Text(snap.State) != "x" {
			t.Errorf("in memory %t: %+v, %v", warm, snap, err)
		}
	}
}

func (s *suite[S]) testRecent(t *testing.T) {
	s.create(t, "a", "x")
	var all []string
	check := func() {
		t.Helper()
		for _, n := range []int{0, 1, 3, 50, 200} {
			snap, err := s.kind.View(s.ctx, "a", object.WithRecent(n))
			if err != nil {
				t.Fatal(err)
			}
			if got, want := s.render(snap.Recent), all[max(0, len(all)-n):]; !slices.Equal(got, want) {
				t.Fatalf("newest %d: %v, want %v", n, got, want)
			}
		}
	}
	check()
	for i := range 70 {
		key := object.SeqKey(int64(i + 1))
		s.put(t, "a", key)
		all = append(all, key+"=text of "+key)
		if i%10 == 0 {
			check()
		}
	}
	check()
	// One in the middle, the newest, and one in front of all that is at hand.
	for _, i := range []int{len(all) - 2, len(all) - 1, 0} {
		key, _, _ := strings.Cut(all[i], "=")
		_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
			tx.Put(s.Collection, key, s.Entry("changed"))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		all[i] = key + "=changed"
		check()
	}
	for _, i := range []int{len(all) - 2, len(all) - 2, 0} {
		key, _, _ := strings.Cut(all[i], "=")
		_, err := s.kind.Update(s.ctx, "a", func(tx *object.Tx[S]) error {
			tx.DeleteEntry(s.Collection, key)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		all = slices.Delete(all, i, i+1)
		check()
	}
	s.restart(t, object.Config{})
	check()
}

func (s *suite[S]) testReadAnotherProcess(t *testing.T) {
	s.create(t, "a", "1")
	_, other := s.another(t, object.Config{})
	for i := range 5 {
		snap, err := other.View(s.ctx, "a", object.WithRecent(5))
		if err != nil || int(snap.Version) != i+1 || len(snap.Recent) != i {
			t.Fatalf("after %d changes: version %d, %d entries, %v", i, snap.Version, len(snap.Recent), err)
		}
		s.put(t, "a", object.SeqKey(int64(i+1)))
	}
}

func (s *suite[S]) testEntries(t *testing.T) {
	const n = 11
	s.create(t, "a", "x")
	var all []string
	for i := range n {
		key := object.SeqKey(int64(i + 1))
		s.put(t, "a", key)
		all = append(all, key+"=text of "+key)
	}
	for _, size := range []int{1, 2, 3, 10, 11, 12} {
		var forward, backward []string
		o := object.EntriesOptions{PageSize: size}
		for more := true; more; {
			page, err := s.kind.Entries(s.ctx, "a", s.Collection, o)
			if err != nil {
				t.Fatal(err)
			}
			if page.Version != n+1 || page.ID != "a" || len(page.Entries) > size {
				t.Fatalf("a page of %+v with %d entries", page.Info, len(page.Entries))
			}
			forward = append(forward, s.render(page.Entries)...)
			o.After, more = page.Entries[len(page.Entries)-1].Key, page.More
		}
		o = object.EntriesOptions{PageSize: size, Before: "~"}
		for more := true; more; {
			page, err := s.kind.Entries(s.ctx, "a", s.Collection, o)
			if err != nil {
				t.Fatal(err)
			}
			backward = append(s.render(page.Entries), backward...)
			o.Before, more = page.Entries[0].Key, page.More
		}
		if !slices.Equal(forward, all) {
			t.Errorf("pages of %d forwards: %v", size, forward)
		}
		if !slices.Equal(backward, all) {
			t.Errorf("pages of %d backwards: %v", size, backward)
		}
	}
	page, err := s.kind.Entries(s.ctx, "a", s.Collection, object.EntriesOptions{Before: object.SeqKey(1)})
	if err != nil || len(page.Entries) != 0 || page.More {
		t.Errorf("before the first: %+v, %v", page, err)
	}
	_, err = s.kind.Entries(s.ctx, "nothing", s.Collection, object.EntriesOptions{})
	wantError(t, err, object.ErrNotFound)
	if page, err := s.kind.Entries(s.ctx, "a", "no such collection", object.EntriesOptions{}); err == nil {
		t.Errorf("a collection that the kind does not have: %+v", page)
	}
}

// list pages through a list.
func (s *suite[S]) list(t *testing.T, size int, terms ...string) (ids []object.ID) {
	t.Helper()
	o := object.ListOptions{PageSize: size, Terms: terms}
	for {
		page, err := s.kind.List(s.ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Items) > size {
			t.Fatalf("a page of %d has %d", size, len(page.Items))
		}
		for _, item := range page.Items {
			ids = append(ids, item.ID)
		}
		if page.Next == "" {
			return ids
		}
		o.PageToken = page.Next
	}
}

func (s *suite[S]) testList(t *testing.T) {
	const n = 7
	snaps := map[object.ID]object.Snapshot[S]{}
	for i := range n {
		id := object.ID(fmt.Sprintf("o%d", i))
		snaps[id] = s.create(t, id, "text of "+string(id))
	}
	// Activity decides the order, and the id between equals.
	s.exec(t, "UPDATE holdfast.objects SET activity_time = '2020-01-01' WHERE tenant_id = $1 AND object_id IN ('o2', 'o4', 'o5')", string(s.Tenant))
	want := []object.ID{"o6", "o3", "o1", "o0", "o5", "o4", "o2"}
	for size := 1; size <= n+1; size++ {
		if got := s.list(t, size); !slices.Equal(got, want) {
			t.Errorf("pages of %d: %v, want %v", size, got, want)
		}
	}
	page, err := s.kind.List(s.ctx, object.ListOptions{})
	if err != nil || len(page.Items) != n || page.Next != "" {
		t.Fatalf("%d items, next %q, %v", len(page.Items), page.Next, err)
	}
	for _, item := range page.Items {
		if made := snaps[item.ID]; item.Info != made.Info || !proto.Equal(item.State, made.State) {
			t.Errorf("listed %+v %v, want %+v %v", item.Info, item.State, made.Info, made.State)
		}
	}
}

func (s *suite[S]) testListByTerms(t *testing.T) {
	tags := map[object.ID][]string{"none": nil, "x": {"x"}, "y": {"y"}, "xy": {"x", "y"}, "xyz": {"x", "y", "z"}, "xz": {"x", "z"}}
	term := map[string]string{}
	tag := func(id object.ID, opts ...object.UpdateOption) {
		t.Helper()
		_, err := s.kind.Update(s.ctx, id, func(tx *object.Tx[S]) error {
			proto.Reset(tx.State())
			for _, name := range tags[id] {
				term[name] = s.Tag(tx.State(), name)
			}
			return nil
		}, opts...)
		if err != nil {
			t.Fatal(err)
		}
	}
	for id := range tags {
		tag(id, object.Create())
	}
	check := func() {
		t.Helper()
		for _, asked := range [][]string{{"x"}, {"y"}, {"z"}, {"x", "y"}, {"y", "x"}, {"z", "y", "x"}} {
			var terms []string
			for _, a := range asked {
				terms = append(terms, term[a])
			}
			var want []object.ID
			for id, has := range tags {
				if !slices.ContainsFunc(asked, func(a string) bool { return !slices.Contains(has, a) }) {
					want = append(want, id)
				}
			}
			got := s.list(t, 2, terms...)
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("with %v: %v, want %v", asked, got, want)
			}
		}
		if got := s.list(t, 2); len(got) != len(tags) {
			t.Errorf("without terms: %v", got)
		}
	}
	check()
	tags["x"], tags["xyz"], tags["none"] = []string{"y"}, nil, []string{"z", "x"}
	for _, id := range []object.ID{"x", "xyz", "none"} {
		tag(id)
	}
	check()
	if err := Delete(s.ctx, s.kind, "xy"); err != nil {
		t.Fatal(err)
	}
	delete(tags, "xy")
	check()
	tags["xy"] = []string{"z"}
	tag("xy", object.Create())
	check()
	if got := s.list(t, 2, "no such term"); len(got) != 0 {
		t.Errorf("with a term that nothing has: %v", got)
	}
}

func (s *suite[S]) testBadPageToken(t *testing.T) {
	for _, token := range []string{"x", "e30x", "%%%", "bnVsbA=="} {
		_, err := s.kind.List(s.ctx, object.ListOptions{PageToken: token})
		wantError(t, err, object.ErrInvalid)
	}
}

func (s *suite[S]) testNewerSchema(t *testing.T) {
	s.create(t, "a", "x")
	s.exec(t, "UPDATE holdfast.objects SET schema_version = schema_version + 1 WHERE tenant_id = $1", string(s.Tenant))
	s.restart(t, object.Config{})
	for range 2 { // with nothing in memory, and with it
		_, err := s.kind.Update(s.ctx, "a", s.setting("y"))
		wantError(t, err, object.ErrNewerSchema)
		wantError(t, Delete(s.ctx, s.kind, "a"), object.ErrNewerSchema)
		s.want(t, s.ctx, "a", 1, "x")
	}
}
