package handlers

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/gen/holdfast/linear/v1/linearv1connect"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	"holdfast/gen/holdfast/state/v1/statev1connect"
	"holdfast/handlers/problem"
	"holdfast/object"
)

// What a request may have, unpacked. An RPC that is not in largeRequests stores one thing at most, of 256 KiB; twice that leaves room
// for JSON's escapes.
const (
	maxRequest       = 512 << 10
	maxStreamRequest = 64 << 10 // it only says what to watch
	maxOpenRequest   = 4 << 10  // of callers without a credential
)

// largeRequests are the limits of the RPCs that store more.
var largeRequests = map[string]int64{
	conversationv1connect.ConversationServiceCreateConversationProcedure: 8 << 20, // 100 messages
	conversationv1connect.ConversationServiceAppendProcedure:             8 << 20,
	conversationv1connect.ConversationServiceEditMessagesProcedure:       8 << 20,
	livev1connect.LiveServiceConnectLiveProcedure:                        4 << 20, // 1,000 frames, of 64 KiB at most
	livev1connect.LiveServiceIngestLiveProcedure:                         4 << 20,
	livev1connect.LiveServiceDisconnectLiveProcedure:                     4 << 20,
	livev1connect.LiveServiceCompleteToolCallProcedure:                   1 << 20,
	coordinationv1connect.CoordinationServiceFinishCallProcedure:         1 << 20, // 100 headers and a body
	coordinationv1connect.CoordinationServiceReportProcedure:             1 << 20,
	statev1connect.StateServiceApplyProcedure:                            16 << 20,
	statev1connect.StateServiceApplyTogetherProcedure:                    16 << 20,
	linearv1connect.LinearServicePutIssuesProcedure:                      8 << 20, // 100 issues as Linear returned them
}

const (
	// Beyond freeValues each value is charged as valueBytes: what it takes in memory once it is decoded.
	freeValues = 100
	valueBytes = 256
	// Beyond lightBytes, as charged, a request is decoded and checked in its caller's turn.
	lightBytes = 128 << 10
	// drainMost is how much of a body that is too large is read and dropped, so that clients of HTTP/1.1 which send all of it before
	// they read see why it was refused.
	drainMost = 16 << 20
	// maxSlack is how much longer than its content a compressed body may be.
	maxSlack = 64 << 10
)

// lenientHeader asks that unknown fields and names of enum values in JSON are ignored, so that a newer client can talk to an older
// server.
const lenientHeader = "Holdfast-Lenient"

const (
	grpcEncoding     = "Grpc-Encoding"
	codecJSON        = "json"
	codecJSONCharset = "json; charset=utf-8"
)

// rpc is what the edge knows of a procedure.
type rpc struct {
	input  protoreflect.MessageDescriptor
	limit  int64
	stream bool
	// open: it needs no credential, and so it gets no decompression.
	open bool
	// get: it can be called by GET.
	get bool
}

func newRPC(procedure string, m protoreflect.MethodDescriptor) rpc {
	r := rpc{input: m.Input(), limit: maxRequest, stream: m.IsStreamingServer() || m.IsStreamingClient()}
	if o, ok := m.Options().(*descriptorpb.MethodOptions); ok {
		r.get = o.GetIdempotencyLevel() == descriptorpb.MethodOptions_NO_SIDE_EFFECTS
	}
	if large, ok := largeRequests[procedure]; ok {
		r.limit = large
	} else if r.stream {
		r.limit = maxStreamRequest
	}
	return r
}

// intake reads the request of a call whole before Connect sees it: within the RPC's limit and what is free for the caller, by the
// server's read deadline, and unpacked. Connect would answer without details, and unpack what is too large to its end.
type intake struct {
	rpcs     map[string]rpc  // by procedure
	draining context.Context //nolint:containedctx // a state of the server
	now      func() time.Time
	unzips   sync.Pool // of *gzip.Reader
	// heavy are calls that unpack, or decode and check what is large.
	heavy *object.Line
}

