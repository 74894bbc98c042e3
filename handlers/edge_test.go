package handlers

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"buf.build/go/protovalidate"
	"connectrpc.com/connect"
	"connectrpc.com/grpcreflect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/structpb"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	_ "holdfast/gen/holdfast/coordination/v1" // for its descriptors, as the next
	errorv1 "holdfast/gen/holdfast/error/v1"
	_ "holdfast/gen/holdfast/inspect/v1"
	_ "holdfast/gen/holdfast/project/v1"
	_ "holdfast/gen/holdfast/session/v1"
	"holdfast/gen/holdfast/state/v1/statev1connect"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/identity"
	"holdfast/object"
)

const (
	conversations = "/" + conversationv1connect.ConversationServiceName + "/"
	watchRPC      = watchv1connect.WatchServiceWatchProcedure
)

// zip is gzip of text.
func zip(text []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(text)
	_ = w.Close()
	return b.Bytes()
}

// envelope puts a message behind its prefix.
func envelope(flag byte, message []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{flag}, uint32(len(message))), message...)
}

// sized is an empty message of so many bytes: JSON with spaces, or proto with an unknown field.
func sized(json bool, n int) []byte {
	if json {
		return append([]byte("{}"), bytes.Repeat([]byte(" "), n-2)...)
	}
	head := []byte{0xfa, 0x3f} // field 1023, bytes
	for pad := 1; pad <= 5; pad++ {
		length := binary.AppendUvarint(nil, uint64(n-2-pad))
		if len(length) == pad {
			return append(append(head, length...), make([]byte, n-2-pad)...)
		}
	}
	panic("no such size")
}

// ways are all the forms in which a message can be sent by POST.
func ways(stream bool) map[string]func(n int) (body []byte, headers []string) {
	out := map[string]func(int) ([]byte, []string){}
	for _, packed := range []bool{false, true} {
		for _, json := range []bool{false, true} {
			codec, name := "proto", ""
			if json {
				codec = "json"
			}
			if packed {
				name = ", gzip"
			}
			enveloped := func(kind, encoding string) func(int) ([]byte, []string) {
				return func(n int) ([]byte, []string) {
					if packed {
						return envelope(1, zip(sized(json, n))), []string{"Content-Type: " + kind + codec, encoding + ": gzip"}
					}
					return envelope(0, sized(json, n)), []string{"Content-Type: " + kind + codec}
				}
			}
			out["grpc-web+"+codec+name] = enveloped("application/grpc-web+", "Grpc-Encoding")
			out["grpc+"+codec+name] = enveloped("application/grpc+", "Grpc-Encoding")
			if stream {
				out["connect+"+codec+name] = enveloped("application/connect+", "Connect-Content-Encoding")
				continue
			}
			out["connect "+codec+name] = func(n int) ([]byte, []string) {
				if packed {
					return zip(sized(json, n)), []string{"Content-Type: application/" + codec, "Content-Encoding: gzip"}
				}
				return sized(json, n), []string{"Content-Type: application/" + codec}
			}
		}
	}
	return out
}

// Each method takes a request of its limit, and answers one of a byte more with the limit, in every form, with and without a length.
func TestARequestOverTheLimitIsRefusedByName(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.watch = func(context.Context, *watchv1.WatchRequest, *connect.ServerStream[watchv1.WatchResponse]) error {
		return nil
	}
	clear2 := h2c(t)
	for path, limit := range map[string]int{conversations + "UpdateConversation": maxRequest, conversations + "Append": 8 << 20, watchRPC: maxStreamRequest} {
		for name, way := range ways(path == watchRPC) {
			for _, known := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s %s %t", path, name, known), func(t *testing.T) {
					t.Parallel()
					send := func(n int) (said string) {
						body, headers := way(n)
						r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+path, bytes.NewReader(body))
						if err != nil {
							t.Fatal(err)
						}
						for _, h := range append(headers, "Authorization: Bearer "+b.token) {
							key, value, _ := strings.Cut(h, ": ")
							r.Header.Set(key, value)
						}
						client := b.http
						if strings.HasPrefix(name, "grpc+") {
							client = clear2
						}
						if !known {
							r.ContentLength = -1
						}
						res, err := client.Do(r)
						if err != nil {
							t.Fatal(err)
						}
						defer res.Body.Close()
						text, err := io.ReadAll(res.Body)
						if err != nil {
							t.Fatal(err)
						}
						// gRPC has its details in trailers, as base64.
						for _, h := range []http.Header{res.Header, res.Trailer} {
							details, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(h.Get("Grpc-Status-Details-Bin"), "="))
							if err != nil {
								t.Error(err)
							}
							text = append(append(text, details...), h.Get("Grpc-Message")...)
						}
						return string(text)
					}
					if got := send(limit + 1); !strings.Contains(got, "SIZE_EXCEEDED") || !strings.Contains(got, fmt.Sprint(limit)) {
						t.Errorf("over the limit: %q", got)
					}
					if got := send(limit); strings.Contains(got, "SIZE_EXCEEDED") || strings.Contains(got, "BODY_BROKEN") || strings.Contains(got, "unmarshal") {
						t.Errorf("at the limit: %q", got)
					}
				})
			}
		}
	}
}

