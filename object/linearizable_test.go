package object_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db"
	"holdfast/object"
)

// An object as the checker sees it: a register of text that can be appended to and read.

type call struct {
	object string
	append string // empty: a read
}

type answer struct {
	text    string
	version object.Version
	unknown bool // whether it was done was not said
}

// register is what every history must be explained by. State is the text; the version is how many appends it has.
func register() porcupine.Model {
	nondeterministic := porcupine.NondeterministicModel{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			byObject := map[string][]porcupine.Operation{}
			for _, op := range history {
				id := op.Input.(call).object
				byObject[id] = append(byObject[id], op)
			}
			var out [][]porcupine.Operation
			for _, ops := range byObject {
				out = append(out, ops)
			}
			return out
		},
		Init: func() []any { return []any{""} },
		Step: func(state, input, output any) []any {
			text, in, out := state.(string), input.(call), output.(answer)
			if in.append == "" {
				if out.text == text && int(out.version) == strings.Count(text, " ") {
					return []any{text}
				}
				return nil
			}
			after := text + in.append + " "
			switch {
			case out.unknown:
				return []any{text, after}
			case int(out.version) == strings.Count(after, " ") && out.text == after:
				return []any{after}
			}
			return nil
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
	}
	return nondeterministic.ToModel()
}

