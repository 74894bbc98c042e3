package dbtest

import (
	"context"
	"os"
)

type server struct {
	adminURL string
	stop     func()
}

func startServer(ctx context.Context) (*server, error) {
	return &server{adminURL: os.Getenv("HOLDFAST_TEST_DATABASE_URL"), stop: func() {}}, nil
}