// The largest request that the rules of the protos allow is within the limit of its method, except those that hold many things of which
// each may be large.
func TestEachMethodTakesWhatItsRulesAllow(t *testing.T) {
	t.Parallel()
	n := 0
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			if !strings.HasPrefix(string(s.FullName()), "holdfast.") {
				continue
			}
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				procedure := "/" + string(s.FullName()) + "/" + string(m.Name())
				size, values := largest(t, m.Input(), 6)
				n++
				if limit := newRPC(procedure, m).limit; (int64(size) > limit || values > maxValues) && !slices.Contains([]string{
					conversationv1connect.ConversationServiceCreateConversationProcedure, conversationv1connect.ConversationServiceAppendProcedure,
					conversationv1connect.ConversationServiceEditMessagesProcedure,
					watchRPC, // 32 lists whose filters name all that they can
					statev1connect.StateServiceApplyProcedure, statev1connect.StateServiceApplyTogetherProcedure, statev1connect.StateServiceReadProcedure, // 1,000 operations or queries, each as large as one may be
				}, procedure) {
					t.Errorf("%s may have %d bytes and %d values by its rules, and its limits are %d and %d", procedure, size, values, limit, maxValues)
				}
			}
		}
		return true
	})
	if n < 60 {
		t.Errorf("only %d methods", n)
	}
	for procedure := range largeRequests {
		name := strings.ReplaceAll(procedure[1:], "/", ".")
		if _, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(name)); err != nil {
			t.Errorf("%s has a limit: %v", procedure, err)
		}
	}
}

// largest is the size as JSON of the largest message by its rules, and how many values it has. What has no rule counts as empty.
func largest(t *testing.T, md protoreflect.MessageDescriptor, depth int) (size, values int) {
	t.Helper()
	if depth == 0 || strings.HasPrefix(string(md.FullName()), "google.protobuf.") {
		return 32, 1
	}
	size, values = 2, 1
	counted := map[protoreflect.FullName]int{} // of a oneof, the largest member
	for i := range md.Fields().Len() {
		fd := md.Fields().Get(i)
		rules, err := protovalidate.ResolveFieldRules(fd)
		if err != nil {
			t.Fatal(err)
		}
		single := func(fd protoreflect.FieldDescriptor, text, raw uint64) (int, int) {
			switch fd.Kind() {
			case protoreflect.StringKind:
				return int(text) + 2, 1
			case protoreflect.BytesKind:
				return int(raw)*4/3 + 2, 1
			case protoreflect.MessageKind:
				return largest(t, fd.Message(), depth-1)
			default:
				return 24, 1
			}
		}
		var n, s, v int
		switch {
		case fd.IsMap():
			n = int(rules.GetMap().GetMaxPairs())
			s, v = single(fd.MapValue(), rules.GetMap().GetValues().GetString().GetMaxBytes(), 0)
			s += int(max(rules.GetMap().GetKeys().GetString().GetMaxBytes(), 64)) + 4
		case fd.IsList():
			n = int(rules.GetRepeated().GetMaxItems())
			s, v = single(fd, rules.GetRepeated().GetItems().GetString().GetMaxBytes(), rules.GetRepeated().GetItems().GetBytes().GetMaxLen())
		default:
			n = 1
			s, v = single(fd, rules.GetString().GetMaxBytes(), rules.GetBytes().GetMaxLen())
		}
		s = n*(s+1) + len(fd.JSONName()) + 4
		if of := fd.ContainingOneof(); of != nil {
			was := counted[of.FullName()]
			counted[of.FullName()] = max(was, s)
			s = max(0, s-was)
		}
		size += s
		values += n*v + 1
	}
	return size, values
}

