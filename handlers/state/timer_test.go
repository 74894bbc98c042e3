package state

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	statev1 "holdfast/gen/holdfast/state/v1"
	"holdfast/gen/holdfast/state/v1/statev1connect"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	"holdfast/handlers/handlertest"
	"holdfast/identity"
)

func (c client) take(t testing.TB, text string) []*statev1.TakenTimer {
	t.Helper()
	return must(c.TakeTimers(t.Context(), from(t, &statev1.TakeTimersRequest{}, text)))(t).GetTimers()
}

// Whatever workers do, and when they die: a timer is with one of them at most, who has it knows it by the newest token, and it is always
// due at some time, parked, or finished.
func TestATimerIsWithOneWorkerAtMost(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		c := &change{state: &storev1.ObjectState{}, entries: inMemory{}, now: time.Unix(1000, 0)}
		holder, tries := -1, 0
		tokens := map[int]int64{} // the last one that each worker got
		if err := c.setTimer(&statev1.SetTimer{Name: "t", When: &statev1.SetTimer_DueIn{DueIn: durationpb.New(time.Minute)}}); err != nil {
			r.Fatal(err)
		}
		for range rapid.IntRange(1, 60).Draw(r, "steps") {
			c.version++
			timer := c.state.GetTimers()["t"]
			if timer == nil {
				break
			}
			if got := wakeUp(timer).IsZero(); got != (due(timer) || timer.GetParked()) {
				r.Fatalf("%v is forgotten", timer)
			}
			worker := rapid.IntRange(0, 2).Draw(r, "worker")
			finish := &statev1.FinishTimer{Name: "t", FencingToken: int32(max(1, tokens[worker]))}
			switch rapid.SampledFrom([]string{"take", "take", "wait", "wait", "done", "failed", "release", "extend", "set"}).Draw(r, "step") {
			case "take":
				if !due(timer) {
					continue
				}
				if holder >= 0 {
					r.Fatalf("%d takes what %d has", worker, holder)
				}
				take(timer, c.version, &storev1.Lease{Holder: fmt.Sprint(worker), ExpireTime: timestamppb.New(c.now.Add(30 * time.Second))})
				holder, tries = worker, tries+1
				tokens[worker] = c.version
				continue
			case "wait":
				if at := wakeUp(timer); !at.IsZero() {
					c.now, holder = at, -1
					step(timer, c.now)
				}
				continue
			case "set":
				_ = c.setTimer(&statev1.SetTimer{Name: "t", When: &statev1.SetTimer_DueIn{DueIn: durationpb.New(0)}})
				holder, tries = -1, 0
				continue
			case "failed":
				finish.Outcome = &statev1.FinishTimer_Failed{Failed: &statev1.TimerFailure{Error: "no"}}
			case "release":
				finish.Outcome = &statev1.FinishTimer_Release{Release: true}
			case "extend":
				finish.Outcome = &statev1.FinishTimer_Extend{Extend: durationpb.New(time.Minute)}
			}
			err := c.finishTimer(finish, &statev1.Result{})
			if has := holder == worker; has != (err == nil) {
				r.Fatalf("%d has it: %t, and is answered with %v", worker, has, err)
			}
			if err != nil {
				continue
			}
			if _, on := finish.GetOutcome().(*statev1.FinishTimer_Extend); !on {
				holder = -1
			}
			if finish.GetRelease() {
				tries--
			}
			if is := c.state.GetTimers()["t"]; is != nil && (is.GetParked() != (finish.GetFailed() != nil && tries >= maxAttempts) || int(is.GetAttempts()) != tries) {
				r.Fatalf("after %d tries: %v", tries, is)
			}
		}
	})
}