func (in *intake) read(c *call, w http.ResponseWriter, r *http.Request) error {
	what, ok := in.rpcs[r.URL.Path]
	if !ok {
		return methodUnknown(c, http.StatusNotFound, r)
	}
	if err := checkHeaders(r.Header); err != nil {
		return err
	}
	switch {
	case r.Method == http.MethodGet && what.get:
		return in.readQuery(c, what, r)
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", map[bool]string{true: "GET, POST", false: http.MethodPost}[what.get])
		return methodUnknown(c, http.StatusMethodNotAllowed, r)
	}
	arrived := in.hurry(w)
	err := in.readBody(c, what, r)
	if cut := arrived(); cut && err != nil {
		err = errDraining
	}
	if what.stream {
		c.arrived()
		c.settled()
	}
	if large, ok := errors.AsType[*problem.Error](err); ok && large.Reason == errorv1.Reason_REASON_SIZE_EXCEEDED && r.ProtoMajor == 1 {
		_, _ = io.CopyN(io.Discard, r.Body, drainMost)
	}
	if err == nil && r.ProtoMajor == 1 {
		// HTTP/1.1 looks for the caller's leaving with a read of its own, which must not end with the body's deadline.
		_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	}
	return err
}

// hurry ends the reading of a body soon after the server begins to drain, until arrived is called. It reports whether that was so.
func (in *intake) hurry(w http.ResponseWriter) (arrived func() (cut bool)) {
	done := make(chan struct{})
	stop := context.AfterFunc(in.draining, func() {
		defer close(done)
		_ = http.NewResponseController(w).SetReadDeadline(in.now().Add(drainBodyTime))
	})
	return func() bool {
		if stop() {
			return false
		}
		<-done
		return true
	}
}

// form is how a request by POST holds its message.
type form struct {
	enveloped bool   // behind five bytes: a flag and the length
	encoding  string // the header that names the compression
	json      bool
}

// unaryForms and streamForms have every Content-Type that Connect accepts.
var unaryForms, streamForms = newForms(false), newForms(true)

func newForms(stream bool) map[string]form {
	forms := map[string]form{"application/grpc": {true, grpcEncoding, false}, "application/grpc-web": {true, grpcEncoding, false}}
	for _, codec := range []string{"proto", codecJSON, codecJSONCharset} {
		isJSON := codec != "proto"
		forms["application/grpc+"+codec] = form{true, grpcEncoding, isJSON}
		forms["application/grpc-web+"+codec] = form{true, grpcEncoding, isJSON}
		if stream {
			forms["application/connect+"+codec] = form{true, "Connect-Content-Encoding", isJSON}
		} else {
			forms["application/"+codec] = form{false, "Content-Encoding", isJSON}
		}
	}
	return forms
}

// formOf returns the form of a request by POST. Connect reads a Content-Type in many spellings, so formOf writes the plain one back:
// both must see the same form.
func formOf(h http.Header, stream bool) (f form, known bool) {
	forms := unaryForms
	if stream {
		forms = streamForms
	}
	kind := h.Get("Content-Type")
	if f, known = forms[kind]; known {
		return f, true
	}
	base, parameters, err := mime.ParseMediaType(kind)
	if err != nil {
		return form{}, false
	}
	if charset, ok := parameters["charset"]; ok {
		parameters["charset"] = strings.ToLower(charset)
	}
	plain := mime.FormatMediaType(base, parameters)
	if f, known = forms[plain]; known {
		h.Set("Content-Type", plain)
	}
	return f, known
}