// wire sends raw bytes over a connection of HTTP/1.1.
func (b *bundle) wire(t *testing.T, text string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(b.url, "http://"))
	if err == nil {
		_, err = io.WriteString(conn, text)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// head is the head of a POST with a body of size bytes.
func head(method, token string, size int) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", method, token, size)
}

// status reads the status of an answer; 0: the connection was closed without one.
func status(t *testing.T, conn net.Conn) (int, string) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return 0, ""
		}
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(text)
}

// A body that does not arrive ends the call, for every caller and protocol, and a call that takes longer than that to
// answer does not end.
func TestAStalledBodyIsCutOff(t *testing.T) {
	t.Parallel()
	b := setup(t, func(o *Options) { o.RequestTimeout = 500 * time.Millisecond })
	gone := make(chan bool, 1)
	b.get = func(ctx context.Context, _ *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
		select {
		case <-ctx.Done():
			gone <- true
		case <-time.After(time.Second):
			gone <- false
		}
		return &conversationv1.GetConversationResponse{}, nil
	}
	for _, path := range []string{conversations + "CreateConversation", watchRPC, "/grpc.health.v1.Health/Check", "/nowhere", "/healthz"} {
		t.Run("HTTP/1.1 "+path, func(t *testing.T) {
			t.Parallel()
			conn := b.wire(t, head(path, b.token, 1000)+"{")
			if code, said := status(t, conn); code == 504 && !strings.Contains(said, "DEADLINE_EXCEEDED") || code == 200 {
				t.Errorf("%d %s", code, said)
			}
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("the connection is still open")
			}
		})
		t.Run("HTTP/2 "+path, func(t *testing.T) {
			t.Parallel()
			r, w := io.Pipe()
			defer w.Close()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+path, r)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+b.token)
			req.Header.Set("Content-Type", "application/json")
			go func() { _, _ = io.WriteString(w, "{") }()
			res, err := h2c(t).Do(req)
			if err != nil {
				return
			}
			defer res.Body.Close()
			if text, _ := io.ReadAll(res.Body); res.StatusCode == http.StatusOK {
				t.Errorf("%d %s", res.StatusCode, text)
			}
		})
	}
	for name, client := range map[string]*http.Client{"HTTP/1.1": b.http, "HTTP/2": h2c(t)} {
		c := *b
		c.http = client
		if got := c.call(t, "GetConversation", `{"conversationId":"c"}`); got.status != 200 || <-gone {
			t.Errorf("%s: a call of a second got %d %s", name, got.status, got.body)
		}
	}
}

// Bodies that stall hold no more than the bound of their user, and leave room for others.
func TestStalledBodiesLeaveRoom(t *testing.T) {
	t.Parallel()
	var k keyring
	b := setup(t, func(o *Options) {
		o.Auth = newAuth(&k)
		o.Bounds = Bounds{Server: Load{Calls: 40, Bytes: 4 << 20}, Tenant: Load{Calls: 30, Bytes: 3 << 20}, User: Load{Calls: 10, Bytes: 1 << 20}}
	})
	overloaded := func() (n int) {
		for _, m := range b.metric(t, "holdfast_requests_refused_total") {
			_, _ = fmt.Sscanf(m, "OVERLOADED %d", &n)
		}
		return n
	}
	bob, ann, service, other := k.add("acme", "bob"), k.add("acme", "ann"), k.add("acme", ""), k.add("other", "eve")
	for what, size := range map[string]int{"bytes": 300 << 10, "calls": 100} {
		bob := bob
		if what == "calls" {
			bob = k.add("acme", "bert") // bob's may not have left yet
		}
		var stalled []net.Conn
		before := overloaded()
		for range 64 {
			stalled = append(stalled, b.wire(t, head(conversations+"CreateConversation", bob, size)))
		}
		// All but a few are refused, before their bodies have come.
		deadline, want := time.After(20*time.Second), before+64-map[string]int{"bytes": 3, "calls": 10}[what]
		for overloaded() != want {
			select {
			case <-deadline:
				t.Fatalf("%s: %d were refused, not %d", what, overloaded()-before, want-before)
			case <-time.After(10 * time.Millisecond):
			}
		}
		for _, token := range []string{ann, service, other} {
			c := *b
			c.token = token
			if got := c.call(t, "CreateConversation", `{"conversation":{"title":"x"},"shared":true}`); got.status != 200 {
				t.Errorf("%s: others get %d %s", what, got.status, got.body)
			}
		}
		for _, conn := range stalled {
			_ = conn.Close()
		}
	}
}

