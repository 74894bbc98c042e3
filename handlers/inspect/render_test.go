package inspect

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	linearstorev1 "holdfast/gen/holdfast/store/linear/v1"
	projectstorev1 "holdfast/gen/holdfast/store/project/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
)

// exec runs SQL as the database's owner.
func (b *bundle) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), b.SuperuserURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

// What a message marks as secret is not shown, in fields, lists and maps, nor in a difference.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	endpoint := &linearstorev1.EndpointState{
		Title: "t", Secrets: []*linearstorev1.SealedSecret{{SecretId: "s1", Sealed: []byte("secret")}, {SecretId: "s2"}},
		ApiKey: &linearstorev1.SealedSecret{SecretId: "k", Sealed: []byte("secret")},
	}
	if got, want := rendered(t, endpoint), `{"api_key":{"sealed":"[REDACTED]","secret_id":"k"},"secrets":[{"sealed":"[REDACTED]","secret_id":"s1"},{"secret_id":"s2"}],"title":"t"}`; got != want {
		t.Errorf("shown as\n%s\nwant\n%s", got, want)
	}
	other := proto.CloneOf(endpoint)
	other.ApiKey.Sealed = []byte("another")
	d, err := fieldDifferences(endpoint, other)
	if err != nil || len(d) != 1 || d[0].GetField() != "api_key" {
		t.Fatalf("%v, %v", d, err)
	}
	if before, after := d[0].GetBefore().GetStructValue().GetFields()["sealed"].GetStringValue(), d[0].GetAfter().GetStructValue().GetFields()["sealed"].GetStringValue(); before != redacted || after != redacted {
		t.Errorf("%q and %q are shown", before, after)
	}
	users := &storev1.UserSessions{Sessions: map[string]*storev1.SessionRecord{"s1": {Generation: 1, RefreshHash: []byte("secret")}}}
	if got, want := rendered(t, users), `{"sessions":{"s1":{"generation":1,"refresh_hash":"[REDACTED]"}}}`; got != want {
		t.Errorf("shown as\n%s\nwant\n%s", got, want)
	}
}

// Messages whose JSON is not an object of their fields are shown as they are.
func TestWellKnownTypesAreShown(t *testing.T) {
	t.Parallel()
	s, err := structpb.NewStruct(map[string]any{"sealed": "not a field", "list": []any{1, nil}})
	if err != nil {
		t.Fatal(err)
	}
	if got := rendered(t, &projectstorev1.ProjectState{Settings: s}); !strings.Contains(got, `"sealed":"notafield"`) {
		t.Errorf("shown as %s", got)
	}
	if got := rendered(t, nil); got != "null" {
		t.Errorf("nothing is shown as %s", got)
	}
}

func rendered(t *testing.T, m proto.Message) string {
	t.Helper()
	s, err := render(m)
	if err != nil {
		t.Fatal(err)
	}
	if s == nil {
		return "null"
	}
	b, err := protojson.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(b), " ", "")
}
