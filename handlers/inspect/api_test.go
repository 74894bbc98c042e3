package inspect

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/typepb"

	"holdfast/db/dbtest"
	inspectv1 "holdfast/gen/holdfast/inspect/v1"
	"holdfast/gen/holdfast/inspect/v1/inspectv1connect"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers"
	"holdfast/handlers/handlertest"
	"holdfast/identity"
	"holdfast/object"
	"holdfast/object/objecttest"
)

func TestMain(m *testing.M) { os.Exit(dbtest.MainWithoutLeaks(m)) }

type toy = *typepb.Type

// bundle is a test's server, with a kind that users may restore and one that they may not, and clients of it.
type bundle struct {
	*dbtest.Bundle

	ctx          context.Context // ada's, for the kinds
	toys, strict *object.Kind[toy]
	ada, service inspectv1connect.InspectServiceClient
	asUser       func(identity.User) inspectv1connect.InspectServiceClient
}

func setup(t *testing.T) *bundle {
	t.Helper()
	d := dbtest.New(t)
	rt := object.NewRuntime(d.DB, object.Config{})
	ctx, cancel := context.WithTimeout(d.As(t, "ada"), time.Minute)
	t.Cleanup(cancel)
	b := &bundle{Bundle: d, ctx: ctx}
	c := object.KindConfig[toy]{
		Name: "toy", SchemaVersion: 3, TTL: 48 * time.Hour, UserRestore: true,
		Collections: map[string]proto.Message{"values": &typepb.EnumValue{}}, Recent: "values", RecentKeep: 4,
		OnTimer: func(*object.Tx[toy], string) error { return nil },
	}
	b.toys = object.Register(rt, c)
	c.Name, c.UserRestore = "strict", false
	b.strict = object.Register(rt, c)
	server := handlertest.Serve(t, d, rt, handlers.Options{Services: []handlers.Service{handlers.NewService[inspectv1connect.InspectServiceHandler](
		inspectv1connect.InspectServiceName, inspectv1connect.NewInspectServiceHandler, NewManager(rt))}})
	b.asUser = func(u identity.User) inspectv1connect.InspectServiceClient {
		return inspectv1connect.NewInspectServiceClient(handlertest.Client(t, d, u, nil), server.URL)
	}
	b.ada, b.service = b.asUser("ada"), b.asUser("")
	return b
}

// put makes a version of an object: its name, and entries by key, deleted where they are empty.
func (b *bundle) put(ctx context.Context, t *testing.T, k *object.Kind[toy], id object.ID, name string, entries ...string) {
	t.Helper()
	_, err := k.Update(ctx, id, func(tx *object.Tx[toy]) error {
		tx.State().Name = name
		for _, e := range entries {
			key, text, _ := strings.Cut(e, "=")
			if text == "" {
				tx.DeleteEntry("values", key)
			} else {
				tx.Put("values", key, &typepb.EnumValue{Name: text})
			}
		}
		return nil
	}, object.Upsert())
	if err != nil {
		t.Fatal(err)
	}
}

// wantRefusal fails the test unless err has this code and reason.
func wantRefusal(t *testing.T, err error, code connect.Code, reason string) map[string]string {
	t.Helper()
	e, ok := errors.AsType[*connect.Error](err)
	if !ok || e.Code() != code {
		t.Fatalf("got %v, want %v %s", err, code, reason)
	}
	for _, d := range e.Details() {
		if v, err := d.Value(); err == nil {
			if i, ok := v.(*errdetails.ErrorInfo); ok {
				if i.GetReason() != reason {
					t.Fatalf("got reason %s, want %s: %v", i.GetReason(), reason, err)
				}
				return i.GetMetadata()
			}
		}
	}
	t.Fatalf("no reason in %v", err)
	return nil
}

func at(v int64) *inspectv1.Moment {
	return &inspectv1.Moment{Point: &inspectv1.Moment_Version{Version: v}}
}

func ref(kind, id string) *typev1.ObjectRef { return &typev1.ObjectRef{Kind: kind, ObjectId: id} }

// text is a message as JSON with stable spaces.
func text(t *testing.T, m proto.Message) string {
	t.Helper()
	b, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), " ", "")
}

