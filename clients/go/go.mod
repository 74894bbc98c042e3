// A module that others require has a dot in its path. Nobody can own this one, so only a proxy of yours serves it.
module holdfast.internal/clients/go

go 1.26.0

require (
	connectrpc.com/connect v1.21.1
	google.golang.org/protobuf v1.36.12
)