func (in *intake) readBody(c *call, what rpc, r *http.Request) error {
	f, known := formOf(r.Header, what.stream)
	encoding := r.Header.Get(f.encoding)
	plain := encoding == "" || encoding == "identity"
	switch {
	case what.open && !plain:
		return errOpenCompression
	case !known:
		return formUnknown(c, what.stream)
	case !plain && encoding != "gzip":
		return problem.New(errorv1.Reason_REASON_COMPRESSION_REFUSED, "requests may be compressed with gzip, and with nothing else")
	}
	r.Header.Del(f.encoding) // what Connect gets is unpacked
	var message, prefix []byte
	var err error
	if f.enveloped {
		prefix, message, err = in.readEnvelope(c, what, f.json, !plain, r)
	} else {
		message, err = in.readMessage(r.Context(), c, what, f.json, !plain, r.Body, r.ContentLength)
	}
	if err != nil {
		return broken(r, err)
	}
	if err := in.weigh(r.Context(), c, what, f.json, message); err != nil {
		return err
	}
	if f.json && r.Header.Get(lenientHeader) == "true" {
		if f.enveloped {
			binary.BigEndian.PutUint32(prefix[1:], uint32(len(message)+1)) //nolint:gosec // it is within the limit
		}
		prefix = append(prefix, lenientMark)
	}
	r.Body = &held{prefix, message}
	r.ContentLength = int64(len(prefix) + len(message))
	return nil
}

// readMessage reads src, of which size bytes are announced, or -1.
func (in *intake) readMessage(ctx context.Context, c *call, what rpc, isJSON, zipped bool, src io.Reader, size int64) ([]byte, error) {
	check := func(part []byte) error { return checkValues(what.countValues(isJSON, part)) }
	if !zipped {
		return c.fill(src, size, what.limit, 0, check)
	}
	// All of it is here before the turn: a slow caller keeps nobody waiting.
	packed, err := c.fill(src, size, what.limit+maxSlack, 0, nil)
	if err != nil {
		return nil, err
	}
	if err := in.turn(ctx, c); err != nil {
		return nil, err
	}
	z, _ := in.unzips.Get().(*gzip.Reader)
	if z == nil {
		z = &gzip.Reader{}
	}
	defer in.unzips.Put(z)
	if err := z.Reset(bytes.NewReader(packed)); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return c.fill(z, -1, what.limit, int64(len(packed)), check)
}

// readEnvelope reads the one message of a stream, and returns it behind the prefix that it has when unpacked.
func (in *intake) readEnvelope(c *call, what rpc, isJSON, gzipped bool, r *http.Request) (prefix, message []byte, err error) {
	prefix = make([]byte, 5, 6)
	if _, err := io.ReadFull(r.Body, prefix); errors.Is(err, io.EOF) {
		return nil, nil, bodyBroken("there is no message in it")
	} else if err != nil {
		return nil, nil, err
	}
	packed := gzipped && prefix[0] == 1
	if prefix[0] != 0 && !packed {
		return nil, nil, bodyBroken(fmt.Sprintf("the message has the flags %#x; they must be 1 if it is compressed as the headers say, and else 0", prefix[0]))
	}
	prefix[0] = 0
	size := int64(binary.BigEndian.Uint32(prefix[1:]))
	if size > what.limit+maxSlack {
		return nil, nil, tooLarge(size, what.limit)
	}
	src := io.LimitReader(r.Body, size)
	if packed && size > 0 {
		message, err = in.readMessage(r.Context(), c, what, isJSON, true, src, size)
		if err == nil {
			_, err = io.Copy(io.Discard, src)
		}
	} else if message, err = in.readMessage(r.Context(), c, what, isJSON, false, src, size); err == nil && int64(len(message)) < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, nil, err
	}
	binary.BigEndian.PutUint32(prefix[1:], uint32(len(message))) //nolint:gosec // it is within the limit
	switch _, err := io.ReadFull(r.Body, make([]byte, 1)); {
	case errors.Is(err, io.EOF):
		return prefix, message, nil
	case err != nil:
		return nil, nil, err
	}
	return nil, nil, bodyBroken("there is more than one message in it")
}