// An object through its life, as the inspector shows it.
func TestInspect(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.put(b.ctx, t, b.toys, "a", "one", "k1=x", "k2=y")
	b.put(b.ctx, t, b.toys, "a", "two", "k1=", "k2=z", "k3=new")
	if _, err := b.toys.Update(b.ctx, "a", func(tx *object.Tx[toy]) error {
		tx.State().Oneofs = []string{"o"}
		tx.SetTimer("later", tx.Now().Add(time.Hour))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	page := &inspectv1.GetObjectRequest{Ref: ref("toy", "a"), Collection: "values", PageSize: 1}
	now, err := b.ada.GetObject(t.Context(), page)
	if err != nil {
		t.Fatal(err)
	}
	if got := text(t, now.GetObject().GetState()); got != `{"name":"two","oneofs":["o"]}` {
		t.Errorf("state %s", got)
	}
	if now.GetObject().GetOwner() != "ada" || now.GetObject().GetSchemaVersion() != 3 || now.GetNextPageToken() == "" || len(now.GetEntries()) != 1 || now.GetObject().GetVersion() != 3 {
		t.Errorf("%v", now)
	}
	if s := now.GetObject().GetSize(); s.GetEntryCount() != 2 || s.GetStateBytes() == 0 || s.GetEntryBytes() == 0 {
		t.Errorf("size %v", s)
	}
	if len(now.GetObject().GetTimers()) != 1 || now.GetObject().GetTimers()[0].GetName() != "later" || now.GetObject().GetTimers()[0].GetDueTime() == nil {
		t.Errorf("timers %v", now.GetObject().GetTimers())
	}
	page.PageToken = now.GetNextPageToken()
	if rest, err := b.ada.GetObject(t.Context(), page); err != nil || len(rest.GetEntries()) != 1 || rest.GetEntries()[0].GetKey() != "k3" || rest.GetNextPageToken() != "" {
		t.Errorf("second page: %v, %v", rest, err)
	}

	was, err := b.ada.GetObject(t.Context(), &inspectv1.GetObjectRequest{Ref: ref("toy", "a"), At: at(1), Collection: "values"})
	if err != nil {
		t.Fatal(err)
	}
	if text(t, was.GetObject().GetState()) != `{"name":"one"}` || len(was.GetEntries()) != 2 || was.GetObject().GetVersion() != 1 || len(was.GetObject().GetTimers()) != 0 {
		t.Errorf("version 1 was %v", was)
	}
	byTime, err := b.ada.GetObject(t.Context(), &inspectv1.GetObjectRequest{
		Ref: ref("toy", "a"), At: &inspectv1.Moment{Point: &inspectv1.Moment_Time{Time: was.GetObject().GetUpdateTime()}}, Collection: "values",
	})
	if err != nil || byTime.GetObject().GetVersion() != 1 {
		t.Errorf("by time: %v, %v", byTime, err)
	}

	diff, err := b.ada.DiffObject(t.Context(), &inspectv1.DiffObjectRequest{Ref: ref("toy", "a"), From: at(1)})
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"fromVersion":"1","toVersion":"3","fields":[{"field":"name","before":"one","after":"two"},{"field":"oneofs","after":["o"]}],` +
		`"entries":[{"collection":"values","key":"k1","before":{"name":"x"}},{"collection":"values","key":"k2","before":{"name":"y"},"after":{"name":"z"}},` +
		`{"collection":"values","key":"k3","after":{"name":"new"}}],"entryCount":3}`
	if got := text(t, diff); got != want {
		t.Errorf("difference\n%s\nwant\n%s", got, want)
	}

	events, err := b.ada.ListEvents(t.Context(), &inspectv1.ListEventsRequest{Ref: ref("toy", "a"), PageSize: 2})
	if err != nil || len(events.GetEvents()) != 2 || events.GetNextPageToken() == "" {
		t.Fatalf("%v, %v", events, err)
	}
	if e := events.GetEvents()[1]; e.GetVersion() != 2 || e.GetActor() != "ada" || e.GetEntryCount() != 3 || !cmp.Equal(e.GetFields(), []string{"name"}) || e.GetEntries()[0] != "values/k1" {
		t.Errorf("%v", e)
	}
	if e := events.GetEvents()[0]; !cmp.Equal(e.GetTimers(), []string{"later"}) {
		t.Errorf("%v", e)
	}
}

// A restore is a version, happens once, and can be undone.
func TestRestore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.put(b.ctx, t, b.toys, "a", "one", "k1=x")
	b.put(b.ctx, t, b.toys, "a", "two", "k1=", "k2=y")
	req := &inspectv1.RestoreObjectRequest{Ref: ref("toy", "a"), At: at(1), RequestId: "r-1"}
	first, err := b.ada.RestoreObject(t.Context(), req)
	if err != nil || first.GetRestoredVersion() != 1 || first.GetVersion() != 3 {
		t.Fatalf("%v, %v", first, err)
	}
	b.put(b.ctx, t, b.toys, "a", "four")
	again, err := b.ada.RestoreObject(t.Context(), req)
	if err != nil || !proto.Equal(first, again) {
		t.Errorf("a retry is answered with %v, %v; the first was %v", again, err, first)
	}
	req.At = at(2)
	_, err = b.ada.RestoreObject(t.Context(), req)
	wantRefusal(t, err, connect.CodeAlreadyExists, "REQUEST_ID_REUSED")
	_, err = b.ada.RestoreObject(t.Context(), &inspectv1.RestoreObjectRequest{Ref: ref("toy", "a"), At: at(1), IfVersion: proto.Int64(3)})
	wantRefusal(t, err, connect.CodeAborted, "VERSION_MISMATCH")

	remove := &inspectv1.DeleteObjectRequest{Ref: ref("toy", "a"), RequestId: "r-2"}
	gone, err := b.ada.DeleteObject(t.Context(), remove)
	if err != nil || gone.GetVersion() != 5 {
		t.Fatalf("%v, %v", gone, err)
	}
	for name, do := range map[string]func() (proto.Message, error){
		"delete":  func() (proto.Message, error) { return b.ada.DeleteObject(t.Context(), remove) },
		"restore": func() (proto.Message, error) { req.At = at(1); return b.ada.RestoreObject(t.Context(), req) },
	} {
		want := map[string]proto.Message{"delete": gone, "restore": first}[name]
		if got, err := do(); err != nil || !proto.Equal(got, want) {
			t.Errorf("a retry of %s after the object is gone is answered with %v, %v; the first was %v", name, got, err, want)
		}
	}
	_, err = b.ada.GetObject(t.Context(), &inspectv1.GetObjectRequest{Ref: ref("toy", "a")})
	wantRefusal(t, err, connect.CodeNotFound, "NOT_FOUND")
	// What was deleted comes back.
	back, err := b.ada.RestoreObject(t.Context(), &inspectv1.RestoreObjectRequest{Ref: ref("toy", "a"), At: at(4)})
	if err != nil || back.GetVersion() != 6 {
		t.Fatalf("%v, %v", back, err)
	}
	b.put(b.ctx, t, b.toys, "a", "seven")
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	b := setup(t)
	shared := b.AsService(t)
	b.put(shared, t, b.toys, "shared", "one")
	for _, k := range []*object.Kind[toy]{b.toys, b.strict} {
		b.put(b.ctx, t, k, "a", "one")
		b.put(b.ctx, t, k, "a", "two")
	}
	get := func(kind, id, collection string) error {
		_, err := b.ada.GetObject(t.Context(), &inspectv1.GetObjectRequest{Ref: ref(kind, id), Collection: collection})
		return err
	}
	wantRefusal(t, get("no-kind", "a", ""), connect.CodeInvalidArgument, "FIELD_INVALID")
	wantRefusal(t, get("toy", "a b", ""), connect.CodeInvalidArgument, "FIELD_INVALID")
	wantRefusal(t, get("toy", "none", ""), connect.CodeNotFound, "NOT_FOUND")
	wantRefusal(t, get("toy", "a", "none"), connect.CodeInvalidArgument, "FIELD_INVALID")
	_, err := b.ada.GetObject(t.Context(), &inspectv1.GetObjectRequest{})
	wantRefusal(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	_, err = b.ada.GetObject(t.Context(), &inspectv1.GetObjectRequest{Ref: ref("toy", "a"), At: at(3)})
	wantRefusal(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	_, err = b.ada.GetObject(t.Context(), &inspectv1.GetObjectRequest{Ref: ref("toy", "a"), At: &inspectv1.Moment{
		Point: &inspectv1.Moment_Time{Time: timestamppb.New(time.Unix(0, 0))},
	}})
	wantRefusal(t, err, connect.CodeNotFound, "NOT_FOUND")
	_, err = b.ada.DiffObject(t.Context(), &inspectv1.DiffObjectRequest{Ref: ref("toy", "a"), From: at(2), To: at(1)})
	wantRefusal(t, err, connect.CodeInvalidArgument, "FIELD_INVALID")
	_, err = b.ada.ListObjects(t.Context(), &inspectv1.ListObjectsRequest{Kind: "toy", PageToken: "x"})
	wantRefusal(t, err, connect.CodeInvalidArgument, "PAGE_TOKEN_INVALID")

	if err := objecttest.Delete(b.ctx, b.toys, "a"); err != nil {
		t.Fatal(err)
	}
	b.put(b.ctx, t, b.toys, "a", "second life")
	_, err = b.ada.RestoreObject(t.Context(), &inspectv1.RestoreObjectRequest{Ref: ref("toy", "a"), At: at(2)})
	if facts := wantRefusal(t, err, connect.CodeFailedPrecondition, "HISTORY_GONE"); facts["oldest_version"] != "4" {
		t.Errorf("%v", facts)
	}

	if err := get("strict", "a", ""); err != nil {
		t.Error(err)
	}
	wantRefusal(t, get("toy", "shared", ""), connect.CodeNotFound, "NOT_FOUND")
	// A user may not step round the rules of a kind, nor change what is everybody's. A service may.
	for _, c := range []struct{ kind, id string }{{"strict", "a"}, {"toy", "shared"}} {
		calls := map[string]func(inspectv1connect.InspectServiceClient) error{
			"restore": func(s inspectv1connect.InspectServiceClient) error {
				_, err := s.RestoreObject(t.Context(), &inspectv1.RestoreObjectRequest{Ref: ref(c.kind, c.id), At: at(1)})
				return err
			},
			"delete": func(s inspectv1connect.InspectServiceClient) error {
				_, err := s.DeleteObject(t.Context(), &inspectv1.DeleteObjectRequest{Ref: ref(c.kind, c.id)})
				return err
			},
		}
		for _, call := range calls {
			wantRefusal(t, call(b.ada), connect.CodePermissionDenied, "ROLE_REQUIRED")
		}
		for _, name := range []string{"restore", "delete"} {
			if call := calls[name]; call != nil {
				if err := call(b.service); err != nil {
					t.Errorf("a service's %s of %s: %v", name, c.kind, err)
				}
			}
		}
	}
}

func TestListObjects(t *testing.T) {
	t.Parallel()
	b := setup(t)
	kinds, err := b.ada.ListObjects(t.Context(), &inspectv1.ListObjectsRequest{})
	if err != nil || !cmp.Equal(kinds.GetKinds(), []string{"strict", "toy"}) {
		t.Fatalf("%v, %v", kinds, err)
	}
	for _, id := range []object.ID{"b1", "a2", "a1", "a3"} {
		b.put(b.ctx, t, b.toys, id, "x")
	}
	b.put(b.As(t, "eve"), t, b.toys, "a4", "x")
	b.put(b.AsService(t), t, b.toys, "a5", "x")
	eve, nobody := "eve", ""
	for name, c := range map[string]struct {
		as   inspectv1connect.InspectServiceClient
		req  *inspectv1.ListObjectsRequest
		want []string
	}{
		"by id":                {b.service, &inspectv1.ListObjectsRequest{ById: true}, []string{"a1", "a2", "a3", "a4", "a5", "b1"}},
		"by activity":          {b.service, &inspectv1.ListObjectsRequest{}, []string{"a5", "a4", "a3", "a1", "a2", "b1"}},
		"a user":               {b.ada, &inspectv1.ListObjectsRequest{ById: true}, []string{"a1", "a2", "a3", "b1"}},
		"a prefix":             {b.ada, &inspectv1.ListObjectsRequest{ById: true, Prefix: "b"}, []string{"b1"}},
		"a prefix by activity": {b.ada, &inspectv1.ListObjectsRequest{Prefix: "b"}, []string{"b1"}},
		"an owner":             {b.service, &inspectv1.ListObjectsRequest{ById: true, Owner: &eve}, []string{"a4"}},
		"an owner, activity":   {b.service, &inspectv1.ListObjectsRequest{Owner: &eve}, []string{"a4"}},
		"shared, a service":    {b.service, &inspectv1.ListObjectsRequest{Owner: &nobody}, []string{"a5"}},
		"another owner":        {b.ada, &inspectv1.ListObjectsRequest{Owner: &eve}, nil},
		"what is shared":       {b.ada, &inspectv1.ListObjectsRequest{Owner: &nobody}, nil},
	} {
		for _, size := range []int32{1, 2, 50} {
			var got []string
			c.req.Kind, c.req.PageSize, c.req.PageToken = "toy", size, ""
			for page := 0; page == 0 || c.req.GetPageToken() != ""; page++ {
				res, err := c.as.ListObjects(t.Context(), c.req)
				if err != nil {
					t.Fatal(name, err)
				}
				for _, o := range res.GetObjects() {
					got = append(got, o.GetObjectId())
				}
				c.req.PageToken = res.GetNextPageToken()
			}
			if !cmp.Equal(got, c.want) {
				t.Errorf("%s, %d at a time: %v, want %v", name, size, got, c.want)
			}
		}
	}
}

func TestTimers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, id := range []object.ID{"a", "b"} {
		_, err := b.toys.Update(b.ctx, id, func(tx *object.Tx[toy]) error {
			tx.SetTimer("t1", tx.Now().Add(time.Hour))
			tx.SetTimer("t2", tx.Now().Add(time.Hour))
			return nil
		}, object.Create())
		if err != nil {
			t.Fatal(err)
		}
	}
	b.exec(t, "UPDATE holdfast.timers SET parked = true, attempts = 10, last_error = 'panic' WHERE tenant_id = $1 AND object_id = 'b' AND name = 't2'", string(b.Tenant))
	list := func(req *inspectv1.ListTimersRequest) (out []string) {
		t.Helper()
		for page := 0; page == 0 || req.GetPageToken() != ""; page++ {
			res, err := b.ada.ListTimers(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			for _, timer := range res.GetTimers() {
				out = append(out, fmt.Sprint(timer.GetObjectId(), "/", timer.GetName(), " ", timer.GetAttempts(), timer.GetLastError(), timer.GetParked()))
			}
			req.PageToken = res.GetNextPageToken()
		}
		return out
	}
	all := []string{"a/t1 0false", "a/t2 0false", "b/t1 0false", "b/t2 10panictrue"}
	for _, size := range []int32{0, 1, 3} {
		if got := list(&inspectv1.ListTimersRequest{PageSize: size}); !cmp.Equal(got, all) {
			t.Errorf("%v", got)
		}
	}
	if got := list(&inspectv1.ListTimersRequest{Kind: "toy", ObjectId: "a", PageSize: 1}); !cmp.Equal(got, all[:2]) {
		t.Errorf("of one object: %v", got)
	}
	if got := list(&inspectv1.ListTimersRequest{Parked: true}); !cmp.Equal(got, all[3:]) {
		t.Errorf("parked: %v", got)
	}
	req := &inspectv1.RetryTimerRequest{Ref: ref("toy", "b"), Name: "t2", RequestId: "r-1"}
	first, err := b.ada.RetryTimer(t.Context(), req)
	if err != nil || first.GetVersion() != 2 {
		t.Fatalf("%v, %v", first, err)
	}
	if again, err := b.ada.RetryTimer(t.Context(), req); err != nil || cmp.Diff(first, again, protocmp.Transform()) != "" {
		t.Errorf("%v, %v", again, err)
	}
	if got := list(&inspectv1.ListTimersRequest{ObjectId: "b"}); !cmp.Equal(got, []string{"b/t1 0false", "b/t2 0false"}) {
		t.Errorf("after a retry: %v", got)
	}
	for _, c := range []struct{ kind, id, name string }{{"toy", "b", "none"}, {"toy", "none", "t1"}} {
		_, err := b.ada.RetryTimer(t.Context(), &inspectv1.RetryTimerRequest{Ref: ref(c.kind, c.id), Name: c.name})
		wantRefusal(t, err, connect.CodeNotFound, "NOT_FOUND")
	}
	_, err = b.ada.ListTimers(t.Context(), &inspectv1.ListTimersRequest{PageToken: "x"})
	wantRefusal(t, err, connect.CodeInvalidArgument, "PAGE_TOKEN_INVALID")
}
