package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"connectrpc.com/connect"
	"github.com/valyala/fasthttp"
	"google.golang.org/protobuf/proto"
)

// callTimeout bounds one request. What takes longer has failed.
const callTimeout = 30 * time.Second

// Target is the server under load.
type Target struct {
	// URL is the API's base URL, http only.
	URL *url.URL
	// Codec of unary calls. Watch streams always use Proto.
	Codec Codec
}

// caller makes unary calls over one HTTP/1.1 connection, one at a time. It connects at its first call, and again after an
// error. fasthttp costs the generator a fraction of net/http's client, which on a shared machine would measure itself.
type caller struct {
	client fasthttp.HostClient
	target *Target
	token  string
	body   []byte
	reply  fasthttp.Response
}

func (t *Target) caller(token string) *caller {
	return &caller{target: t, token: token, client: fasthttp.HostClient{
		Addr: t.URL.Host, MaxConns: 1, NoDefaultUserAgentHeader: true,
		MaxIdemponentCallAttempts: 1, // a call that failed counts as failed
		Dial:                      func(addr string) (net.Conn, error) { return net.DialTimeout("tcp", addr, callTimeout) },
	}}
}

// call sends req to a procedure such as "/holdfast.conversation.v1.ConversationService/GetConversation" and returns the
// encoded response, which is valid until the next call. A refusal of the server is a *connect.Error.
func (c *caller) call(ctx context.Context, procedure string, req proto.Message) ([]byte, error) {
	var err error
	if c.body, err = c.target.Codec.appendTo(c.body[:0], req); err != nil {
		return nil, err
	}
	r := fasthttp.AcquireRequest()
	defer fasthttp.ReleaseRequest(r)
	r.SetRequestURI(c.target.URL.String() + procedure)
	r.Header.SetMethod(http.MethodPost)
	r.Header.SetContentType("application/" + string(c.target.Codec))
	r.Header.Set("Connect-Protocol-Version", "1")
	r.Header.Set("Authorization", "Bearer "+c.token)
	r.SetBodyRaw(c.body)
	deadline := time.Now().Add(callTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.client.DoDeadline(r, &c.reply, deadline); err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	if status := c.reply.StatusCode(); status != http.StatusOK {
		return nil, refusal(status, c.reply.Body())
	}
	return c.reply.Body(), nil
}

func (c *caller) close() { c.client.CloseIdleConnections() }

// newHTTP2Client returns a client that speaks HTTP/2 without TLS, as a rule over one connection.
func newHTTP2Client() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: protocols}}
}

// refusal is the error that a response other than 200 carries: Connect's JSON object with a code and a message.
func refusal(status int, body []byte) error {
	var e struct {
		Code    connect.Code `json:"code"`
		Message string       `json:"message"`
	}
	if err := json.Unmarshal(body, &e); err != nil || e.Code == 0 {
		return fmt.Errorf("HTTP status %d: %.200s", status, body)
	}
	return connect.NewError(e.Code, errors.New(e.Message))
}

// codeOf names an error in counts: Connect's code, or "transport" for what is no answer of the server.
func codeOf(err error) string {
	if ce, ok := errors.AsType[*connect.Error](err); ok {
		return ce.Code().String()
	}
	return "transport"
}
