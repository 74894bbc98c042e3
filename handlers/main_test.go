package handlers

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"holdfast/db/dbtest"
)

func TestMain(m *testing.M) {
	code := dbtest.Main(m)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