// readQuery does the same for the message in the query of a GET.
func (in *intake) readQuery(c *call, what rpc, r *http.Request) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	f, known := unaryForms["application/"+q.Get("encoding")]
	switch {
	case err != nil:
		return bodyBroken("the query is not escaped as a URL has it")
	case !q.Has("message"):
		return bodyBroken("there is no query parameter message; send message={} for an empty request")
	case !known || f.enveloped:
		return bodyBroken("the query parameter encoding must be json or proto")
	case q.Get("connect") != "" && q.Get("connect") != "v1":
		return bodyBroken("the query parameter connect must be v1")
	}
	message := []byte(q.Get("message"))
	if q.Get("base64") == "1" {
		if message, err = base64.RawURLEncoding.DecodeString(strings.TrimRight(q.Get("message"), "=")); err != nil {
			return bodyBroken("the query parameter message is not base64 of the URL's alphabet")
		}
	}
	packed, lenient := q.Get("compression") == "gzip", f.json && r.Header.Get(lenientHeader) == "true"
	if packed {
		if message, err = in.readMessage(r.Context(), c, what, f.json, true, bytes.NewReader(message), -1); err != nil {
			return broken(r, err)
		}
		q.Del("compression")
	}
	if err := in.weigh(r.Context(), c, what, f.json, message); err != nil {
		return err
	}
	if lenient {
		message = append([]byte{lenientMark}, message...)
	}
	if packed || lenient {
		q.Set("base64", "1")
		q.Set("message", base64.RawURLEncoding.EncodeToString(message))
		u := *r.URL
		u.RawQuery = q.Encode()
		r.URL = &u
	}
	return nil
}

// weigh charges the caller for a message as it will be when decoded.
func (in *intake) weigh(ctx context.Context, c *call, what rpc, isJSON bool, message []byte) error {
	values := what.countValues(isJSON, message)
	if err := checkValues(values); err != nil {
		return err
	}
	if err := c.hold(int64(len(message) + valueBytes*max(0, values-freeValues))); err != nil || c.load.Bytes <= lightBytes {
		return err
	}
	return in.turn(ctx, c)
}

// countValues counts the values of a message, or of its beginning.
func (what rpc) countValues(isJSON bool, message []byte) int {
	switch {
	case isJSON:
		return countJSON(message)
	case what.input != nil:
		return countWire(message, what.input)
	}
	return 0
}

// checkValues refuses a message that has so many values, or whose beginning has.
func checkValues(values int) error {
	if values <= maxValues {
		return nil
	}
	return problem.SizeExceeded("values", int64(values), maxValues,
		fmt.Sprintf("the request has %d values or more, over the limit of %d; send it in parts", values, maxValues))
}

// turn waits until the call may do what takes a core for long. The turn ends with settled.
func (in *intake) turn(ctx context.Context, c *call) error {
	if c.endTurn != nil || c.countedBy == nil {
		return nil
	}
	leave, err := in.heavy.Enter(ctx, c.caller)
	if err == nil {
		c.endTurn = sync.OnceFunc(leave)
	}
	return err
}

// fill reads src to its end. Memory is taken as the bytes arrive, and charged to the caller before, beside what is charged for already.
// check, which may be nil, looks at what has come, each time that it has doubled, so that what will be refused is not read to its end.
func (c *call) fill(src io.Reader, size, limit, beside int64, check func([]byte) error) ([]byte, error) {
	if size > limit {
		return nil, tooLarge(size, limit)
	}
	if size >= 0 {
		if err := c.hold(beside + size); err != nil {
			return nil, err
		}
	}
	most := limit + 1
	if size >= 0 {
		most = size + 1
	}
	var buf []byte
	for {
		if len(buf) == cap(buf) {
			grown := min(max(2*int64(cap(buf)), 512), most)
			if check != nil && len(buf) >= maxValues { // a value takes a byte at least
				if err := check(buf); err != nil {
					return nil, err
				}
			}
			if size < 0 {
				if err := c.hold(beside + grown); err != nil {
					return nil, err
				}
			}
			buf = append(make([]byte, 0, grown), buf...)
		}
		n, err := src.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > limit:
			return nil, tooLarge(int64(len(buf)), limit)
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			return nil, err
		case int64(len(buf)) == most:
			return buf, nil
		}
	}
}

