package handlers

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
)

// spellings returns ways to write a Content-Type. Some are accepted as the same, some are not.
func spellings(kind string) [][]string {
	first, rest, _ := strings.Cut(kind, "/")
	all := [][]string{
		{kind}, {strings.ToUpper(kind)}, {strings.Title(first) + "/" + rest}, {first + "/" + strings.Title(rest)}, //nolint:staticcheck // it is ASCII
		{" " + kind + " "}, {kind + ";"}, {kind + " ; "}, {kind, "text/plain"}, {"text/plain", kind}, {kind + ", " + kind}, {kind + "/"},
	}
	if head, codec, ok := strings.Cut(kind, "+"); ok {
		all = append(all, []string{head + "+" + strings.ToUpper(codec)})
	}
	for _, parameter := range []string{
		"; charset=utf-8", ";charset=utf-8", "; charset=UTF-8", `; charset="utf-8"`, `; charset="ut\f-8"`, "; CHARSET=utf-8;", " ;\tcharset=utf-8",
		"; charset*=utf-8''utf-8", "; charset*=utf-8''%75tf-8", "; charset*0=utf; charset*1=-8", "; charset=utf8", "; charset=latin1", "; charset",
		"; v=1", "; charset=utf-8; v=1", "; charset=utf-8; charset=utf-8",
	} {
		all = append(all, []string{kind + parameter})
	}
	return all
}

// seen is what a handler's methods get.
type seen struct {
	conversationv1connect.UnimplementedConversationServiceHandler

	id string
}

func (s *seen) GetConversation(_ context.Context, req *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
	s.id = req.GetConversationId()
	return &conversationv1.GetConversationResponse{}, nil
}

func (s *seen) Watch(_ context.Context, req *watchv1.WatchRequest, _ *connect.ServerStream[watchv1.WatchResponse]) error {
	s.id = req.GetItems()[0].GetItemId()
	return nil
}

// ask sends a request to a handler, and returns everything that it answers as one text.
func ask(t *testing.T, h http.Handler, verb, target, token string, header http.Header, body []byte) string {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), verb, target, bytes.NewReader(body))
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0
	r.Header = header.Clone()
	r.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	text := fmt.Sprint(w.Code, w.Body)
	for _, h := range []http.Header{w.Result().Header, w.Result().Trailer} {
		details, _ := base64.RawStdEncoding.DecodeString(strings.TrimRight(h.Get("Grpc-Status-Details-Bin"), "="))
		text += fmt.Sprint(" ", h, string(details))
	}
	return text
}

