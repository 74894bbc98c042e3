package handlers

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Each gets the answer to its own message, from a goroutine that is not its own, as long as there are any.
func TestDeep(t *testing.T) {
	t.Parallel()
	over := make(chan struct{})
	elsewhere := func() bool {
		stack := make([]byte, 64<<10)
		return strings.Contains(string(stack[:runtime.Stack(stack, false)]), ".(*deep).work(")
	}
	d := newDeep(func(m proto.Message) error {
		switch n := m.(*wrapperspb.Int32Value).GetValue(); n {
		case 0:
			return nil
		case 13:
			panic("unlucky")
		default:
			return fmt.Errorf("%d is wrong, elsewhere %t", n, elsewhere())
		}
	}, over)
	ask := func(n int32) string { return fmt.Sprint(d.Validate(wrapperspb.Int32(n))) }

	var all sync.WaitGroup
	for i := range int32(200) {
		all.Go(func() {
			for range 20 {
				switch got := ask(i); {
				case i == 0 && got != "<nil>", i == 13 && !strings.Contains(got, "unlucky"),
					i != 0 && i != 13 && got != fmt.Sprintf("%d is wrong, elsewhere true", i):
					t.Errorf("of %d is said: %s", i, got)
				}
			}
		})
	}
	all.Wait()

	close(over)
	// Some of the goroutines may not have noticed yet, but not for long.
	for ask(1) != "1 is wrong, elsewhere false" {
		runtime.Gosched()
	}
	if got := ask(0); got != "<nil>" {
		t.Error(got)
	}
}
