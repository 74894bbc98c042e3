package bounds_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/identity"
	"holdfast/object/internal/bounds"
)

// However many calls a user sends, others wait for the work of one of them at most.
func TestAFloodDelaysOthersByOneCall(t *testing.T) { //nolint:paralleltest // it sets how many cores there are
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2 * bounds.ThreadsPerCore))
	synctest.Test(t, func(t *testing.T) {
		l := bounds.NewLine()
		const work = time.Second
		bob := identity.Identity{Tenant: "a", User: "bob"}
		began, done := time.Now(), make(chan time.Duration)
		call := func(i identity.Identity) {
			leave, err := l.Enter(t.Context(), i)
			if err == nil {
				time.Sleep(work) //nolint:forbidigo // the clock of synctest: nobody waits
				leave()
			}
			done <- time.Since(began)
		}
		for range 4 {
			go call(bob)
		}
		synctest.Wait()
		for _, other := range []identity.Identity{{Tenant: "b", User: "bob"}, {Tenant: "b", Service: true}, {Tenant: "a", User: "ann"}} {
			done := make(chan time.Duration)
			began := time.Now()
			go func() {
				leave, err := l.Enter(t.Context(), other)
				if err != nil {
					t.Error(err)
					leave = func() {}
				}
				leave()
				done <- time.Since(began)
			}()
			if waited := <-done; waited > work {
				t.Errorf("%v waited %v", other, waited)
			}
		}
		for range 4 {
			if took := <-done; took > 5*work {
				t.Errorf("a call of the flood took %v", took)
			}
		}
	})
}

// Who waits for too long is refused, and who leaves is not waited for.
func TestAWaitInALineEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := bounds.NewLine()
		bob := identity.Identity{Tenant: "a", User: "bob"}
		var leaves []func()
		for i := range 64 { // all of the server's places
			who := identity.Identity{Tenant: identity.Tenant(fmt.Sprint(i)), User: "bob"}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			leave, err := l.Enter(ctx, who)
			if cancel(); err != nil {
				break
			}
			leaves = append(leaves, leave)
		}
		var full *bounds.OverloadedError
		if _, err := l.Enter(t.Context(), bob); !errors.As(err, &full) || full.What != "work" || full.Of != "server" {
			t.Errorf("no place: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := l.Enter(ctx, bob); !errors.Is(err, context.Canceled) {
			t.Errorf("one who left: %v", err)
		}
		for _, leave := range leaves {
			leave()
		}
		leave, err := l.Enter(t.Context(), bob)
		if err != nil {
			t.Fatalf("once there is room: %v", err)
		}
		leave()
	})
}
