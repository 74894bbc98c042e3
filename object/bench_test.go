package object_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/object"
)

// The runtime alone, without HTTP: go test -run '^$' -bench . -cpuprofile cpu.out ./object

// benchWriters is how many goroutines work at once: group commit is about callers that wait together.
const benchWriters = 256

var benchEntry = &typepb.EnumValue{Name: strings.Repeat("hundred bytes of text ", 5)}

// appendEntry is a small change of the state and a new entry.
func appendEntry(b *testing.B, tb *testBundle, id object.ID) {
	b.Helper()
	_, err := tb.toys.Update(tb.ctx, id, func(tx *object.Tx[toy]) error {
		tx.State().Name = fmt.Sprint(tx.Version())
		tx.Put(toyEntries, object.SeqKey(int64(tx.Version())), benchEntry)
		return nil
	}, object.Upsert())
	if err != nil {
		b.Error(err)
	}
}

func BenchmarkAppend(b *testing.B) {
	for name, objects := range map[string]int64{"own objects": benchWriters, "one hot object": 1} {
		b.Run(name, func(b *testing.B) {
			tb := setup(b)
			var writers atomic.Int64
			b.SetParallelism(benchWriters)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				id := object.ID(fmt.Sprint("o", writers.Add(1)%objects))
				for pb.Next() {
					appendEntry(b, tb, id)
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
		})
	}
	b.Run("alone", func(b *testing.B) {
		tb := setup(b)
		b.ReportAllocs()
		for b.Loop() {
			appendEntry(b, tb, "a")
		}
	})
}

// BenchmarkEntries reads a page of 50 entries in the middle of 1,024.
func BenchmarkEntries(b *testing.B) {
	tb := setup(b)
	_, err := tb.toys.Update(tb.ctx, "a", func(tx *object.Tx[toy]) error {
		for i := range 1024 {
			tx.Put(toyEntries, object.SeqKey(int64(i)), benchEntry)
		}
		return nil
	}, object.Upsert())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		page, err := tb.toys.Entries(tb.ctx, "a", toyEntries, object.EntriesOptions{After: object.SeqKey(300), PageSize: 50})
		if err != nil || len(page.Entries) != 50 {
			b.Fatal(len(page.Entries), err)
		}
	}
}

// BenchmarkWake reads the newest entries of an object of 200 changes with two entries each that sleeps.
func BenchmarkWake(b *testing.B) {
	tb := setup(b)
	for i := range 200 {
		if _, err := tb.toys.Update(tb.ctx, "a", func(tx *object.Tx[toy]) error {
			tx.Put(toyEntries, object.SeqKey(int64(i)), benchEntry)
			tx.Put(toyEntries, fmt.Sprintf("client-%d", i), benchEntry)
			return nil
		}, object.Upsert(), object.Request(fmt.Sprint(i), benchEntry)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		b.StopTimer()
		for slept := int64(0); slept == 0; {
			h, err := tb.rt.Hibernate(tb.AsService(b), object.HibernateConfig{Idle: 1})
			if err != nil {
				b.Fatal(err)
			}
			slept = h.Objects
		}
		toys := toyKind(newRuntime(b, tb.DB, object.Config{}))
		b.StartTimer()
		if snap, err := toys.View(tb.ctx, "a", object.WithRecent(4)); err != nil || len(snap.Recent) != 4 {
			b.Fatal(len(snap.Recent), err)
		}
	}
}

func BenchmarkView(b *testing.B) {
	for _, recent := range []int{0, 4} {
		for name, config := range map[string]object.Config{"in memory": {}, "not in memory": {CacheBytes: 1}} {
			b.Run(fmt.Sprintf("%d entries %s", recent, name), func(b *testing.B) {
				tb := setup(b)
				const objects = 256
				for i := range objects {
					for range 5 {
						appendEntry(b, tb, object.ID(fmt.Sprint("o", i)))
					}
				}
				toys := toyKind(newRuntime(b, tb.DB, config))
				var readers atomic.Int64
				b.SetParallelism(64)
				b.ReportAllocs()
				b.ResetTimer()
				b.RunParallel(func(pb *testing.PB) {
					for i := readers.Add(1); pb.Next(); i++ {
						if _, err := toys.View(tb.ctx, object.ID(fmt.Sprint("o", i%objects)), object.WithRecent(recent)); err != nil {
							b.Error(err)
						}
					}
				})
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "views/s")
			})
		}
	}
}
