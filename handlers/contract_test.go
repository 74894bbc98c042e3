package handlers_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	errorv1 "holdfast/gen/holdfast/error/v1"
)

// problemOf returns the Problem of an answer by any protocol, or nil.
func problemOf(t *testing.T, res *http.Response) *errorv1.Problem {
	t.Helper()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	p := &errorv1.Problem{}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/grpc") {
		text := res.Header.Get("Grpc-Status-Details-Bin") + res.Trailer.Get("Grpc-Status-Details-Bin")
		if _, web, found := bytes.Cut(bytes.ToLower(body), []byte("grpc-status-details-bin: ")); found && text == "" {
			line, _, _ := bytes.Cut(body[len(body)-len(web):], []byte("\r\n"))
			text = string(line)
		}
		raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text, "="))
		status := &spb.Status{}
		if err != nil || proto.Unmarshal(raw, status) != nil || len(status.GetDetails()) == 0 || status.GetDetails()[0].UnmarshalTo(p) != nil {
			return nil
		}
		return p
	}
	if strings.HasPrefix(res.Header.Get("Content-Type"), "application/connect+") {
		if body, err = firstFrame(bytes.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
	var e struct {
		Details []struct {
			Type  string          `json:"type"`
			Debug json.RawMessage `json:"debug"`
		} `json:"details"`
	}
	if json.Unmarshal(body, &e) != nil || len(e.Details) == 0 || e.Details[0].Type != "holdfast.error.v1.Problem" || protojson.Unmarshal(e.Details[0].Debug, p) != nil {
		t.Logf("%d %s", res.StatusCode, body)
		return nil
	}
	return p
}

// Every error that leaves the server has a Problem, also where Connect or the transport would have made one of its own.
func TestEveryErrorHasAProblem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.key(t, "ada")
	const (
		get     = "/holdfast.conversation.v1.ConversationService/GetConversation"
		create  = "/holdfast.conversation.v1.ConversationService/CreateConversation"
		w1      = `{"items":[{"itemId":"i","conversation":{"conversationId":"c1"}}]}`
		nothing = "/holdfast.conversation.v1.ConversationService/Nothing"
		check   = "/grpc.health.v1.Health/Check"
	)
	frame := func(flag byte, body string) string {
		return string(binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(body)))) + body
	}
	const c1 = `{"conversationId":"c1"}`
	for name, tt := range map[string]struct {
		verb, path, kind, body string
		headers                []string
		reason                 string
	}{
		"no credential":                    {"POST", get, "application/json", c1, []string{"Authorization: "}, "CREDENTIAL_MISSING"},
		"no credential, stream":            {"POST", watchRPC, "application/connect+json", frame(0, w1), []string{"Authorization: "}, "CREDENTIAL_MISSING"},
		"not there":                        {"POST", get, "application/json", c1, nil, "NOT_FOUND"},
		"an unknown method":                {"POST", nothing, "application/json", `{}`, nil, "METHOD_UNKNOWN"},
		"an unknown method by GET":         {"GET", nothing, "", "", nil, "METHOD_UNKNOWN"},
		"an unknown method, stream":        {"POST", nothing, "application/connect+json", frame(0, `{}`), nil, "METHOD_UNKNOWN"},
		"an unknown method, gRPC-web":      {"POST", nothing, "application/grpc-web+proto", frame(0, ""), nil, "METHOD_UNKNOWN"},
		"an unknown service":               {"POST", "/holdfast.nothing.v1.NothingService/Get", "application/json", `{}`, nil, "METHOD_UNKNOWN"},
		"an unknown service, gRPC-web":     {"POST", "/holdfast.nothing.v1.NothingService/Get", "application/grpc-web+proto", frame(0, ""), nil, "METHOD_UNKNOWN"},
		"an unknown page":                  {"GET", "/favicon.ico", "", "", nil, "METHOD_UNKNOWN"},
		"another verb":                     {"PUT", get, "application/json", c1, nil, "METHOD_UNKNOWN"},
		"DELETE":                           {"DELETE", get, "", "", nil, "METHOD_UNKNOWN"},
		"GET of what changes":              {"GET", create + "?encoding=json&message={}", "", "", nil, "METHOD_UNKNOWN"},
		"GET of a stream":                  {"GET", watchRPC + "?encoding=json&message={}", "", "", nil, "METHOD_UNKNOWN"},
		"a form without a name":            {"POST", get, "", c1, nil, "BODY_BROKEN"},
		"an unknown form":                  {"POST", get, "text/plain", c1, nil, "BODY_BROKEN"},
		"a form of forms":                  {"POST", get, "application/x-www-form-urlencoded", "conversationId=c1", nil, "BODY_BROKEN"},
		"an unknown codec":                 {"POST", get, "application/grpc+xml", frame(0, ""), nil, "BODY_BROKEN"},
		"another charset":                  {"POST", get, "application/json; charset=latin1", c1, nil, "BODY_BROKEN"},
		"a unary call as a stream":         {"POST", get, "application/connect+json", frame(0, c1), nil, "BODY_BROKEN"},
		"a stream as a unary call":         {"POST", watchRPC, "application/json", c1, nil, "BODY_BROKEN"},
		"an unknown compression":           {"POST", get, "application/json", c1, []string{"Content-Encoding: br"}, "COMPRESSION_REFUSED"},
		"an unknown compression, stream":   {"POST", watchRPC, "application/connect+json", frame(1, w1), []string{"Connect-Content-Encoding: zstd"}, "COMPRESSION_REFUSED"},
		"an unknown compression, gRPC-web": {"POST", get, "application/grpc-web+json", frame(1, c1), []string{"Grpc-Encoding: deflate"}, "COMPRESSION_REFUSED"},
		"compressed without a credential":  {"POST", check, "application/json", `{}`, []string{"Content-Encoding: gzip"}, "COMPRESSION_REFUSED"},
		"no message":                       {"POST", watchRPC, "application/connect+json", "", nil, "BODY_BROKEN"},
		"no message, gRPC-web":             {"POST", get, "application/grpc-web+json", "", nil, "BODY_BROKEN"},
		"two messages":                     {"POST", watchRPC, "application/connect+json", frame(0, w1) + frame(0, w1), nil, "BODY_BROKEN"},
		"two messages, gRPC-web":           {"POST", get, "application/grpc-web+json", frame(0, c1) + frame(0, c1), nil, "BODY_BROKEN"},
		"a head without a body":            {"POST", get, "application/grpc-web+json", "\x00\x00\x00", nil, "BODY_BROKEN"},
		"too large":                        {"POST", get, "application/json", `{"conversationId":"` + strings.Repeat("c", 600<<10) + `"}`, nil, "SIZE_EXCEEDED"},
		"too large, gRPC-web":              {"POST", get, "application/grpc-web+json", frame(0, strings.Repeat("c", 600<<10)), nil, "SIZE_EXCEEDED"},
		"too many values":                  {"POST", create, "application/json", `{"conversation":{"labels":[` + strings.Repeat("1,", 60_000) + `1]}}`, nil, "SIZE_EXCEEDED"},
		"a deadline that is over":          {"POST", get, "application/json", c1, []string{"Connect-Timeout-Ms: 0"}, "DEADLINE_EXCEEDED"},
		"a deadline that is over, gRPC":    {"POST", get, "application/grpc-web+json", frame(0, c1), []string{"Grpc-Timeout: 0n"}, "DEADLINE_EXCEEDED"},
		"a page token of another list":     {"POST", "/holdfast.conversation.v1.ConversationService/ListConversations", "application/json", `{"pageToken":"x"}`, nil, "PAGE_TOKEN_INVALID"},
		"an unknown health":                {"POST", check, "application/json", `{"service":"nothing"}`, nil, "NOT_FOUND"},
		"health misspelt":                  {"POST", check, "application/json", `{"servise":"nothing"}`, nil, "FIELD_UNKNOWN"},
		"reflection over HTTP/1.1":         {"POST", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "application/connect+json", frame(0, `{}`), nil, "METHOD_UNKNOWN"},
		"a version that is not":            {"POST", get, "application/json", c1, []string{"Connect-Protocol-Version: 2"}, "BODY_BROKEN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			req, err := http.NewRequestWithContext(t.Context(), tt.verb, b.url+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range append([]string{key}, tt.headers...) {
				name, value, _ := strings.Cut(h, ": ")
				req.Header.Set(name, value)
			}
			if tt.kind != "" {
				req.Header.Set("Content-Type", tt.kind)
			}
			res, err := b.http.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if p := problemOf(t, res); p.GetReason() != tt.reason || p.GetRetry() == 0 {
				t.Errorf("%d %v, want %s", res.StatusCode, p, tt.reason)
			}
		})
	}
}