// A request means the same to the edge as to Connect, however its headers and its query are written: one reaches its method if and
// only if it would without the edge, and one that does is unpacked, measured and counted.
func TestEverySpellingOfARequestIsMeasured(t *testing.T) {
	t.Parallel()
	const id = "c7"
	tiny := map[bool][]byte{true: []byte(`{"conversationId":"` + id + `"}`), false: {0x0a, 2, 'c', '7'}}
	many := map[bool][]byte{
		true:  []byte(`{"conversationId":"` + id + `","x":[` + strings.Repeat("[],", maxValues) + `[]]}`),
		false: append(slices.Clone(tiny[false]), bytes.Repeat([]byte{0xf8, 0x3f, 0}, maxValues)...), // field 1023, a varint
	}
	setUp := func(t *testing.T) (edge, bare http.Handler, inside, outside *seen, token string) {
		t.Helper()
		inside, outside = &seen{}, &seen{}
		b := setup(t, func(o *Options) {
			o.Services = []Service{
				NewService[conversationv1connect.ConversationServiceHandler](
					conversationv1connect.ConversationServiceName, conversationv1connect.NewConversationServiceHandler, inside),
				NewService[watchv1connect.WatchServiceHandler](watchv1connect.WatchServiceName, watchv1connect.NewWatchServiceHandler, inside),
			}
		})
		mux := http.NewServeMux()
		mux.Handle(conversationv1connect.NewConversationServiceHandler(outside))
		mux.Handle(watchv1connect.NewWatchServiceHandler(outside))
		return b.server, mux, inside, outside, b.token
	}
	encodings := [][]string{nil, {"gzip"}, {"GZIP"}, {"Gzip"}, {" gzip "}, {"gzip, identity"}, {"identity"}, {"Identity"}, {"x-gzip"}, {"identity", "gzip"}, {"gzip", "identity"}, {"br"}, {""}}
	for path, limit := range map[string]int{conversations + "GetConversation": maxRequest, watchRPC: maxStreamRequest} {
		stream := path == watchRPC
		tiny := tiny
		if stream {
			tiny = map[bool][]byte{true: []byte(`{"items":[{"itemId":"` + id + `","session":{}}]}`), false: {0x0a, 6, 0x0a, 2, 'c', '7', 0x22, 0}}
		}
		for _, kind := range slices.Sorted(maps.Keys(newForms(stream))) {
			f := newForms(stream)[kind]
			t.Run(path+" "+kind, func(t *testing.T) {
				t.Parallel()
				edge, bare, inside, outside, token := setUp(t)
				bodies := map[bool][][]byte{}
				for _, message := range [][]byte{tiny[f.json], sized(f.json, limit+1), many[f.json]} {
					plain, packed := message, zip(message)
					if f.enveloped {
						plain, packed = envelope(0, plain), envelope(1, packed)
					}
					bodies[false], bodies[true] = append(bodies[false], plain), append(bodies[true], packed)
				}
				reached := 0
				for i, spelling := range spellings(kind) {
					for j, encoding := range encodings {
						if i > 0 && j > 1 {
							break // all pairs take minutes and find no more
						}
						for _, packed := range []bool{false, true} {
							header := http.Header{"Content-Type": spelling}
							for _, name := range []string{f.encoding, "Content-Encoding", grpcEncoding} {
								if encoding != nil && (name == f.encoding || len(encoding) == 1) {
									header[name] = encoding
								}
							}
							inside.id, outside.id = "", ""
							direct := ask(t, bare, http.MethodPost, path, token, header, bodies[packed][0])
							if got := ask(t, edge, http.MethodPost, path, token, header, bodies[packed][0]); inside.id != outside.id {
								t.Errorf("%q, packed %t: the method got %q, and %q without the edge: %s\n%s", header, packed, inside.id, outside.id, got, direct)
							}
							if outside.id != id {
								continue
							}
							reached++
							inside.id = ""
							if got := ask(t, edge, http.MethodPost, path, token, header, bodies[packed][1]); !strings.Contains(got, "SIZE_EXCEEDED") || !strings.Contains(got, fmt.Sprint(limit)) {
								t.Errorf("%q, packed %t: a byte over the limit: %s", header, packed, got)
							}
							if got := ask(t, edge, http.MethodPost, path, token, header, bodies[packed][2]); !strings.Contains(got, "SIZE_EXCEEDED") {
								t.Errorf("%q, packed %t: many values: %s", header, packed, got)
							}
							if inside.id != "" {
								t.Errorf("%q, packed %t: too much reached the method", header, packed)
							}
						}
					}
				}
				if reached < 10 {
					t.Errorf("only %d spellings reached the method", reached)
				}
			})
		}
	}
	t.Run("GET", func(t *testing.T) {
		t.Parallel()
		edge, bare, inside, outside, token := setUp(t)
		reached := 0
		for i, codec := range []string{"json", "JSON", "json; charset=utf-8", "json;charset=utf-8", "json; charset=UTF-8", "proto", "Proto", "grpc+proto", "connect+json", ""} {
			isJSON := strings.HasPrefix(strings.ToLower(codec), "json")
			plain := [][]byte{tiny[isJSON]} // a query has no room for more
			compressed := [][]byte{zip(tiny[isJSON]), zip(sized(isJSON, maxRequest+1)), zip(many[isJSON])}
			for j, compression := range []string{
				"&compression=gzip", "", "&compression=GZIP", "&compression=identity", "&compression=identity&compression=gzip",
				"&compression=gzip&compression=identity", "&compr%65ssion=g%7Aip", "&compression=gzip;", "&Compression=gzip", "&compression=br",
			} {
				for k, b64 := range []string{"&base64=1", "", "&base64=true", "&b%61se64=%31", "&base64=1&base64=0", "&base64=0&base64=1"} {
					if i > 1 && j > 1 && k > 1 {
						break
					}
					for _, messages := range [][][]byte{plain, compressed} {
						put := func(message []byte, encode func([]byte) string) string {
							return conversations + "GetConversation?connect=v1&encoding=" + url.QueryEscape(codec) + compression + b64 + "&message=" + url.QueryEscape(encode(message))
						}
						for name, encode := range map[string]func([]byte) string{
							"raw": func(b []byte) string { return string(b) }, "base64": base64.RawURLEncoding.EncodeToString, "padded": base64.URLEncoding.EncodeToString,
						} {
							inside.id, outside.id = "", ""
							target := put(messages[0], encode)
							direct := ask(t, bare, http.MethodGet, target, token, http.Header{}, nil)
							if got := ask(t, edge, http.MethodGet, target, token, http.Header{}, nil); inside.id != "" && inside.id != outside.id {
								t.Errorf("%s %s: the method got %q, and %q without the edge: %s\n%s", name, target, inside.id, outside.id, got, direct)
							}
							if inside.id != id { // the edge refuses some that Connect takes
								continue
							}
							reached++
							inside.id = ""
							for _, message := range messages[1:] {
								if got := ask(t, edge, http.MethodGet, put(message, encode), token, http.Header{}, nil); inside.id != "" || !strings.Contains(got, "SIZE_EXCEEDED") {
									t.Errorf("%s: %d bytes: %.200s", target, len(message), got)
								}
							}
						}
					}
				}
			}
		}
		if reached < 30 {
			t.Errorf("only %d spellings reached the method", reached)
		}
	})
	for _, path := range []string{"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"} {
		t.Run("without a credential "+path, func(t *testing.T) {
			t.Parallel()
			edge, _, _, _, token := setUp(t)
			packed := zip(make([]byte, 1<<20))
			forms := newForms(!strings.HasSuffix(path, "Check"))
			for kind, f := range forms {
				put := func(flag byte, message []byte) []byte {
					if f.enveloped {
						return envelope(flag, message)
					}
					return message
				}
				for _, spelling := range spellings(kind) {
					header := http.Header{"Content-Type": spelling}
					got := ask(t, edge, http.MethodPost, path, token, header, put(0, sized(f.json, maxOpenRequest+1)))
					refused := strings.HasPrefix(got, "415")
					if !refused && !strings.Contains(got, " 4096") {
						t.Errorf("%q: %s", spelling, got)
					}
					for _, encoding := range encodings[1:] {
						header[f.encoding] = encoding
						got := ask(t, edge, http.MethodPost, path, token, header, put(1, packed))
						if !refused && !strings.Contains(got, "COMPRESSION_REFUSED") && strings.TrimSpace(encoding[0]) != "identity" && encoding[0] != "" || strings.Contains(got, " 4096") {
							t.Errorf("%q %q: %s", spelling, encoding, got)
						}
					}
				}
			}
		})
	}
}