// The checker itself: histories that it must accept, and such that it must not.
func TestRegisterModel(t *testing.T) {
	t.Parallel()
	op := func(from, to int64, appended, text string, version object.Version, unknown bool) porcupine.Operation {
		return porcupine.Operation{
			Input: call{"a", appended}, Call: from, Output: answer{text, version, unknown}, Return: to,
		}
	}
	for name, c := range map[string]struct {
		history []porcupine.Operation
		fine    bool
	}{
		"one after the other":       {[]porcupine.Operation{op(1, 2, "x", "x ", 1, false), op(3, 4, "", "x ", 1, false)}, true},
		"at once, either order":     {[]porcupine.Operation{op(1, 4, "x", "y x ", 2, false), op(2, 3, "y", "y ", 1, false)}, true},
		"a stale read":              {[]porcupine.Operation{op(1, 2, "x", "x ", 1, false), op(3, 4, "", "", 0, false)}, false},
		"a lost update":             {[]porcupine.Operation{op(1, 4, "x", "x ", 1, false), op(2, 3, "y", "y ", 1, false)}, false},
		"done twice":                {[]porcupine.Operation{op(1, 2, "x", "x ", 1, false), op(3, 4, "", "x x ", 2, false)}, false},
		"unknown and done":          {[]porcupine.Operation{op(1, 9, "x", "", 0, true), op(3, 4, "", "x ", 1, false)}, true},
		"unknown and done later":    {[]porcupine.Operation{op(1, 9, "x", "", 0, true), op(3, 4, "", "", 0, false), op(5, 6, "", "x ", 1, false)}, true},
		"unknown and never done":    {[]porcupine.Operation{op(1, 9, "x", "", 0, true), op(3, 4, "", "", 0, false)}, true},
		"unknown, done and undone":  {[]porcupine.Operation{op(1, 9, "x", "", 0, true), op(3, 4, "", "x ", 1, false), op(5, 6, "", "", 0, false)}, false},
		"a version that is not its": {[]porcupine.Operation{op(1, 2, "x", "x ", 2, false)}, false},
	} {
		if got := porcupine.CheckOperations(register(), c.history); got != c.fine {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// Two processes and several clients work on a few objects, while connections are killed, calls are given up and
// requests are sent again. Whatever the callers were told has one order that explains it.
func TestLinearizable(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const objects, clients, each = 5, 8, 120
	kinds := make([]*object.Kind[toy], 2)
	for i := range kinds {
		kinds[i] = toyKind(newRuntime(t, b.open(t, "linearizable"), object.Config{}))
	}
	start := time.Now()
	since := func() int64 { return int64(time.Since(start)) }

	var mu sync.Mutex
	var history []porcupine.Operation
	var unknown, refused, killed int
	finished := make(chan struct{}, clients*each+objects)
	record := func(client int, c call, from int64, a answer, err error) {
		mu.Lock()
		defer mu.Unlock()
		finished <- struct{}{}
		to := since()
		switch {
		case err == nil:
		case c.append == "":
			return // a read that failed says nothing
		case errors.Is(err, db.ErrOutcomeUnknown), errors.Is(err, context.DeadlineExceeded):
			// It may have happened, and may happen yet.
			unknown++
			a, to = answer{unknown: true}, int64(time.Hour)
		default:
			refused++ // nothing was done
			return
		}
		history = append(history, porcupine.Operation{ClientId: client, Input: c, Call: from, Output: a, Return: to})
	}

	var working sync.WaitGroup
	for client := range clients {
		working.Go(func() {
			r := rand.New(rand.NewPCG(uint64(client), 7))
			for i := range each {
				k := kinds[r.IntN(len(kinds))]
				id := object.ID(fmt.Sprint("o", r.IntN(objects)))
				ctx, cancel := b.ctx, context.CancelFunc(func() {})
				if r.IntN(6) == 0 {
					ctx, cancel = context.WithTimeout(b.ctx, time.Duration(r.IntN(3000))*time.Microsecond)
				}
				from := since()
				if r.IntN(3) == 0 {
					s, err := k.View(ctx, id)
					if errors.Is(err, object.ErrNotFound) {
						s, err = object.Snapshot[toy]{}, nil
					}
					record(client, call{object: string(id)}, from, answer{text: s.State.GetName(), version: s.Version}, err)
					cancel()
					continue
				}
				c := call{string(id), fmt.Sprintf("%d-%d", client, i)}
				requestID := ""
				if r.IntN(2) == 0 {
					requestID = c.append
				}
				a, err := appendToRegister(ctx, k, id, requestID, c.append)
				tries := err
				for again := 0; err != nil && requestID != "" && again < 3; again++ {
					a, err = appendToRegister(b.ctx, kinds[r.IntN(len(kinds))], id, requestID, c.append)
					tries = errors.Join(tries, err)
				}
				if err != nil {
					err = tries // a later try that was refused does not undo an earlier one
				}
				record(client, c, from, a, err)
				cancel()
			}
		})
	}
	done := make(chan struct{})
	var killing sync.WaitGroup
	killing.Go(func() {
		conn := b.owner(t)
		for {
			// Some operations come through between two deaths, however slow the machine is.
			for range 4 {
				select {
				case <-done:
					return
				case <-finished:
				}
			}
			var n int
			err := conn.QueryRow(b.ctx, `SELECT count(pg_terminate_backend(pid)) FROM (
				SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY random() LIMIT 1) x`, b.appName("linearizable")).Scan(&n)
			if err != nil {
				t.Error(err)
				return
			}
			killed += n
		}
	})
	working.Wait()
	close(done)
	killing.Wait()
	final := map[string]string{}
	for o := range objects {
		id := object.ID(fmt.Sprint("o", o))
		from := since()
		s, err := b.toys.View(b.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		final[string(id)] = s.State.GetName()
		record(clients, call{object: string(id)}, from, answer{text: s.State.GetName(), version: s.Version}, err)
	}
	t.Logf("%d operations, %d of unknown outcome, %d refused, %d connections killed, %v", len(history), unknown, refused, killed, time.Since(start))
	if killed == 0 || len(history) < clients*each/2 {
		t.Error("too little happened to show anything")
	}
	for _, part := range register().Partition(settle(history, final)) {
		if result := porcupine.CheckOperationsTimeout(register(), part, time.Minute); result != porcupine.Ok {
			for _, op := range part {
				t.Logf("%d..%d client %d %s", op.Call, op.Return, op.ClientId, register().DescribeOperation(op.Input, op.Output))
			}
			t.Errorf("the history of one object is %s", result)
		}
	}
}

// settle takes from a history what is unknown in it, which would make checking it take as long as there are orders. An append that is not
// in the last text has not been seen by anybody; of one that is there the text before it says what it must have answered.
func settle(history []porcupine.Operation, final map[string]string) (settled []porcupine.Operation) {
	for _, op := range history {
		if in, out := op.Input.(call), op.Output.(answer); out.unknown {
			before, _, there := strings.Cut(" "+final[in.object], " "+in.append+" ")
			if !there {
				continue
			}
			text := strings.TrimPrefix(before+" "+in.append+" ", " ")
			op.Output = answer{text: text, version: object.Version(strings.Count(text, " "))}
		}
		settled = append(settled, op)
	}
	return settled
}

func TestSettle(t *testing.T) {
	t.Parallel()
	unknown := func(appended string) porcupine.Operation {
		return porcupine.Operation{Input: call{"a", appended}, Call: 1, Output: answer{unknown: true}, Return: 9}
	}
	final := map[string]string{"a": "x xy y "}
	var got []answer
	for _, op := range settle([]porcupine.Operation{unknown("x"), unknown("y"), unknown("xy"), unknown("z")}, final) {
		got = append(got, op.Output.(answer))
	}
	if want := []answer{{"x ", 1, false}, {"x xy y ", 3, false}, {"x xy ", 2, false}}; !slices.Equal(got, want) {
		t.Errorf("settled to %v", got)
	}
}

// appendToRegister appends to a register and answers what that left.
func appendToRegister(ctx context.Context, k *object.Kind[toy], id object.ID, requestID, text string) (answer, error) {
	r := &toyRequest{structpb.NewStringValue(text), requestID}
	reply, err := object.Do(ctx, k, id, r, func(tx *object.Tx[toy]) (*typepb.EnumValue, error) {
		tx.State().Name += text + " "
		return &typepb.EnumValue{Name: tx.State().GetName(), Number: int32(tx.Info().Version)}, nil
	}, object.Upsert())
	return answer{text: reply.GetName(), version: object.Version(reply.GetNumber())}, err
}