func TestARequestThatNeverEndsGetsAProblem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.key(t, "ada")
	for name, sent := range map[string]string{
		"endless trailers":   "2\r\n{}\r\n0\r\n" + strings.Repeat("X-Trailer: "+strings.Repeat("x", 500)+"\r\n", 200),
		"a chunk of no size": "zz\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(b.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			_, err = fmt.Fprintf(conn, "POST /holdfast.conversation.v1.ConversationService/GetConversation HTTP/1.1\r\nHost: x\r\n%s\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n%s", key, sent)
			if err != nil && !errors.Is(err, net.ErrClosed) {
				t.Log(err) // the server may have hung up already
			}
			answer, _ := io.ReadAll(conn) // a reset may follow the answer
			if !strings.Contains(string(answer), `"type":"holdfast.error.v1.Problem"`) || !strings.Contains(string(answer), `"reason":"BODY_BROKEN"`) {
				t.Errorf("%s", answer)
			}
		})
	}
}

// What a caller gives up, a client's library may answer by itself; what the server says has a Problem.
func TestProblemsReachEveryClient(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.key(t, "ada")
	create := registered()["/holdfast.conversation.v1.ConversationService/CreateConversation"]
	if got := b.call(t, create, `{"conversationId":"c1"}`, key); got.code != "ok" {
		t.Fatalf("%+v", got)
	}
	for name, options := range map[string][]connect.ClientOption{
		"connect": nil, "connect with JSON": {connect.WithProtoJSON()}, "gRPC-web": {connect.WithGRPCWeb()},
	} {
		options = append(options, connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
			return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
				_, token, _ := strings.Cut(key, ": ")
				req.Header().Set("Authorization", token)
				return next(ctx, req)
			}
		})))
		c := conversationv1connect.NewConversationServiceClient(b.http, b.url, options...)
		_, err := c.UpdateConversation(t.Context(), &conversationv1.UpdateConversationRequest{ConversationId: "c1", IfVersion: new(int64(7)), Conversation: &conversationv1.Conversation{Title: "x"}})
		e, ok := errors.AsType[*connect.Error](err)
		if !ok || len(e.Details()) == 0 {
			t.Fatalf("%s: %v", name, err)
		}
		first, err := e.Details()[0].Value()
		p, _ := first.(*errorv1.Problem)
		want := &errorv1.Mismatch{CurrentVersion: 1, Exists: true, Object: "conversation/c1"}
		if err != nil || p.GetReason() != "VERSION_MISMATCH" || p.GetRetry() != errorv1.Retry_RETRY_REREAD || !proto.Equal(p.GetMismatch(), want) {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
}
