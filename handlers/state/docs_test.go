package state

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"holdfast/gen/holdfast/state/v1/statev1connect"
	"holdfast/handlers/handlertest"
)

// The examples of docs/state.md are answered as it says.
func TestTheExamplesOfTheDocs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	text, err := os.ReadFile("../../docs/state.md")
	if err != nil {
		t.Fatal(err)
	}
	user, service := handlertest.Client(t, b.Bundle, ada, nil), handlertest.Client(t, b.Bundle, nobody, nil)
	examples := regexp.MustCompile(`(?m)^(apply|together|read|take|declare_type|events) '(.*)'\n# (.*)$`).FindAllStringSubmatch(string(text), -1)
	if len(examples) < 28 {
		t.Fatalf("only %d examples were found", len(examples))
	}
	for _, e := range examples {
		if e[1] == "events" {
			if _, data, _ := b.events(t, ada, "/v1/state/"+e[2], "").next(); !strings.Contains(data, e[3]) {
				t.Errorf("%s '%s' begins with\n%s\nwithout %s", e[1], e[2], data, e[3])
			}
			continue
		}
		url := b.url + "/" + statev1connect.StateServiceName + "/" +
			map[string]string{"apply": "Apply", "together": "ApplyTogether", "read": "Read", "take": "TakeTimers", "declare_type": "PutType"}[e[1]]
		c := user
		if e[1] == "declare_type" {
			c = service
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(e[2]))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(answer), e[3]) {
			t.Errorf("%s '%s'\nis answered with\n%s\nwithout %s", e[1], e[2], answer, e[3])
		}
	}
}