// What a protocol allows only in answers is refused in a request: a trailer as large as a request would be parsed.
func TestARequestHasNoTrailerFrame(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, kind := range []string{"application/grpc-web+proto", "application/grpc+json"} {
		for _, flag := range []byte{2, 3, 0x80, 0x81} {
			got := ask(t, b.server, http.MethodPost, conversations+"Append", b.token, http.Header{"Content-Type": {kind}}, envelope(flag, []byte("a: b\r\n")))
			if !strings.Contains(got, "BODY_BROKEN") {
				t.Errorf("%s, flags %#x: %s", kind, flag, got)
			}
		}
	}
}

// unread is a connection of HTTP/2 whose client never reads a body.
type unread struct {
	net.Conn
	*http2.Framer

	block  bytes.Buffer
	heads  *hpack.Encoder
	stream uint32
}

func (b *bundle) unread(t *testing.T) *unread {
	t.Helper()
	u := &unread{Conn: b.wire(t, http2.ClientPreface)}
	u.Framer = http2.NewFramer(u.Conn, u.Conn)
	u.heads = hpack.NewEncoder(&u.block)
	if err := u.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
		t.Fatal(err)
	}
	return u
}

func (u *unread) ask(t *testing.T, verb, path string, header ...string) {
	t.Helper()
	u.block.Reset()
	for _, h := range append([]string{":method " + verb, ":scheme http", ":path " + path, ":authority h"}, header...) {
		name, value, _ := strings.Cut(h, " ")
		if err := u.heads.WriteField(hpack.HeaderField{Name: name, Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	u.stream = max(u.stream+2, 1)
	if u.stream%2 == 0 {
		u.stream--
	}
	if err := u.WriteHeaders(http2.HeadersFrameParam{StreamID: u.stream, BlockFragment: u.block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
}

// ends waits for so many streams that end, and returns how many were reset.
func (u *unread) ends(t *testing.T, n int) (reset int) {
	t.Helper()
	_ = u.SetReadDeadline(time.Now().Add(30 * time.Second))
	for n > 0 {
		f, err := u.ReadFrame()
		if err != nil {
			t.Fatalf("%d streams do not end: %v", n, err)
		}
		switch f := f.(type) {
		case *http2.RSTStreamFrame:
			if f.ErrCode != http2.ErrCodeNo {
				reset++
				n--
			}
		case *http2.DataFrame:
			if f.StreamEnded() {
				n--
			}
		case *http2.HeadersFrame:
			if f.StreamEnded() {
				n--
			}
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = u.WriteSettingsAck()
			}
		}
	}
	return reset
}

// Whatever is asked for, an answer over HTTP/2 that is not read ends by its deadline.
func TestEveryRouteHasAWriteDeadline(t *testing.T) {
	t.Parallel()
	const patience = 300 * time.Millisecond
	b := setup(t, func(o *Options) {
		o.Now = func() time.Time { return time.Now().Add(patience - sendTimeout) }
		o.Origins = []string{"https://a.example"}
		o.Routes = []Route{{"route", "/route", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "x") })}}
	})
	u := b.unread(t)
	asked := 0
	for _, path := range []string{"/healthz", "/readyz", "/", "/nowhere", "//healthz", "/route", conversations + "GetConversation", watchRPC, "/grpc.health.v1.Health/Check"} {
		for _, verb := range []string{"GET", "POST", "OPTIONS", "PUT"} {
			for _, kind := range []string{"application/json", "application/connect+json", "application/grpc-web"} {
				u.ask(t, verb, path, "content-type "+kind, "origin https://a.example")
				asked++
			}
		}
	}
	if n := u.ends(t, asked); n < asked/4 {
		t.Errorf("of %d answers %d were cut", asked, n)
	}
}

// Strangers that do not read hold no more answers than there are places. Others get their status all the same.
func TestStrangersHoldFewAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const places, each, more = 1000, 200, 50
	b.server.open = make(chan struct{}, places)
	for left := places; left > 0; left -= each {
		u := b.unread(t)
		for range min(left, each) {
			u.ask(t, "GET", "/healthz")
		}
	}
	deadline := time.After(30 * time.Second)
	for len(b.server.open) < places {
		select {
		case <-deadline:
			t.Fatalf("only %d answers wait", len(b.server.open))
		case <-time.After(10 * time.Millisecond):
		}
	}
	u := b.unread(t)
	for range more {
		u.ask(t, "GET", "/healthz")
	}
	if reset := u.ends(t, more); reset > 0 {
		t.Errorf("%d were reset", reset)
	}
	for name, client := range map[string]*http.Client{"HTTP/1.1": b.http, "HTTP/2": h2c(t)} {
		c := *b
		c.http = client
		if got := c.do(t, http.MethodGet, "/healthz", ""); got.status != 200 {
			t.Errorf("%s: /healthz is %d", name, got.status)
		}
		if got := c.call(t, "CreateConversation", `{"conversation":{"title":"x"}}`); got.status != 200 || !strings.Contains(got.body, "x") {
			t.Errorf("%s: a call with a credential got %d %q", name, got.status, got.body)
		}
	}
}

