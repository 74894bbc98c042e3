package object_test

import (
	"context"
	"fmt"
	"testing"

	"holdfast/object"
)

// Whatever is changed while one pages, all pages together have every object, and they end.
func TestAListLosesNothing(t *testing.T) {
	t.Parallel()
	for _, matching := range []bool{false, true} {
		for name, o := range map[string]object.ListOptions{"all": {}, "terms": {Terms: []string{"a"}}, "any term": {AnyTerm: []string{"a", "b"}}} {
			for o.PageSize = 1; o.PageSize <= 4; o.PageSize++ {
				t.Run(fmt.Sprint(name, matching, o.PageSize), func(t *testing.T) {
					t.Parallel()
					b := setup(t)
					for i := range 8 {
						id := fmt.Sprint("o", i)
						b.update(t, object.ID(id), tagged(id, "a"), object.Upsert())
					}
					for _, table := range []string{"objects", "terms"} { // activity moves in steps
						b.exec(t, "UPDATE holdfast."+table+" SET activity_time = activity_time - interval '2 minutes' WHERE tenant_id = $1", string(b.Tenant))
					}
					toys := toyKind(newRuntime(t, b.DB, object.Config{})) // whose cache is empty
					seen, pages, o := map[string]int{}, 0, o
					for {
						list := toys.List
						if matching {
							list = func(ctx context.Context, o object.ListOptions) (object.Page[toy], error) {
								return toys.ListMatching(ctx, o, func(toy) bool { return true })
							}
						}
						page, err := list(b.ctx, o)
						if err != nil {
							t.Fatal(err)
						}
						for _, s := range page.Items {
							seen[s.State.GetName()]++
						}
						if o.PageToken = page.Next; o.PageToken == "" {
							break
						}
						if pages++; pages > 20 {
							t.Fatal("it does not end")
						}
						// What is still to come is changed, what was there, and what is new comes in between.
						for _, id := range []string{fmt.Sprint("o", pages-1), "o7", fmt.Sprint("new", pages)} {
							if _, err := toys.Update(b.ctx, object.ID(id), tagged(id, "a"), object.Upsert()); err != nil {
								t.Fatal(err)
							}
						}
					}
					for i := range 8 {
						if n := seen[fmt.Sprint("o", i)]; n < 1 || n > 3 {
							t.Errorf("o%d comes %d times", i, n)
						}
					}
				})
			}
		}
	}
}
