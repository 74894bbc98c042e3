package load

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"
)

// Conn is a Caller over one persistent HTTP/1.1 connection. net/http's client costs as much per call as the server
// does, in goroutines, headers and copies; on a shared machine it would measure itself.
//
// Connect's unary protocol is little enough to write by hand: a POST of the encoded request, answered with status 200
// and the encoded response, or with another status and a JSON object. Of HTTP/1.1 it reads what net/http's server
// writes: a body with a length or in chunks, never compressed, for it does not ask for that.
//
// After an error the connection is closed, and the next call makes a new one.
type Conn struct {
	addr, prefix string
	token        string
	codec        Codec

	conn    net.Conn
	release func() bool // stops watching the context that the connection was made under
	reader  *bufio.Reader
	heads   map[string][]byte // per procedure: the request's head up to the value of Content-Length
	body    []byte            // the request's body
	out     []byte            // the request
	in      []byte            // the response's body
}

func newConn(base *url.URL, codec Codec, token string) *Conn {
	addr := base.Host
	if base.Port() == "" {
		addr = net.JoinHostPort(base.Hostname(), "80")
	}
	return &Conn{addr: addr, prefix: base.Path, token: token, codec: codec, heads: map[string][]byte{}}
}

// Call implements Caller.
func (c *Conn) Call(ctx context.Context, procedure string, req proto.Message) ([]byte, error) {
	var err error
	if c.body, err = c.codec.appendTo(c.body[:0], req); err != nil {
		return nil, err
	}
	if c.conn == nil {
		if err := c.dial(ctx); err != nil {
			return nil, err
		}
	}
	c.out = append(c.out[:0], c.head(procedure)...)
	c.out = strconv.AppendInt(c.out, int64(len(c.body)), 10)
	c.out = append(c.out, "\r\n\r\n"...)
	c.out = append(c.out, c.body...)
	err = c.conn.SetDeadline(time.Now().Add(callTimeout))
	if err == nil {
		_, err = c.conn.Write(c.out)
	}
	status := 0
	if err == nil {
		status, err = c.readResponse()
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", procedure, err)
	}
	if status != http.StatusOK {
		return nil, refusal(status, c.in)
	}
	return c.in, nil
}

// Close implements Caller.
func (c *Conn) Close() {
	if c.conn == nil {
		return
	}
	c.release()
	c.conn.Close()
	c.conn = nil
}

func (c *Conn) dial(ctx context.Context) error {
	d := net.Dialer{Timeout: callTimeout}
	conn, err := d.DialContext(ctx, "tcp", c.addr)
	if err != nil {
		return err
	}
	c.conn = conn
	c.release = context.AfterFunc(ctx, func() { conn.Close() })
	if c.reader == nil {
		c.reader = bufio.NewReader(conn)
	} else {
		c.reader.Reset(conn)
	}
	return nil
}

func (c *Conn) head(procedure string) []byte {
	h, ok := c.heads[procedure]
	if !ok {
		h = fmt.Appendf(nil, "POST %s%s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/%s\r\n"+
			"Connect-Protocol-Version: 1\r\nAuthorization: Bearer %s\r\nContent-Length: ",
			c.prefix, procedure, c.addr, c.codec, c.token)
		c.heads[procedure] = h
	}
	return h
}

// readResponse reads one response, its body into c.in, and returns its status.
func (c *Conn) readResponse() (status int, err error) {
	line, err := c.line()
	if err != nil {
		return 0, err
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.1 ")) {
		return 0, fmt.Errorf("not an HTTP/1.1 response: %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, fmt.Errorf("not an HTTP/1.1 response: %q", line)
	}
	length, chunked := 0, false
	for {
		if line, err = c.line(); err != nil {
			return 0, err
		}
		if len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if length, err = strconv.Atoi(string(value)); err != nil || length < 0 {
				return 0, fmt.Errorf("bad content length %q", value)
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			chunked = true
		case bytes.EqualFold(name, []byte("Content-Encoding")):
			return 0, fmt.Errorf("compressed response (%s), which was not asked for", value)
		}
	}
	c.in = c.in[:0]
	if !chunked {
		return status, c.read(length)
	}
	for {
		if line, err = c.line(); err != nil {
			return 0, err
		}
		n, err := strconv.ParseUint(string(line), 16, 31)
		if err != nil {
			return 0, fmt.Errorf("bad chunk size %q", line)
		}
		if err := c.read(int(n)); err != nil {
			return 0, err
		}
		// The empty line that ends a chunk; after the last one, the empty trailer.
		if line, err = c.line(); err != nil {
			return 0, err
		}
		if len(line) > 0 {
			return 0, errors.New("chunk without an end")
		}
		if n == 0 {
			return status, nil
		}
	}
}

// line reads a line without its end. It is valid until the next read.
func (c *Conn) line() ([]byte, error) {
	b, err := c.reader.ReadSlice('\n')
	return bytes.TrimRight(b, "\r\n"), err
}

// read appends n bytes to c.in.
func (c *Conn) read(n int) error {
	have := len(c.in)
	c.in = append(c.in, make([]byte, n)...) // compiles to growing in place: no second slice is made
	_, err := io.ReadFull(c.reader, c.in[have:])
	return err
}
