package handlers_test

import (
	"net"
	"strings"
	"testing"

	"holdfast/db/dbtest"
	"holdfast/handlers"
	"holdfast/handlers/handlertest"
	"holdfast/object"
)

// A connection that has said nothing yet, such as browsers open in advance, does not hold up the end of a server.
func TestADrainDoesNotWaitForSilentConnections(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	s := handlertest.Serve(t, d, object.NewRuntime(d.DB, object.Config{}), handlers.Options{})
	for range 4 {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	// Once this is answered, the connections before it are accepted.
	if res, err := handlertest.Client(t, d, "", nil).Get(s.URL + "/healthz"); err != nil || res.Body.Close() != nil {
		t.Fatal(err)
	}
	s.Stop()
	<-s.Stopped // an error if something was cut short
}
