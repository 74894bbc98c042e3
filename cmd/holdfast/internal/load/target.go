package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
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
	// HTTP2 sends unary calls over shared HTTP/2 connections instead of one HTTP/1.1 connection a session.
	HTTP2 bool

	shared sync.Map // token -> *http.Client, for HTTP2
}

// Caller makes unary calls for one session. It is not safe for concurrent use.
type Caller interface {
	// Call sends req to a procedure such as "/holdfast.conversation.v1.ConversationService/GetConversation" and returns
	// the encoded response, which is valid until the next call. What the server refused is a *connect.Error.
	Call(ctx context.Context, procedure string, req proto.Message) ([]byte, error)
	// Close closes the connection, if it is the caller's own.
	Close()
}

// Caller returns a caller that presents token. It connects at its first call.
func (t *Target) Caller(token string) Caller {
	if !t.HTTP2 {
		return newConn(t.URL, t.Codec, token)
	}
	client, ok := t.shared.Load(token)
	if !ok {
		client, _ = t.shared.LoadOrStore(token, NewHTTP2Client())
	}
	return &sharedCaller{
		client: client.(*http.Client), //nolint:forcetypeassert // nothing else is stored
		target: t, token: token,
	}
}

// Close closes the connections that sessions shared.
func (t *Target) Close() {
	t.shared.Range(func(_, client any) bool {
		client.(*http.Client).CloseIdleConnections() //nolint:forcetypeassert // nothing else is stored
		return true
	})
}

// NewHTTP2Client returns a client that speaks HTTP/2 without TLS, as a rule over one connection.
func NewHTTP2Client() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Client{Transport: &http.Transport{Protocols: protocols}}
}

// sharedCaller calls over net/http, on connections that it shares with the other sessions of its token.
type sharedCaller struct {
	client *http.Client
	target *Target
	token  string
	body   []byte
}

func (c *sharedCaller) Call(ctx context.Context, procedure string, req proto.Message) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var err error
	if c.body, err = c.target.Codec.appendTo(c.body[:0], req); err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.target.URL.JoinPath(procedure).String(), strings.NewReader(string(c.body)))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/"+string(c.target.Codec))
	r.Header.Set("Connect-Protocol-Version", "1")
	r.Header.Set("Authorization", "Bearer "+c.token)
	// Said explicitly, or net/http asks for gzip and unpacks it.
	r.Header.Set("Accept-Encoding", "identity")
	res, err := c.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, refusal(res.StatusCode, body)
	}
	return body, nil
}

func (c *sharedCaller) Close() {}

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
