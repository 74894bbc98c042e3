package handlers

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/anypb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	statev1 "holdfast/gen/holdfast/state/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/handlers/problem"
	"holdfast/jsonpb"
)

// eventsPath begins the path /v1/state/{type}/{name}/events, which has the changes of an object of StateService as Server-Sent Events, for
// `curl -N` and EventSource. A pattern with wildcards would not have the name "/".
const eventsPath = "/v1/state/"

// defaultEntries is how many entries of each collection the events begin with, as a page of Read.
const defaultEntries = 50

// events turns a GET into a call of Watch, and its answer into Server-Sent Events. So who may watch, how many streams they may
// have, and what ends them are the same.
type events struct {
	watch    http.Handler
	unknown  http.Handler // for other paths
	onlyRead http.Handler // for other methods than GET
	texts    *jsonpb.Codec
	refusals *connect.ErrorWriter
}

func (e events) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), eventsPath), "/")
	switch {
	case len(path) != 3 || path[2] != "events":
		e.unknown.ServeHTTP(w, r)
		return
	case r.Method != http.MethodGet:
		e.onlyRead.ServeHTTP(w, r)
		return
	}
	item, err := eventsItem(r, path[0], path[1])
	req := &watchv1.WatchRequest{Items: []*watchv1.Item{item}}
	body, encodeErr := e.texts.Append(make([]byte, 5), req)
	if err = errors.Join(err, encodeErr); err != nil {
		refusal, _, _ := wire(err, traceOf(r))
		_ = e.refusals.Write(w, plainRequest(r), refusal)
		return
	}
	binary.BigEndian.PutUint32(body[1:5], uint32(len(body)-5)) //nolint:gosec // a head has 16 KiB
	call := r.Clone(r.Context())
	call.Method, call.URL = http.MethodPost, &url.URL{Path: watchv1connect.WatchServiceWatchProcedure}
	call.Body, call.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	for name := range call.Header {
		if strings.HasPrefix(name, "Connect-") || strings.HasPrefix(name, "Content-") {
			call.Header.Del(name)
		}
	}
	call.Header.Set("Content-Type", "application/connect+json")
	call.Header.Set("Connect-Protocol-Version", "1")
	e.watch.ServeHTTP(&eventWriter{ResponseWriter: w, events: e, request: r, resumed: item.GetCursor() != ""}, call)
}

// eventsItem is what a request for events asks to watch.
func eventsItem(r *http.Request, kind, name string) (*watchv1.Item, error) {
	ref := &statev1.Ref{}
	ref.Type, _ = url.PathUnescape(kind) // its path has been read
	ref.Name, _ = url.PathUnescape(name)
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, problem.InvalidArgument("", "the query of the URL cannot be read: "+err.Error())
	}
	limit := int64(defaultEntries)
	for name, values := range query {
		switch {
		case name == "collection":
		case len(values) > 1:
			return nil, problem.InvalidArgument(name, "is there twice")
		case name == "owner":
			ref.Owner = &values[0]
		case name == "limit":
			if limit, err = strconv.ParseInt(values[0], 10, 32); err != nil {
				return nil, problem.InvalidArgument(name, fmt.Sprintf("%q is no number; it is 0 to 200", values[0]))
			}
		default:
			p := problem.InvalidArgument(name, "there is no such parameter; there are owner, collection, and limit")
			p.Reason = errorv1.Reason_REASON_FIELD_UNKNOWN
			return nil, p
		}
	}
	state := &watchv1.StateItem{Ref: ref}
	for _, c := range query["collection"] {
		state.Collections = append(state.Collections, &watchv1.StateCollection{Collection: c, Limit: int32(limit)})
	}
	cursor := r.Header.Get("Last-Event-ID")
	for _, text := range slices.Concat([]string{ref.Type, ref.Name, ref.GetOwner(), cursor}, query["collection"]) {
		if !utf8.ValidString(text) {
			return nil, problem.InvalidArgument("", fmt.Sprintf("%q is no UTF-8", text))
		}
	}
	return &watchv1.Item{ItemId: "object", Cursor: cursor, Of: &watchv1.Item_State{State: state}}, nil
}

// plainRequest is a request whose refusal is JSON with a status.
func plainRequest(r *http.Request) *http.Request {
	plain := r.Clone(r.Context())
	plain.Header = http.Header{"Content-Type": {"application/json"}}
	plain.Method = http.MethodPost // Connect asks a GET for more than a Content-Type
	return plain
}

// eventWriter turns the messages of a stream in Connect's protocol into Server-Sent Events. What is refused before the first event has
// the status of its code.
type eventWriter struct {
	http.ResponseWriter
	events

	request *http.Request
	resumed bool // where nothing has changed since, there is no first event to wait for
	began   bool
	rest    []byte // of a message that is not here as a whole
}