// Workers on two servers, of which some die with what they took: each timer's work is done once, and none is lost.
func TestATimerIsDoneOnceWhoeverDies(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := b.another(t)
	const objects = 12
	for i := range objects {
		b.as(t, ada).apply(t, fmt.Sprintf(`{'ref':{'type':'job','name':'%d'},'operations':[{'setTimer':{'name':'a','dueIn':'0.%ds'}},{'setTimer':{'name':'b','dueIn':'0s'}}]}`, i, i%5))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var mu sync.Mutex
	done := map[string]int{}
	var workers sync.WaitGroup
	for w := range 4 {
		c := []*bundle{b, other}[w%2].as(t, nobody)
		workers.Go(func() {
			for takes := 0; ; takes++ {
				got, err := c.TakeTimers(ctx, from(t, &statev1.TakeTimersRequest{}, fmt.Sprintf(`{'type':'job','worker':'%d','limit':3,'leaseDuration':'3s','wait':'5s'}`, w)))
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					t.Errorf("worker %d: %v", w, err)
				}
				if takes < 3 && takes%2 == 0 { // it dies with them
					continue
				}
				for _, timer := range got.GetTimers() {
					_, err := c.Apply(ctx, &statev1.ApplyRequest{Ref: timer.GetRef(), Operations: []*statev1.Operation{
						{Operation: &statev1.Operation_FinishTimer{FinishTimer: &statev1.FinishTimer{Name: timer.GetName(), FencingToken: timer.GetTimer().GetLease().GetFencingToken()}}},
						{Operation: &statev1.Operation_Increment{Increment: &statev1.Increment{Path: timer.GetName()}}},
					}})
					if err != nil && reason(err) != "FENCED" {
						t.Errorf("worker %d: %v", w, err)
					}
					if err == nil {
						mu.Lock()
						done[timer.GetRef().GetName()+timer.GetName()]++
						if len(done) == 2*objects {
							cancel()
						}
						mu.Unlock()
					}
				}
			}
		})
	}
	workers.Wait()
	for i := range objects {
		o := b.as(t, ada).read(t, fmt.Sprintf(`{'reads':[{'ref':{'type':'job','name':'%d'}}]}`, i))[0]
		f := o.GetState().GetFields()
		if f["a"].GetNumberValue() != 1 || f["b"].GetNumberValue() != 1 || len(o.GetTimers()) != 0 {
			t.Errorf("object %d: %v", i, o)
		}
	}
	if len(done) != 2*objects {
		t.Errorf("done: %v", done)
	}
}

// A timer goes to those who may change its object: its user's workers, and the tenant's services.
func TestTimersGoToTheirOwners(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, user := range []identity.User{ada, eve, nobody} {
		b.as(t, user).apply(t, `{'ref':{'type':'job','name':'j'},'operations':[{'setTimer':{'name':'t','dueIn':'0s'}}]}`)
	}
	if got := b.as(t, eve).take(t, `{'type':'other','limit':10}`); len(got) > 0 {
		t.Errorf("of another type: %v", got)
	}
	if got := b.as(t, eve).take(t, `{'type':'job','limit':10}`); len(got) != 1 || got[0].GetRef().GetOwner() != string(eve) {
		t.Errorf("eve takes %v", got)
	}
	if got := b.as(t, nobody).take(t, `{'type':'job','limit':10}`); len(got) != 2 {
		t.Errorf("a service takes %v", got)
	}
	if got := b.as(t, nobody).take(t, `{'type':'job','limit':10}`); len(got) != 0 {
		t.Errorf("taken twice: %v", got)
	}
}

// However many timers have come due since, the one that has waited longest is next.
func TestTheOldestTimersComeFirst(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for user, name := range map[identity.User]string{ada: "oldest of ada", eve: "oldest of eve"} {
		year := map[identity.User]int{ada: 2021, eve: 2020}[user]
		b.as(t, user).apply(t, fmt.Sprintf(`{'ref':{'type':'job','name':'%s'},'operations':[{'setTimer':{'name':'t','dueTime':'%d-01-01T00:00:00Z'}},{'setTimer':{'name':'u','dueIn':'0s'}}]}`, name, year))
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 120 {
				b.as(t, ada).apply(t, fmt.Sprintf(`{'ref':{'type':'job','name':'%d-%d'},'operations':[{'setTimer':{'name':'t','dueTime':'2022-01-01T00:00:%02dZ'}}]}`, i, j, j%60))
			}
		})
	}
	wg.Wait()
	names := func(taken []*statev1.TakenTimer) (out []string) {
		for _, t := range taken {
			out = append(out, t.GetRef().GetName())
		}
		return out
	}
	if got := names(b.as(t, ada).take(t, `{'type':'job'}`)); !slices.Equal(got, []string{"oldest of ada"}) {
		t.Errorf("ada takes %q", got)
	}
	if got := names(b.as(t, nobody).take(t, `{'type':'job'}`)); !slices.Equal(got, []string{"oldest of eve"}) {
		t.Errorf("a service takes %q", got)
	}
}

