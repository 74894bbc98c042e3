package main

import (
	"log/slog"
	"net/http"

	"holdfast/coordclient"
	"holdfast/gen/holdfast/coordination/v1/coordinationv1connect"
	"holdfast/handlers/coordination"
)

// ownCoordinator lets this process's own calls of APIs be coordinated without a way round through its port. The context of
// each call says for which tenant.
type ownCoordinator struct{ *coordination.Manager }

var _ coordinationv1connect.CoordinationServiceClient = ownCoordinator{}

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
