package object_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"holdfast/db/dbtest"
	"holdfast/object"
)

func TestPerf(t *testing.T) {
	b := dbtest.New(t)
	rt := object.NewRuntime(b.DB, object.Config{})
	defer rt.Close(t.Context())
	k := object.Register(rt, object.KindConfig[*conversationv1.ConversationState]{
		Name: "conversation", SchemaVersion: 1, TTL: 48 * time.Hour, Recent: "messages", RecentKeep: 20,
		Collections: map[string]proto.Message{"messages": &conversationv1.Message{}},
	})
	ctx := b.As(t, "u1")
	app := func(id object.ID) {
		_, err := k.Update(ctx, id, func(tx *object.Tx[*conversationv1.ConversationState]) error {
			s := tx.State()
			s.LastSeq++
			s.TokenCount += 25
			tx.Put("messages", object.SeqKey(s.LastSeq), &conversationv1.Message{Seq: s.LastSeq, Role: 1, Modality: 1, Status: 2, Text: "hello there, this is a message of about one hundred bytes, which is the usual size of what people say", TokenCount: 25, TokenCountEstimated: true, CreateTime: timestamppb.New(tx.Now()), UpdateTime: timestamppb.New(tx.Now())})
			return nil
		}, object.Upsert())
		if err != nil {
			panic(err)
		}
	}
	run := func(name string, workers int, d time.Duration, f func(i int)) {
		var n atomic.Int64
		var wg sync.WaitGroup
		start := time.Now()
		for i := range workers {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for time.Since(start) < d {
					f(i)
					n.Add(1)
				}
			}()
		}
		wg.Wait()
		t.Logf("%s: %.0f/s, mean latency %v", name, float64(n.Load())/time.Since(start).Seconds(), time.Since(start)*time.Duration(workers)/time.Duration(n.Load()))
	}
	id := func(i int) object.ID { return object.ID(fmt.Sprintf("c%d", i)) }
	run("warm", 1000, time.Second, func(i int) { app(id(i)) })
	for _, w := range []int{1000} {
		run(fmt.Sprint("append own ", w), w, 3*time.Second, func(i int) { app(id(i)) })
	}

	for _, w := range []int{1, 64} {
		run(fmt.Sprint("view20 ", w), w, 3*time.Second, func(i int) {
			if _, err := k.View(ctx, id(i), object.WithRecent(20)); err != nil {
				panic(err)
			}
		})
	}
}