// A worker that waits gets a timer when it is due, on whichever server it was set, and nothing when the time is over.
func TestAWorkerWaitsForATimer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.as(t, nobody)
	if got := c.take(t, `{'type':'job','wait':'0.05s'}`); len(got) != 0 {
		t.Fatalf("got %v", got)
	}
	got := make(chan []*statev1.TakenTimer)
	go func() { got <- c.take(t, `{'type':'job','worker':'w','wait':'60s','leaseDuration':'20s'}`) }()
	b.another(t).as(t, nobody).apply(t, `{'ref':{'type':'job','name':'j'},'operations':[{'setTimer':{'name':'t','dueIn':'0.3s'}},{'setTimer':{'name':'later','dueIn':'1000s'}}]}`)
	taken := <-got
	if len(taken) != 1 || taken[0].GetName() != "t" || taken[0].GetTimer().GetLease().GetHolder() != "w" || taken[0].GetTimer().GetLease().GetExpiresIn().GetSeconds() != 20 {
		t.Fatalf("got %v", taken)
	}
	// A worker that waits keeps no server from stopping.
	answer, over := httptest.NewRecorder(), make(chan struct{})
	go func() {
		defer close(over)
		req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, statev1connect.StateServiceTakeTimersProcedure, strings.NewReader(`{"type":"job","wait":"60s"}`))
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+handlertest.Key(t, b.Bundle, nobody))
		b.handler.ServeHTTP(answer, req)
	}()
	b.stop()
	if <-over; !strings.Contains(answer.Body.String(), "SHUTTING_DOWN") {
		t.Errorf("got %s", answer.Body)
	}
}

// A timer that fails again and again comes later each time, and then rests, and says why; set again, it starts from the beginning.
func TestATimerThatAlwaysFailsIsParked(t *testing.T) {
	t.Parallel()
	b := setup(t)
	c := b.as(t, ada)
	c.apply(t, `{'ref':{'type':'job','name':'j'},'operations':[{'setTimer':{'name':'t','dueIn':'0s'}}]}`)
	timer := func() *statev1.Timer {
		t.Helper()
		return c.read(t, `{'reads':[{'ref':{'type':'job','name':'j'}}]}`)[0].GetTimers()["t"]
	}
	for i := 1; i <= maxAttempts; i++ {
		taken := c.take(t, `{'type':'job','wait':'30s'}`)
		if len(taken) != 1 || int(taken[0].GetTimer().GetAttempts()) != i {
			t.Fatalf("try %d: %v", i, taken)
		}
		token := taken[0].GetTimer().GetLease().GetFencingToken()
		c.apply(t, fmt.Sprintf(`{'ref':{'type':'job','name':'j'},'operations':[{'finishTimer':{'name':'t','fencingToken':%d,'failed':{'error':'no. %d','retryAfter':'0s'}}}]}`, token, i))
		_, err := c.Apply(t.Context(), from(t, &statev1.ApplyRequest{}, fmt.Sprintf(`{'ref':{'type':'job','name':'j'},'operations':[{'finishTimer':{'name':'t','fencingToken':%d}}]}`, token)))
		refused(t, err, "FENCED")
		if got := timer(); got.GetLastError() != fmt.Sprint("no. ", i) || got.GetParked() != (i == maxAttempts) {
			t.Fatalf("after try %d: %v", i, got)
		}
	}
	if got := c.take(t, `{'type':'job'}`); len(got) != 0 {
		t.Errorf("a parked timer is taken: %v", got)
	}
	// A fork has no timers, and a restored object has those of then.
	must(c.ForkState(t.Context(), from(t, &statev1.ForkStateRequest{}, `{'ref':{'type':'job','name':'j'},'newRef':{'type':'job','name':'fork'}}`)))(t)
	if got := c.read(t, `{'reads':[{'ref':{'type':'job','name':'fork'}}]}`)[0].GetTimers(); len(got) != 0 {
		t.Errorf("the fork has %v", got)
	}
	c.apply(t, `{'ref':{'type':'job','name':'j'},'operations':[{'setTimer':{'name':'t','dueIn':'0s'}}]}`)
	if got := c.take(t, `{'type':'job'}`); len(got) != 1 || got[0].GetTimer().GetAttempts() != 1 {
		t.Errorf("set again: %v", got)
	}
	c.apply(t, `{'ref':{'type':'job','name':'j'},'operations':[{'clearTimer':'t'}]}`)
	if got := timer(); got != nil {
		t.Errorf("cleared: %v", got)
	}
}
