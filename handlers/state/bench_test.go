package state

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
)

// The last 20 entries of a list are read as fast whatever its length: see TestPlans for how. The query names a bound, so that it is the
// database that is asked each time.
func BenchmarkLastTwenty(b *testing.B) {
	of := setup(b)
	c := of.as(b, ada)
	conn, err := pgx.Connect(b.Context(), of.SuperuserURL)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, rows := range []int{100, 1_000_000} {
		ref := fmt.Sprintf(`'ref':{'type':'list','name':'%d'}`, rows)
		c.apply(b, `{`+ref+`}`)
		id := c.read(b, `{'reads':[{`+ref+`}]}`)[0].GetId()
		if _, err := conn.Exec(b.Context(), `INSERT INTO holdfast.entries (tenant_id, kind, object_id, owner_id, collection, key, version, body)
			SELECT $1, 'state', $2, 'ada', 'entries', 'l/' || lpad(i::text, 12, '0'), 1, '{"text": "an entry"}' FROM generate_series(1, $3::integer) i`,
			string(of.Tenant), id, rows); err != nil {
			b.Fatal(err)
		}
		if _, err := conn.Exec(b.Context(), "VACUUM ANALYZE holdfast.entries"); err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprint(rows), func(b *testing.B) {
			for b.Loop() {
				o := c.read(b, `{'reads':[{`+ref+`,'queries':[{'collection':'l','reverse':true,'limit':20,'before':'9'}]}]}`)[0]
				if n := len(o.GetPages()[0].GetEntries()); n != 20 {
					b.Fatalf("%d entries", n)
				}
			}
		})
	}
}
