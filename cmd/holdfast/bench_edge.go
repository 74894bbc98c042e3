package main

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"time"

	"holdfast/cmd/holdfast/internal/load"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
)

// edge acknowledges every append and keeps nothing: no credentials, no rules, no database. What is left is the network, HTTP and
// Connect, which no server of this API can do without.
type edge struct {
	conversationv1connect.UnimplementedConversationServiceHandler
}

// AppendMessages implements [conversationv1connect.ConversationServiceHandler].
func (edge) AppendMessages(_ context.Context, req *conversationv1.AppendMessagesRequest) (*conversationv1.AppendMessagesResponse, error) {
	res := &conversationv1.AppendMessagesResponse{}
	for i := range req.GetMessages() {
		res.Messages = append(res.Messages, &conversationv1.AppendedMessage{Seq: int64(i) + 1})
	}
	return res, nil
}

// runEdge has sessions append to an edge, which runs in the generator's process: its CPU is in the generator's.
func runEdge(sessions int) func(context.Context, *bench, scenario) ([]benchRow, error) {
	return func(ctx context.Context, b *bench, s scenario) ([]benchRow, error) {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		_, handler := conversationv1connect.NewConversationServiceHandler(edge{})
		server := &http.Server{Handler: handler, Protocols: new(http.Protocols), ReadHeaderTimeout: time.Minute}
		server.Protocols.SetHTTP1(true)
		server.Protocols.SetUnencryptedHTTP2(true)
		go func() { _ = server.Serve(listener) }() // until it is closed
		defer func() { _ = server.Close() }()
		target := &load.Target{
			URL:   &url.URL{Scheme: "http", Host: listener.Addr().String()},
			Codec: load.Codec(b.Codec), HTTP2: b.HTTP == "2",
		}
		defer target.Close()
		all := make([]*load.Session, sessions)
		for i := range all {
			all[i] = load.NewSession(target, b.system.token, s.name, i, b.began)
		}
		defer closeAll(all)
		u := b.usage(s.name, false)
		m := load.Closed(ctx, b.workload(sessions, u.observe), func(ctx context.Context, i int, due time.Time) error {
			return all[i].Append(ctx, due)
		})
		row := rowOf(s.name, s.what, m)
		row.GeneratorCPU, row.OthersCPU = u.generator.Seconds(), u.others(0).Seconds()
		return []benchRow{row}, ctx.Err()
	}
}
