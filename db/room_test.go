package db_test

import (
	"bytes"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"holdfast/db"
)

// A connection writes the same with a room and without, whatever fits; and what it still has of a room nobody else gets.
func TestRoom(t *testing.T) {
	t.Parallel()
	sizes := []int{0, 10, 900, 1024, 1025, 5000, 70_000, 10, 300_000, 5000, 3 << 20, 20}
	room, lent := &db.Room{}, 0
	for _, flushed := range []bool{true, false} {
		for _, pending := range []int{0, 5, 2000} {
			for i, size := range sizes {
				var wrote, wants, others bytes.Buffer
				f, plain, other := pgproto3.NewFrontend(nil, &wrote), pgproto3.NewFrontend(nil, &wants), pgproto3.NewFrontend(nil, &others)
				send := func(f *pgproto3.Frontend, n int, fill byte) {
					if n > 0 {
						f.Send(&pgproto3.CopyData{Data: bytes.Repeat([]byte{fill}, n)})
					}
				}
				send(f, pending, 'p')
				send(plain, pending, 'p')
				room.LendTo(f, sizes[(i+1)%len(sizes)])
				send(f, size, 'x')
				send(plain, size, 'x')
				if flushed && f.Flush() != nil {
					t.Fatal("not flushed")
				}
				again := room.TakeBackFrom(f)
				if !again {
					room = &db.Room{}
				} else {
					lent++
				}
				// Another connection writes into the room, and only then the first one writes the rest.
				room.LendTo(other, size)
				send(other, 50_000, 'o')
				send(f, 10, 'y')
				send(plain, 10, 'y')
				for _, f := range []*pgproto3.Frontend{f, plain, other} {
					if err := f.Flush(); err != nil {
						t.Fatal(err)
					}
				}
				if !bytes.Equal(wrote.Bytes(), wants.Bytes()) {
					t.Errorf("flushed %t, %d pending, %d: with a room %d bytes were written, without %d", flushed, pending, size, wrote.Len(), wants.Len())
				}
				if n := bytes.Count(others.Bytes(), []byte("o")); n != 50_000 {
					t.Errorf("flushed %t, %d pending, %d: the other connection wrote %d", flushed, pending, size, n)
				}
				if !room.TakeBackFrom(other) {
					room = &db.Room{}
				}
			}
		}
	}
	if lent < len(sizes) {
		t.Errorf("the room was lent again %d times", lent)
	}
}
