package console

import (
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

func TestThePageAndAllThatItLoadsIsServedUnderItsPolicy(t *testing.T) {
	t.Parallel()
	h := Handler(nil)
	page := call(h, http.MethodGet, Path, "")
	if got := page.Header().Get("Content-Security-Policy"); !strings.Contains(got, "default-src 'none'") || strings.Contains(got, "unsafe") {
		t.Errorf("the policy is %q", got)
	}
	if page.Header().Get("Set-Cookie") != "" || page.Header().Get("Cache-Control") != "no-cache" {
		t.Errorf("the page has the headers %v", page.Header())
	}
	loads := regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(page.Body.String(), -1)
	if len(loads) < 3 {
		t.Fatalf("the page loads %v; it needs a script, a stylesheet and an icon. Is console/dist built?", loads)
	}
	for _, m := range loads {
		if res := call(h, http.MethodGet, Path+m[1], ""); res.Code != http.StatusOK || res.Body.Len() == 0 {
			t.Errorf("%s: %d", m[1], res.Code)
		}
	}
	if res := call(h, http.MethodGet, Path+"assets/nothing.js", ""); res.Code != http.StatusNotFound {
		t.Errorf("a file that is not there is %d", res.Code)
	}
}

func TestALinkSignsInOnce(t *testing.T) {
	t.Parallel()
	link := NewLink(Credential{Tenant: "dev", Token: "secret"})
	code := strings.TrimPrefix(link.Fragment(), "#/link/")
	h := Handler(link)
	for _, try := range []struct {
		name, code string
		h          http.Handler
		want       int
	}{
		{"no code", "", h, http.StatusGone},
		{"another code", "x" + code[1:], h, http.StatusGone},
		{"a long body", code + strings.Repeat("x", 100), h, http.StatusGone},
		{"a server without a link", code, Handler(nil), http.StatusGone},
		{"the code", code, h, http.StatusOK},
		{"the code again", code, h, http.StatusGone},
	} {
		res := call(try.h, http.MethodPost, Path+"link", try.code)
		if res.Code != try.want || strings.Contains(res.Body.String(), "secret") != (try.want == http.StatusOK) {
			t.Errorf("%s: %d, %s", try.name, res.Code, res.Body)
		}
	}
}

func call(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w
}
