package object_test

import (
	"os"
	"sync"
	"testing"
	"time"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"

	"google.golang.org/protobuf/proto"
	"holdfast/db/dbtest"
	"holdfast/object"
)

func TestMain(m *testing.M) { os.Exit(dbtest.Main(m)) }

func TestSmoke(t *testing.T) {
	b := dbtest.New(t)
	rt := object.NewRuntime(b.DB, object.Config{})
	defer rt.Close(t.Context())
	k := object.Register(rt, object.KindConfig[*conversationv1.ConversationState]{
		Name: "conversation", SchemaVersion: 1, TTL: 48 * time.Hour, Recent: "messages", RecentKeep: 20,
		Collections: map[string]proto.Message{"messages": &conversationv1.Message{}},
		Terms:       func(s *conversationv1.ConversationState) []string { return []string{"p=" + s.GetProjectId()} },
	})
	ctx := b.As(t, "u1")
	_, err := k.Update(ctx, "c1", func(tx *object.Tx[*conversationv1.ConversationState]) error {
		tx.State().Title = "x"
		return nil
	}, object.Create())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	start := time.Now()
	const n, per = 64, 100
	for range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range per {
				_, err := k.Update(ctx, "c1", func(tx *object.Tx[*conversationv1.ConversationState]) error {
					s := tx.State()
					s.LastSeq++
					tx.Put("messages", object.SeqKey(s.LastSeq), &conversationv1.Message{Seq: s.LastSeq, Text: "hello there, this is a message"})
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		}()
	}
	wg.Wait()
	t.Log(float64(n*per)/time.Since(start).Seconds(), "appends/s on one object")
	s, err := k.View(ctx, "c1", object.WithRecent(20))
	if err != nil {
		t.Fatal(err)
	}
	t.Log(s.Version, s.State.GetLastSeq(), len(s.Recent), s.Recent[0].Key)
	l, err := k.List(ctx, object.ListOptions{Terms: []string{"p="}})
	t.Log(len(l.Items), err)
	e, err := k.Entries(ctx, "c1", "messages", object.EntriesOptions{Before: object.SeqKey(100), PageSize: 10})
	t.Log(len(e.Entries), e.Entries[0].Key, e.More, err)
	for c, err := range k.Watch(ctx, "c1", s.Version-3, 10) {
		if err != nil {
			t.Fatal(err)
		}
		t.Log(c.Version, c.Reset, len(c.Entries))
		break
	}
	if err := k.Delete(ctx, "c1"); err != nil {
		t.Fatal(err)
	}
	_, err = k.View(ctx, "c1")
	t.Log(err)
}
