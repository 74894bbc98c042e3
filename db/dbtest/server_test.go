package dbtest

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

func TestChooseServer(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	// Nobody listens on port 1.
	const dead = "postgres://postgres@127.0.0.1:1/postgres?sslmode=disable"

	for name, tc := range map[string]struct {
		env           map[string]string
		docker, local error
		want          string
		says          []string
	}{
		"docker first":                {want: "docker"},
		"no docker":                   {docker: errNoDocker, want: "local"},
		"docker without the image":    {docker: broken, want: "local"},
		"neither":                     {docker: errNoDocker, local: broken, says: []string{databaseVar, errNoDocker.Error(), "broken"}},
		"docker forced":               {env: map[string]string{backendVar: "docker"}, want: "docker"},
		"docker forced and broken":    {env: map[string]string{backendVar: "docker"}, docker: broken, says: []string{backendVar, "broken"}},
		"docker forced and not there": {env: map[string]string{backendVar: "docker"}, docker: errNoDocker, says: []string{errNoDocker.Error()}},
		"local forced":                {env: map[string]string{backendVar: "local", databaseVar: dead}, want: "local"},
		"local forced and broken":     {env: map[string]string{backendVar: "local"}, local: broken, says: []string{backendVar, "broken"}},
		"unknown forced":              {env: map[string]string{backendVar: "podman"}, says: []string{backendVar, "podman", "docker, local"}},
		"url that does not answer":    {env: map[string]string{databaseVar: dead}, says: []string{databaseVar, "refused"}},
		"url that is none":            {env: map[string]string{databaseVar: "host=127.0.0.1 port=1"}, says: []string{databaseVar, "postgres://"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			backend := func(name string, err error) func(context.Context, func(string) string) (*server, error) {
				return func(context.Context, func(string) string) (*server, error) {
					if err != nil {
						return nil, err
					}
					return &server{adminURL: name, stop: func() {}}, nil
				}
			}
			b := backends{docker: backend("docker", tc.docker), local: backend("local", tc.local)}
			s, err := b.choose(t.Context(), func(name string) string { return tc.env[name] })
			if tc.want != "" {
				if err != nil || s.adminURL != tc.want {
					t.Errorf("got %v, %v, want %s", s, err, tc.want)
				}
				return
			}
			if err == nil {
				t.Fatalf("got %v", s)
			}
			for _, part := range tc.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error %q does not say %q", err, part)
				}
			}
		})
	}
}

// TestStartServer starts what this environment has.
func TestStartServer(t *testing.T) {
	t.Parallel()
	s, err := startServer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	defer func() {
		if !stopped {
			s.stop()
		}
	}()
	conn, err := pgx.Connect(t.Context(), s.adminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var super bool
	if err := conn.QueryRow(t.Context(), `SELECT rolsuper FROM pg_roles WHERE rolname = current_user`).Scan(&super); err != nil || !super {
		t.Errorf("not a superuser, %v", err)
	}
	if os.Getenv(databaseVar) != "" && os.Getenv(backendVar) == "" {
		return // its settings are its owner's, and it must not end here
	}
	for name, want := range settings {
		var got string
		if err := conn.QueryRow(t.Context(), `SELECT current_setting($1)`, name).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %s, want %s, %v", name, got, want, err)
		}
	}
	s.stop()
	stopped = true
	if err := accepts(t.Context(), s.adminURL); err == nil {
		t.Error("serves after it was stopped")
	}
}

// TestLocalServer names a directory without binaries, which must not end in somebody else's.
func TestLocalServer(t *testing.T) {
	t.Parallel()
	empty := t.TempDir()
	_, err := startLocal(t.Context(), func(name string) string {
		if name == binVar {
			return empty
		}
		return ""
	})
	if err == nil || !strings.Contains(err.Error(), empty) {
		t.Errorf("error %v does not name %s", err, empty)
	}
}