// A connection whose calls are taken back before they are answered is closed. One that gets as many answers is not, nor is one whose
// streams had begun to answer.
func TestAConnectionThatTakesItsCallsBackIsClosed(t *testing.T) {
	t.Parallel()
	begun, ended := make(chan struct{}), make(chan struct{})
	b := setup(t, func(o *Options) {
		o.Routes = []Route{{"wait", "/wait/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait/answered" {
				_, _ = io.WriteString(w, "x")
			}
			begun <- struct{}{}
			<-r.Context().Done()
			ended <- struct{}{}
		})}}
	})
	reset := func(u *unread, path string) {
		t.Helper()
		u.ask(t, "GET", path)
		<-begun
		if err := u.WriteRSTStream(u.stream, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
		<-ended
	}
	honest, streams, greedy := b.unread(t), b.unread(t), b.unread(t)
	for _, u := range []*unread{honest, streams} {
		if err := u.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 10}); err != nil {
			t.Fatal(err)
		}
	}
	for range maxResets + 1 {
		reset(honest, "/wait/")
		honest.ask(t, "OPTIONS", "/nowhere")
		reset(streams, "/wait/answered")
		reset(greedy, "/wait/")
	}
	_ = greedy.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.Copy(io.Discard, greedy.Conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("it is not closed: %v", err)
	}
	reset(honest, "/wait/")
	reset(streams, "/wait/answered")
}