// What was charged is given back, however a call ends.
func TestChargesAreGivenBack(t *testing.T) {
	t.Parallel()
	a := newAdmission(Bounds{})
	in := &intake{draining: t.Context(), now: time.Now}
	what := rpc{limit: maxRequest}
	for name, body := range map[string]io.Reader{
		"good": strings.NewReader(`{"a":1}`), "large": bytes.NewReader(make([]byte, maxRequest+1)), "broken": io.MultiReader(strings.NewReader("{"), failing{}),
	} {
		for _, size := range []int64{-1, 7} {
			c := &call{}
			c.caller.Tenant, c.caller.User = "acme", "bob"
			if err := a.admit(c, false); err != nil {
				t.Fatal(err)
			}
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			r.ContentLength = size
			_ = in.readBody(c, what, r)
			c.leave()
			if a.all != (Load{}) || len(a.tenants)+len(a.users) > 0 {
				t.Errorf("%s, %d: left are %+v, %v, %v", name, size, a.all, a.tenants, a.users)
			}
		}
	}
}

// A compressed request has a turn until it is decoded, and a stream's until it is read. Who waits for one in vain is told to come again.
func TestTurnsOfCompressedRequests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAdmission(Bounds{})
		in := &intake{draining: t.Context(), now: time.Now, heavy: object.NewLine(), rpcs: map[string]rpc{"/unary": {limit: maxRequest}, "/stream": {limit: maxRequest, stream: true}}}
		read := func(path, kind, encoding string, body []byte) (*call, error) {
			c := &call{}
			c.caller.Tenant, c.caller.User = "acme", "bob"
			if err := a.admit(c, in.rpcs[path].stream); err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader(body))
			r.Header.Set("Content-Type", kind)
			r.Header.Set(encoding, "gzip")
			return c, in.read(c, httptest.NewRecorder(), r)
		}
		for range 100 {
			if _, err := read("/stream", "application/connect+json", "Connect-Content-Encoding", envelope(1, zip([]byte("{}")))); err != nil {
				t.Fatalf("a stream: %v", err)
			}
		}
		var held []*call
		for {
			c, err := read("/unary", "application/json", "Content-Encoding", zip([]byte("{}")))
			if err != nil {
				if e := explain(err); e.Reason != errorv1.Reason_REASON_OVERLOADED || e.Detail.(*errorv1.Limit).GetName() != "work" || len(held) == 0 {
					t.Errorf("beside %d others: %v", len(held), err)
				}
				break
			}
			held = append(held, c)
		}
		for _, c := range held {
			c.settled()
		}
		if _, err := read("/unary", "application/json", "Content-Encoding", zip([]byte("{}"))); err != nil {
			t.Errorf("once they are decoded: %v", err)
		}
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }

