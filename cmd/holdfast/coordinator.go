package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"

	"connectrpc.com/connect"

	"holdfast/coordclient"
	coordinationv1 "holdfast/gen/holdfast/coordination/v1"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	"holdfast/handlers/coordination"
)

// ownCoordinator lets this process's own calls of APIs be coordinated without a way round through its port. The context of
// each call says for which tenant.
type ownCoordinator struct{ *coordination.Manager }

var _ coordinationv1connect.CoordinationServiceClient = ownCoordinator{}

// AcquireAndWait implements CoordinationServiceClient, of which a transport needs no streams.
func (ownCoordinator) AcquireAndWait(
	context.Context, *coordinationv1.AcquireAndWaitRequest,
) (*connect.ServerStreamForClient[coordinationv1.AcquireAndWaitResponse], error) {
	return nil, connect.NewError(connect.CodeUnimplemented, errors.New("there are no streams within a process"))
}

// linearTransport coordinates the sync's calls of Linear with all others of the tenant. The sync only reads, though
// GraphQL has it do so by POST.
func linearTransport(m *coordination.Manager, log *slog.Logger) http.RoundTripper {
	c := &coordclient.Client{Service: ownCoordinator{m}}
	return c.Transport("linear", coordclient.Options{
		Safe:      func(*http.Request) bool { return true },
		Operation: func(*http.Request) string { return "sync" },
		OnError:   func(err error) { log.Warn("a call of Linear was not reported", "error", err) },
	})
}
