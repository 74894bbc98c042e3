//go:build !linux

package dbtest

import (
	"context"
	"errors"
)

// startPooler starts a PgBouncer, which is killed with this process: Linux only.
func startPooler(context.Context, string, string) (string, func(), error) {
	return "", nil, errors.New(poolerVar + " works on Linux only")
}

func throughPooler(databaseURL, _ string) string { return databaseURL }