// A bomb is unpacked to the limit and not a block further: what follows is broken, and that is not found out.
func TestABombIsUnpackedToTheLimit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bomb := zip(make([]byte, 64<<20))
	for i := len(bomb) / 2; i < len(bomb); i++ {
		bomb[i] = 0xff
	}
	for name, send := range map[string]func() answer{
		"unary": func() answer { return b.call(t, "UpdateConversation", string(bomb), "Content-Encoding: gzip") },
		"grpc-web": func() answer {
			return b.call(t, "UpdateConversation", string(envelope(1, bomb)), "Content-Type: application/grpc-web+proto", "Grpc-Encoding: gzip")
		},
		"GET": func() answer {
			small := zip(make([]byte, 8<<20))
			q := url.Values{"encoding": {"json"}, "compression": {"gzip"}, "base64": {"1"}, "message": {base64.RawURLEncoding.EncodeToString(small)}}
			return b.do(t, http.MethodGet, conversations+"GetConversation?"+q.Encode(), "", "Authorization: Bearer "+b.token)
		},
	} {
		got := send()
		if said := got.body + got.header.Get("Grpc-Message"); !strings.Contains(said, "over the limit of 524288") {
			t.Errorf("%s: %d %q", name, got.status, said)
		}
	}
	if got := b.do(t, http.MethodPost, "/grpc.health.v1.Health/Check", string(bomb), "Content-Type: application/json", "Content-Encoding: gzip"); !strings.Contains(got.body, "COMPRESSION_REFUSED") {
		t.Errorf("without a credential: %d %s", got.status, got.body)
	}
	// A small packed GET is answered.
	b.get = func(_ context.Context, req *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
		return &conversationv1.GetConversationResponse{Conversation: &conversationv1.Conversation{Title: req.GetConversationId()}}, nil
	}
	q := url.Values{"encoding": {"json"}, "compression": {"gzip"}, "base64": {"1"}, "message": {base64.RawURLEncoding.EncodeToString(zip([]byte(`{"conversationId":"c7"}`)))}}
	if got := b.do(t, http.MethodGet, conversations+"GetConversation?"+q.Encode(), "", "Authorization: Bearer "+b.token); got.status != 200 || !strings.Contains(got.body, "c7") {
		t.Errorf("a packed GET: %d %s", got.status, got.body)
	}
}

// Values are counted alike in JSON and in proto, and exactly.
func TestValuesAreCounted(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		`{}`: 1, "\t[ ]\n": 1, `[1,2]`: 3, `{"a":{}}`: 2, `{"a":[{},{},[]]}`: 5, `{"a":"x,y[{\"","b\\":["\\",","]}`: 5, ``: 0, `{"a":null,"b":{"c":[1,{"d":true}]}}`: 7,
	} {
		if got := countJSON([]byte(text)); got != want {
			t.Errorf("%s has %d values, counted %d", text, want, got)
		}
		s := &structpb.Struct{}
		if protojson.Unmarshal([]byte(text), s) != nil {
			continue
		}
		data, err := proto.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := countWire(data, s.ProtoReflect().Descriptor()); got != want {
			t.Errorf("%s in proto has %d values, counted %d", text, want, got)
		}
	}
}

// A request of many tiny values is refused before it is decoded, in every form.
func TestManyTinyValuesAreRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var many []any
	for range maxValues {
		many = append(many, map[string]any{})
	}
	req := &conversationv1.AppendRequest{ConversationId: "c", FlowSteps: []*conversationv1.FlowStep{{Flow: "f", Step: "s", Data: structOf(t, map[string]any{"a": many})}}}
	text, err := protojson.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	data, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]answer{
		"JSON":       b.call(t, "Append", string(text)),
		"JSON, gzip": b.call(t, "Append", string(zip(text)), "Content-Encoding: gzip"),
		"proto":      b.call(t, "Append", string(data), "Content-Type: application/proto"),
		"unknown":    b.call(t, "Append", `{"nobody":[`+strings.Repeat("[],", maxValues)+`[]]}`),
	} {
		if got.status != 400 || !strings.Contains(got.body, "SIZE_EXCEEDED") || !strings.Contains(got.body, "50000") {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	few := `{"conversationId":"c","flowSteps":[{"flow":"f","step":"s","data":{"a":[` + strings.Repeat("{},", 20_000) + `{}]}}]}`
	if got := b.call(t, "Append", few); got.status != 501 {
		t.Errorf("20,000: %d %s", got.status, got.body)
	}
}

// Who does not read an answer is cut off.
func TestAnAnswerThatNobodyReadsIsCutOff(t *testing.T) {
	t.Parallel()
	const patience = 300 * time.Millisecond
	for _, version := range []string{"HTTP/1.1", "h2c"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			b := setup(t, func(o *Options) { o.Now = func() time.Time { return time.Now().Add(patience - sendTimeout) } })
			b.get = func(context.Context, *conversationv1.GetConversationRequest) (*conversationv1.GetConversationResponse, error) {
				return &conversationv1.GetConversationResponse{Conversation: &conversationv1.Conversation{Title: strings.Repeat("x", 32<<20)}}, nil
			}
			if version == "HTTP/1.1" {
				body := `{"conversationId":"c"}`
				b.wire(t, head(conversations+"GetConversation", b.token, len(body))+body)
			} else {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+conversations+"GetConversation", strings.NewReader(`{"conversationId":"c"}`))
				if err != nil {
					t.Fatal(err)
				}
				req.Header.Set("Authorization", "Bearer "+b.token)
				req.Header.Set("Content-Type", "application/json")
				res, err := h2c(t).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
			}
			// The call is reported when it has ended.
			deadline := time.After(20 * time.Second)
			for len(b.metric(t, "holdfast_requests_total")) == 0 {
				select {
				case <-deadline:
					t.Fatal("the answer is still being sent")
				case <-time.After(10 * time.Millisecond):
				}
			}
		})
	}
}