// A user that does not read small answers is bounded by the calls of a user: they count until they are sent.
func TestAnswersCountUntilTheyAreSent(t *testing.T) {
	t.Parallel()
	var k keyring
	b := setup(t, func(o *Options) {
		o.Auth = newAuth(&k)
		o.Bounds = Bounds{User: Load{Calls: 10}}
	})
	b.get = func(context.Context, *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
		return &conversationv1.GetConversationResponse{Conversation: &conversationv1.Conversation{Title: "x"}}, nil
	}
	bob := k.add("acme", "bob")
	u := b.unread(t)
	for range 50 {
		u.ask(t, "GET", conversations+"GetConversation?connect=v1&encoding=json&message=%7B%22conversationId%22%3A%22c%22%7D", "authorization Bearer "+bob)
	}
	deadline := time.After(30 * time.Second)
	for len(b.server.open) < 40 { // the refusals
		select {
		case <-deadline:
			t.Fatalf("%d of 50 calls were refused", len(b.server.open))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// A body that is still arriving does not hold up a server that drains.
func TestDrainCutsBodiesOff(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *Options) { o.RequestTimeout = time.Hour })
	conn := b.wire(t, strings.Replace(head(conversations+"CreateConversation", b.token, 100), "\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n", 1))
	want := "HTTP/1.1 100 Continue\r\n\r\n"
	if _, err := io.ReadFull(conn, make([]byte, len(want))); err != nil {
		t.Fatal(err)
	}
	b.stop()
	if code, said := status(t, conn); code != 503 || !strings.Contains(said, "SHUTTING_DOWN") {
		t.Errorf("%d %s", code, said)
	}
}

// A head that no client needs is refused.
func TestLargeHeadsAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, client := range map[string]*http.Client{"HTTP/1.1": b.http, "HTTP/2": h2c(t)} {
		for size, want := range map[int]int{12 << 10: 404, 24 << 10: 431} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.url+"/nowhere", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Large", strings.Repeat("x", size))
			res, err := client.Do(r)
			if err != nil && want == 404 {
				t.Fatal(err)
			}
			if err != nil {
				continue // HTTP/1.1 closes the connection, and its end can overtake the status
			}
			_ = res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("%s, %d bytes: %d", name, size, res.StatusCode)
			}
		}
	}
}
