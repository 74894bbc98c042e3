package project

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"holdfast/gen/holdfast/project/v1/projectv1connect"
)

// The examples of docs/tasks.md are answered as it says.
func TestTheExamplesOfTheDocs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	text, err := os.ReadFile("../../docs/tasks.md")
	if err != nil {
		t.Fatal(err)
	}
	c := b.http(t, ada)
	examples := regexp.MustCompile(`(?m)^put '(.*)'\n# (.*)$`).FindAllStringSubmatch(string(text), -1)
	if len(examples) < 6 {
		t.Fatalf("only %d examples were found", len(examples))
	}
	for _, e := range examples {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.url+"/"+projectv1connect.ProjectServiceName+"/PutTask", strings.NewReader(e[1]))
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
		for part := range strings.SplitSeq(e[2], " ... ") {
			if !strings.Contains(string(answer), part) {
				t.Errorf("put '%s'\nis answered with\n%s\nwithout %s", e[1], answer, part)
			}
		}
	}
}