// However many ask whether the server is ready, the database is asked once a second.
func TestStrangersDoNotReachTheDatabase(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	var now atomic.Int64
	start := time.Now()
	b := setup(t, func(o *Options) {
		o.Ping = func(context.Context) error { asked.Add(1); return nil }
		o.Now = func() time.Time { return start.Add(time.Duration(now.Load()) * time.Second) }
	})
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			b.do(t, http.MethodGet, "/readyz", "")
			b.do(t, http.MethodPost, "/grpc.health.v1.Health/Check", `{}`, "Content-Type: application/json")
		})
	}
	all.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	now.Add(1)
	if b.do(t, http.MethodGet, "/readyz", ""); asked.Load() != 2 {
		t.Errorf("a second later asked %d times", asked.Load())
	}
	if got := b.do(t, http.MethodPost, "/grpc.health.v1.Health/Check", string(sized(true, maxOpenRequest+1)), "Content-Type: application/json"); !strings.Contains(got.body, "SIZE_EXCEEDED") {
		t.Errorf("a large body: %d %s", got.status, got.body)
	}
}

// Streams of reflection are few, and none where it is switched off.
func TestReflectionIsBounded(t *testing.T) {
	t.Parallel()
	b := setup(t)
	client := grpcreflect.NewClient(h2c(t), b.url, connect.WithGRPC())
	for range maxOpenStreams {
		s := client.NewStream(t.Context())
		t.Cleanup(func() { _, _ = s.Close() })
		if _, err := s.ListServices(); err != nil {
			t.Fatal(err)
		}
	}
	s := client.NewStream(t.Context())
	defer s.Close()
	if _, err := s.ListServices(); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	off := setup(t, func(o *Options) { o.NoReflection = true })
	s = grpcreflect.NewClient(h2c(t), off.url, connect.WithGRPC()).NewStream(t.Context())
	defer s.Close()
	if _, err := s.ListServices(); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Errorf("switched off: %v", err)
	}
}

// What is refused by the thousand is a few lines of the log, and one that says how many there were.
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log logbook
		tell := newTelemetry(slog.New(slog.NewTextHandler(&log, nil)), time.Now, nil, nil)
		refuse := func(n int, tenant identity.Tenant) {
			for range n {
				c := &call{code: "unauthenticated", reason: "CREDENTIAL_MISSING"}
				c.caller.Tenant = tenant
				tell.report(t.Context(), c, 0)
			}
		}
		refuse(3000, "")
		refuse(2, "acme")
		<-time.After(2 * logPeriod)
		if lines := strings.Split(strings.TrimSpace(log.String()), "\n"); len(lines) != loggedCalls+3 || !strings.Contains(lines[len(lines)-1], "unlogged=2990") {
			t.Errorf("the log is\n%s", &log)
		}
		refuse(1, "")
		<-time.After(2 * logPeriod)
		if n := strings.Count(log.String(), "\n"); n != loggedCalls+4 {
			t.Errorf("later it has %d lines", n)
		}
	})
}

// A server that leaves says so, and goes on answering.
func TestALeavingServerStillAnswers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.server.Leave()
	if got := b.do(t, http.MethodGet, "/readyz", ""); got.status != 503 {
		t.Errorf("/readyz is %d", got.status)
	}
	if got := b.call(t, "CreateConversation", `{"conversation":{"title":"x"},"shared":true}`); got.status != 200 {
		t.Errorf("a call got %d", got.status)
	}
	if !slices.Equal(b.metric(t, "holdfast_requests_refused_total"), nil) {
		t.Error("it counts as a refusal")
	}
}
