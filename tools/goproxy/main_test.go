package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

// Another program requires the client from a proxy: it builds, runs the README's program, and gets few modules.
func TestAnOutsideModule(t *testing.T) {
	t.Parallel()
	const client = "../../clients/go"
	proxy, app, modules := t.TempDir(), t.TempDir(), t.TempDir()
	const version = "v0.1.0"
	if err := write(client, version, proxy); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(client + "/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	path := modfile.ModulePath(data)
	readme, err := os.ReadFile(client + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile("(?s)```go\n(package main.*?)```").FindSubmatch(readme)[1]
	for name, data := range map[string][]byte{"main.go": program, "main_test.go": []byte(theirTest)} {
		if err := os.WriteFile(filepath.Join(app, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// What is not ours comes from this machine's cache where it is there. A cache of its own, because what is cached is never read again.
	run := func(arguments ...string) string {
		t.Helper()
		c := exec.CommandContext(t.Context(), "go", arguments...)
		c.Dir = app
		c.Env = append(os.Environ(), "GOFLAGS=-modcacherw -trimpath", "GONOSUMDB="+path, "GOPROXY=file://"+proxy+",file://"+env(t, "GOMODCACHE")+"/cache/download,"+env(t, "GOPROXY"),
			"GOMODCACHE="+modules, "GOWORK=off")
		var stderr bytes.Buffer
		c.Stderr = &stderr
		out, err := c.Output()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(arguments, " "), err, stderr.Bytes())
		}
		return string(out)
	}
	run("mod", "init", "example.org/app")
	run("get", path+"@"+version)
	run("mod", "tidy")
	all := strings.Fields(run("list", "-m", "-f", "{{.Path}}", "all"))
	t.Logf("%d modules: %v", len(all), all)
	if len(all) >= 25 {
		t.Errorf("it pulls in %d modules, at most 24 are meant: %v", len(all), all)
	}
	if out := run("test", "-v", "."); !strings.Contains(out, "[a book] at version 1\n") {
		t.Error(out)
	}
}

// theirTest is the program's test, as its author may write it.
const theirTest = `package main

import (
	"testing"

	"holdfast.internal/clients/go/holdfasttest"
)

func TestProgram(t *testing.T) {
	a := holdfasttest.Tenant(t)
	t.Setenv("HOLDFAST_API", a.URL)
	t.Setenv("HOLDFAST_TOKEN", a.Key)
	main()
}
`

func env(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
