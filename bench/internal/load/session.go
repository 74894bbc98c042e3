package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	livev1 "holdfast/gen/holdfast/live/v1"
)

// Session is one client that talks to one conversation, one request at a time. It keeps its request messages and
// writes into them again. It is not safe for concurrent use.
type Session struct {
	// Conversation is the id of the conversation, which sessions may share.
	Conversation string
	Ledger       *Ledger

	caller *caller
	codec  Codec
	began  time.Time
	append *conversationv1.AppendRequest
	read   *conversationv1.GetConversationRequest
	live   *livev1.IngestLiveRequest
}

// NewSession returns the session with that number, whose messages say when they were sent since began.
func NewSession(t *Target, token, conversation string, number int, began time.Time) *Session {
	return &Session{
		Conversation: conversation,
		Ledger:       &Ledger{writer: number},
		caller:       t.caller(token), codec: t.Codec, began: began,
		append: &conversationv1.AppendRequest{
			ConversationId: conversation,
			Messages:       []*conversationv1.Message{{Role: conversationv1.Role_ROLE_USER}},
		},
		read: &conversationv1.GetConversationRequest{},
		live: &livev1.IngestLiveRequest{ConversationId: conversation},
	}
}

// Close closes the session's own connection.
func (s *Session) Close() { s.caller.close() }

// Create makes the session's conversation.
func (s *Session) Create(ctx context.Context) error {
	_, err := s.caller.call(ctx, conversationv1connect.ConversationServiceCreateConversationProcedure,
		&conversationv1.CreateConversationRequest{ConversationId: s.Conversation, Shared: true})
	return err
}

// Append appends one message that was due to be sent at that time.
func (s *Session) Append(ctx context.Context, due time.Time) error {
	n := s.next(s.append.GetMessages()[0], due)
	return s.send(ctx, s.append, n)
}

// Fill appends count messages with one request.
func (s *Session) Fill(ctx context.Context, count int) error {
	req := &conversationv1.AppendRequest{ConversationId: s.Conversation}
	first := len(s.Ledger.seqs)
	for range count {
		m := &conversationv1.Message{Role: conversationv1.Role_ROLE_USER}
		s.next(m, s.began)
		req.Messages = append(req.Messages, m)
	}
	return s.send(ctx, req, first)
}

func (s *Session) next(m *conversationv1.Message, due time.Time) int {
	n := s.Ledger.Send()
	m.ClientMessageId = fmt.Sprintf("%d-%d", s.Ledger.writer, n)
	m.Text = Stamp{Writer: s.Ledger.writer, Number: n, Sent: max(0, due.Sub(s.began))}.Text()
	return n
}

// send sends messages of which the first has number n, and notes the seqs acknowledged.
func (s *Session) send(ctx context.Context, req *conversationv1.AppendRequest, n int) error {
	var res conversationv1.AppendResponse
	if err := s.call(ctx, conversationv1connect.ConversationServiceAppendProcedure, req, &res); err != nil {
		return err
	}
	if len(res.GetMessages()) != len(req.GetMessages()) {
		return fmt.Errorf("%d messages acknowledged, %d sent", len(res.GetMessages()), len(req.GetMessages()))
	}
	for i, m := range res.GetMessages() {
		if m.GetSeq() == 0 {
			return errors.New("the response names no seq")
		}
		s.Ledger.Acknowledge(n+i, int64(m.GetSeq()))
	}
	return nil
}

// Read reads the state and the last count messages of a conversation, and fails where fewer come. It counts the
// messages without decoding them, as pgbench does with the rows that it is compared with.
func (s *Session) Read(ctx context.Context, conversation string, count int32) error {
	s.read.ConversationId, s.read.MessageLimit = conversation, count
	body, err := s.caller.call(ctx, conversationv1connect.ConversationServiceGetConversationProcedure, s.read)
	if err != nil {
		return err
	}
	n, err := s.codec.countMessages(body)
	if err == nil && n != int(count) {
		err = fmt.Errorf("%d messages read, not %d", n, count)
	}
	return err
}

func (s *Session) call(ctx context.Context, procedure string, req, res proto.Message) error {
	body, err := s.caller.call(ctx, procedure, req)
	if err != nil {
		return err
	}
	return s.codec.decode(body, res)
}

// countMessages counts the messages of an encoded GetConversationResponse.
func (c Codec) countMessages(body []byte) (n int, err error) {
	if c == JSON {
		var res struct {
			Messages []json.RawMessage `json:"messages"`
		}
		err := json.Unmarshal(body, &res)
		return len(res.Messages), err
	}
	const messages = 3 // the field's number
	for len(body) > 0 {
		number, kind, size := protowire.ConsumeTag(body)
		if size < 0 {
			return 0, protowire.ParseError(size)
		}
		body = body[size:]
		if size = protowire.ConsumeFieldValue(number, kind, body); size < 0 {
			return 0, protowire.ParseError(size)
		}
		body = body[size:]
		if number == messages {
			n++
		}
	}
	return n, nil
}

// List lists the whole conversation.
func (s *Session) List(ctx context.Context) ([]Stored, error) {
	var all []Stored
	req := &conversationv1.ListMessagesRequest{ConversationId: s.Conversation, PageSize: 200}
	for {
		var res conversationv1.ListMessagesResponse
		if err := s.call(ctx, conversationv1connect.ConversationServiceListMessagesProcedure, req, &res); err != nil {
			return nil, err
		}
		for _, m := range res.GetMessages() {
			all = append(all, Stored{Seq: int64(m.GetSeq()), Text: m.GetText()})
		}
		if res.GetNextPageToken() == "" {
			return all, nil
		}
		req.PageToken = res.GetNextPageToken()
	}
}
