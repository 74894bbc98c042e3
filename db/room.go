package db

import (
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// room is a buffer that is lent to a connection for what it writes next. A connection begins with a small one, grows it by
// quarters and throws it away: for large pipelines that was a sixth of all that a server allocates. It is a message to
// Postgres of no bytes, because only a message's Encode gets hold of the connection's buffer.
type room struct {
	buf []byte
	was []byte // what the connection had before
	// asked: it is to be lent or taken back, and was not yet.
	lent, asked bool
}

// roomForRest is for what a pipeline has beside its large parameters: the scope, and the frames of the messages.
const roomForRest = 1 << 10

// lend makes conn write into the room, where there is room for large parameters of size bytes.
func (r *room) lend(conn *pgconn.PgConn, size int) {
	if !conn.IsClosed() { // or it may be writing its farewell
		r.lendTo(conn.Frontend(), size)
	}
}

func (r *room) lendTo(f *pgproto3.Frontend, size int) {
	if size += roomForRest; cap(r.buf) < size {
		r.buf = make([]byte, 0, size+size/4)
	}
	r.asked = true
	f.Send(r)
}

// takeBack gets the room back once the pipeline was written, and tells whether it may be lent again. What was written is gone
// from it, and as a rule conn has another buffer by then.
func (r *room) takeBack(conn *pgconn.PgConn) bool {
	return r.lent && !conn.IsClosed() && r.takeBackFrom(conn.Frontend())
}

func (r *room) takeBackFrom(f *pgproto3.Frontend) bool {
	r.asked = true
	f.Send(r)
	return !r.asked && !r.lent && cap(r.buf) <= maxKept
}

// Encode implements [pgproto3.Message].
func (r *room) Encode(pending []byte) ([]byte, error) {
	r.asked = false
	if !r.lent {
		r.was, r.lent = pending[:0], true
		return append(r.buf[:0], pending...), nil
	}
	ours := cap(pending) > 0 && &pending[:1][0] == &r.buf[:1][0]
	if ours && len(pending) > 0 {
		return pending, nil // it is still to be written: the room is the connection's for good
	}
	was := r.was
	r.was, r.lent = nil, false
	if ours {
		return was, nil
	}
	return pending, nil
}

// Decode implements [pgproto3.Message]; nobody sends one.
func (*room) Decode([]byte) error { return nil }

// Frontend implements [pgproto3.FrontendMessage].
func (*room) Frontend() {}
