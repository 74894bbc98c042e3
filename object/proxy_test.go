package object_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"holdfast/db"
)

// loss is what a proxy loses of a round trip.
type loss string

const (
	theRequest       loss = "the request"                   // it never arrives
	theAnswer        loss = "the answer"                    // it is done, and nothing of the answer comes back
	theEndOfAnswer   loss = "the end of the answer"         // all but the message that says that it is committed
	theAnswerForGood loss = "the answer and all that comes" // and nobody can connect any more, until heal
)

// proxy stands between a runtime and Postgres, and can lose one round trip: the next that holds a marker.
type proxy struct {
	listener net.Listener
	dial     func() (net.Conn, error)
	lost     chan struct{} // closed once a round trip was lost
	trips    atomic.Int64  // round trips that were answered

	mu     sync.Mutex // guards what follows
	marker []byte
	what   loss
	away   bool
	conns  map[net.Conn]struct{}
}

// newProxy opens a database through a proxy.
func newProxy(t *testing.T, serverURL string) (*proxy, *db.DB) {
	t.Helper()
	server, err := pgx.ParseConfig(serverURL)
	if err != nil {
		t.Fatal(err)
	}
	network, address := pgconn.NetworkAddress(server.Host, server.Port)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{
		listener: l, lost: make(chan struct{}), conns: map[net.Conn]struct{}{},
		dial: func() (net.Conn, error) { return net.Dial(network, address) },
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { p.serve(client) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.sever()
		serving.Wait()
	})

	u, err := url.Parse(serverURL)
	if err != nil {
		t.Fatal(err)
	}
	u.Host = l.Addr().String()
	q := u.Query()
	q.Del("host")
	q.Set("sslmode", "disable") // the proxy reads along
	u.RawQuery = q.Encode()
	d, err := db.Open(t.Context(), db.Config{URL: u.String()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return p, d
}

// lose makes the proxy lose the next round trip that holds the marker.
func (p *proxy) lose(what loss, marker string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.what, p.marker = what, []byte(marker)
}

// heal lets connections through again.
func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = false
}

func (p *proxy) sever() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// admit notes a connection; false: it was refused.
func (p *proxy) admit(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		if p.away {
			c.Close()
		}
		p.conns[c] = struct{}{}
	}
	return !p.away
}

// strike tells what to lose of a round trip that holds this, and disarms the proxy.
func (p *proxy) strike(request []byte) loss {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.marker == nil || !bytes.Contains(request, p.marker) {
		return ""
	}
	p.marker = nil
	p.away = p.what == theAnswerForGood
	return p.what
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := p.dial()
	if err != nil {
		return
	}
	defer server.Close()
	if !p.admit(client, server) {
		return
	}
	var mu sync.Mutex // guards struck
	var struck loss
	var answering sync.WaitGroup
	defer answering.Wait()
	answering.Go(func() {
		defer client.Close()
		answers := bufio.NewReader(server)
		for {
			message, err := readMessage(answers)
			if err != nil {
				return
			}
			mu.Lock()
			what := struck
			mu.Unlock()
			ready := message[0] == 'Z'
			if ready {
				p.trips.Add(1)
			}
			if what != "" && ready {
				close(p.lost)
				if what == theAnswerForGood {
					p.sever()
				}
				return
			}
			if what == "" || what == theEndOfAnswer {
				if _, err := client.Write(message); err != nil {
					return
				}
			}
		}
	})
	defer server.Close() // ends the answering, too
	const overlap = 256  // of what was read before, so that a marker in two parts is found
	buffer, from := make([]byte, 64<<10), 0
	for {
		n, err := client.Read(buffer[from:])
		if n > 0 {
			switch what := p.strike(buffer[:from+n]); what {
			case "":
			case theRequest:
				close(p.lost)
				return
			default:
				mu.Lock()
				struck = what
				mu.Unlock()
			}
			if _, err := server.Write(buffer[from : from+n]); err != nil {
				return
			}
			kept := min(overlap, from+n)
			copy(buffer, buffer[from+n-kept:from+n])
			from = kept
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				return
			}
			// The client has gone; what it asked for is still answered, to nobody.
			answering.Wait()
			return
		}
	}
}

// readMessage reads one message of the server: its type, its length, and the rest.
func readMessage(r *bufio.Reader) ([]byte, error) {
	head, err := r.Peek(5)
	if err != nil {
		return nil, err
	}
	message := make([]byte, 1+binary.BigEndian.Uint32(head[1:]))
	_, err = io.ReadFull(r, message)
	return message, err
}