// Unwrap is for http.ResponseController.
func (w *eventWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements [http.ResponseWriter]. Connect's status of a stream says nothing.
func (w *eventWriter) WriteHeader(int) {}

// Flush implements [http.Flusher].
func (w *eventWriter) Flush() {
	if !w.began && !w.resumed {
		return
	}
	w.begin()
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}

func (w *eventWriter) begin() {
	if w.began {
		return
	}
	w.began = true
	h := w.clean()
	h.Set("Content-Type", "text/event-stream")
	h.Set("X-Accel-Buffering", "no") // nginx would collect events
	w.ResponseWriter.WriteHeader(http.StatusOK)
}

// clean takes out of the answer's head what is about Connect's protocol.
func (w *eventWriter) clean() http.Header {
	h := w.Header()
	maps.DeleteFunc(h, func(name string, _ []string) bool { return strings.HasPrefix(name, "Connect-") })
	h.Del("Content-Type")
	return h
}

// Write implements [io.Writer].
func (w *eventWriter) Write(p []byte) (int, error) {
	w.rest = append(w.rest, p...)
	for len(w.rest) >= 5 {
		end := 5 + int(binary.BigEndian.Uint32(w.rest[1:5]))
		if len(w.rest) < end {
			break
		}
		tell := w.message
		if w.rest[0]&2 != 0 {
			tell = w.end
		}
		if err := tell(w.rest[5:end]); err != nil {
			return 0, err
		}
		w.rest = w.rest[end:]
	}
	return len(p), nil
}

// message tells a message of the stream.
func (w *eventWriter) message(text []byte) error {
	var m struct {
		Cursor  string          `json:"cursor"`
		Changed json.RawMessage `json:"changed"`
		Ended   json.RawMessage `json:"ended"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("handlers: a message of a stream: %w", err)
	}
	event := ":\n\n" // a heartbeat
	switch {
	case m.Ended != nil:
		var ended watchv1.Ended
		if _, err := w.texts.Unmarshal(m.Ended, &ended, jsonpb.Unknown); err != nil {
			return fmt.Errorf("handlers: the end of an item: %w", err)
		}
		p := ended.GetProblem()
		reason := errorv1.Reason(errorv1.Reason_value["REASON_"+p.GetReason()])
		return w.refuse(encode(problem.New(reason, "the object cannot be watched"), p.GetTraceId()))
	case m.Changed != nil:
		event = "data: " + string(m.Changed) + "\n\n"
		if m.Cursor != "" {
			event = "id: " + m.Cursor + "\n" + event
		}
	}
	w.begin()
	_, err := io.WriteString(w.ResponseWriter, event)
	return err //nolint:wrapcheck // it is an io.Writer
}

// end tells how the stream ended.
func (w *eventWriter) end(text []byte) error {
	var end struct {
		Error *struct {
			Code    connect.Code `json:"code"`
			Message string       `json:"message"`
			Details []struct {
				Type  string `json:"type"`
				Value string `json:"value"`
			} `json:"details"`
		} `json:"error"`
		Metadata http.Header `json:"metadata"`
	}
	if err := json.Unmarshal(text, &end); err != nil {
		return fmt.Errorf("handlers: the end of a stream: %w", err)
	}
	if end.Error == nil {
		return nil
	}
	e := connect.NewError(end.Error.Code, errors.New(end.Error.Message))
	for _, d := range end.Error.Details {
		value, err := base64.RawStdEncoding.DecodeString(d.Value)
		if err != nil {
			return fmt.Errorf("handlers: a detail of an error: %w", err)
		}
		detail, err := connect.NewErrorDetail(&anypb.Any{TypeUrl: "type.googleapis.com/" + d.Type, Value: value})
		if err != nil {
			return fmt.Errorf("handlers: a detail of an error: %w", err)
		}
		e.AddDetail(detail)
	}
	for name, values := range end.Metadata {
		e.Meta()[http.CanonicalHeaderKey(name)] = values
	}
	return w.refuse(e)
}

// refuse answers with an error, or, after the first event, tells it in the last one.
func (w *eventWriter) refuse(e *connect.Error) error {
	if !w.began {
		w.began = true
		w.clean()
		return w.refusals.Write(w.ResponseWriter, plainRequest(w.request), e) //nolint:wrapcheck // it writes to an io.Writer
	}
	var text textWriter
	if err := w.refusals.Write(&text, plainRequest(w.request), e); err != nil {
		return err //nolint:wrapcheck // it writes to memory
	}
	_, err := fmt.Fprintf(w.ResponseWriter, "event: ended\ndata: %s\n\n", bytes.TrimSpace(text.Bytes()))
	return err //nolint:wrapcheck // it is an io.Writer
}

// textWriter keeps the body of an answer.
type textWriter struct{ bytes.Buffer }

func (*textWriter) Header() http.Header { return http.Header{} }
func (*textWriter) WriteHeader(int)     {}