var errOpenCompression = problem.New(errorv1.Reason_REASON_COMPRESSION_REFUSED, "requests of methods that need no credential must not be compressed")

func tooLarge(size, limit int64) error {
	return problem.SizeExceeded("bytes", size, limit,
		fmt.Sprintf("the request has %d bytes or more, over the limit of %d for this method; send it in parts", size, limit))
}

func methodUnknown(c *call, status int, r *http.Request) error {
	c.status = status
	return problem.New(errorv1.Reason_REASON_METHOD_UNKNOWN, fmt.Sprintf("there is nothing at %.200q for %.20q", r.URL.Path, r.Method))
}

func formUnknown(c *call, stream bool) error {
	c.status = http.StatusUnsupportedMediaType
	if stream {
		return bodyBroken("the Content-Type of a stream must be application/connect+json or application/connect+proto, or that of gRPC or gRPC-web")
	}
	return bodyBroken("the Content-Type must be application/json or application/proto, or that of gRPC or gRPC-web")
}

// broken is the refusal of a body that could not be read.
func broken(r *http.Request, err error) error {
	_, refused := errors.AsType[*problem.Error](err)
	_, late := errors.AsType[*object.OverloadedError](err)
	switch {
	case refused, late:
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return problem.New(errorv1.Reason_REASON_DEADLINE_EXCEEDED, "the request's body did not arrive in time; nothing was done")
	case r.Context().Err() != nil:
		return fmt.Errorf("read the body: %w", r.Context().Err())
	case errors.Is(err, io.ErrUnexpectedEOF):
		return bodyBroken("it ends too early")
	case errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum), isCorrupt(err):
		return bodyBroken("it is not gzip, or damaged")
	default:
		return bodyBroken("it did not arrive whole")
	}
}

func isCorrupt(err error) bool {
	_, ok := errors.AsType[flate.CorruptInputError](err)
	return ok
}

func bodyBroken(why string) *problem.Error {
	return problem.New(errorv1.Reason_REASON_BODY_BROKEN, "the request cannot be read: "+why)
}

var (
	connectTimeout = regexp.MustCompile(`^[0-9]{1,10}$`)
	grpcTimeout    = regexp.MustCompile(`^[0-9]{1,8}[HMSmun]$`)
)

// checkHeaders refuses what Connect would refuse without a reason, and a lenientHeader that would be misread.
func checkHeaders(h http.Header) error {
	switch t, g, v, l := h.Get("Connect-Timeout-Ms"), h.Get("Grpc-Timeout"), h.Get("Connect-Protocol-Version"), h.Get(lenientHeader); {
	case l != "" && l != "true" && l != "false":
		return bodyBroken("the header " + lenientHeader + " must be true or false")
	case t != "" && !connectTimeout.MatchString(t):
		return bodyBroken("the header Connect-Timeout-Ms must be a number of at most 10 digits")
	case g != "" && !grpcTimeout.MatchString(g):
		return bodyBroken("the header Grpc-Timeout must be a number of at most 8 digits and a unit")
	case v != "" && v != "1":
		return bodyBroken("the header Connect-Protocol-Version must be 1")
	}
	return nil
}

// unpacked is the decompressor that Connect gets. The edge unpacks every request, so a compressed one was not recognized by it.
type unpacked struct{}

var errPacked = errors.New("the message is compressed in a way that its headers do not name")

func (unpacked) Read([]byte) (int, error) { return 0, errPacked }
func (unpacked) Reset(io.Reader) error    { return errPacked }
func (unpacked) Close() error             { return nil }

// held is a body that was read, until Connect has it.
type held struct{ prefix, message []byte }

func (h *held) Read(p []byte) (int, error) {
	n := copy(p, h.prefix)
	h.prefix = h.prefix[n:]
	m := copy(p[n:], h.message)
	if h.message = h.message[m:]; len(h.prefix)+len(h.message) == 0 {
		h.message = nil
		return n + m, io.EOF
	}
	return n + m, nil
}

func (h *held) Close() error {
	h.prefix, h.message = nil, nil
	return nil
}
