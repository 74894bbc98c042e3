package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	consoleweb "holdfast/console"
	"holdfast/db"
	"holdfast/db/embedded"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	"holdfast/handlers"
	"holdfast/seal"
)

const (
	devTenant = "dev"
	devLogin  = "holdfast"
)

// devCmd is `holdfast dev`: a server with a Postgres, a tenant and a key, from nothing.
type devCmd struct {
	serverConfig

	Data      string `help:"Directory for the database and the secrets." env:"HOLDFAST_DATA" default:".data" type:"path"`
	Ephemeral bool   `help:"Keep nothing: the database is thrown away at the end." env:"HOLDFAST_EPHEMERAL"`
	Addr      string `help:"Address of the API." env:"HOLDFAST_ADDR" default:"127.0.0.1:8080" placeholder:"HOST:PORT"`
	JSON      bool   `help:"When ready, print one line of JSON: api, tenant, token and console; with --ephemeral also database, as its owner." name:"json"`
}

// Run serves until ctx ends, or until its Postgres does.
func (c *devCmd) Run(ctx context.Context, w *console) (err error) {
	if err := c.check(); err != nil {
		return err
	}
	if len(c.Origins) == 0 {
		c.Origins = []string{"*"}
	}
	if c.Ephemeral {
		c.Data = ""
	}
	log := textLog(w.stderr, c.LogLevel)

	box, err := openSandbox(ctx, w.env, sandboxOptions{Dir: c.Data, MaxConns: c.MaxConns, Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, box.close(ctx)) }()
	secrets, err := c.secrets()
	if err != nil {
		return err
	}
	serving, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-box.postgres.Done():
			cancel(errors.New("the embedded Postgres has ended"))
		case <-serving.Done():
		}
	}()
	c.ListenURL = cmp.Or(c.ListenURL, box.url)
	link := consoleweb.NewLink(consoleweb.Credential{Tenant: devTenant, Token: box.token})
	c.console = consoleweb.Handler(link)
	err = c.run(serving, w, log, box.db, secrets, c.Addr, func(api string) error { return c.greet(w, api, link, box) })
	if ctx.Err() == nil && context.Cause(serving) != nil {
		err = errors.Join(context.Cause(serving), err)
	}
	return err
}

// secrets is the box of the keys given, or else of one that stays with the data.
func (c *devCmd) secrets() (*seal.Box, error) {
	keys := c.SealKeys
	if len(keys) == 0 {
		key, err := secret(c.Data, sealFile)
		if err == nil && key == "" {
			key = seal.NewKey()
			err = keepSecret(c.Data, sealFile, key)
		}
		if err != nil {
			return nil, err
		}
		keys = []string{key}
	}
	box, err := seal.NewBox(keys...)
	if err != nil {
		return nil, wrongUsage("--seal-keys: %v", err)
	}
	return box, nil
}

// greeting is the line of --json.
type greeting struct {
	API    string `json:"api"`
	Tenant string `json:"tenant"`
	Token  string `json:"token"`
	// Console is a link that signs in the first person who opens it.
	Console string `json:"console"`
	// Database is for tests, which make tenants of their own in it.
	Database string `json:"database,omitempty"`
}

// greet says where the server is and how to call it, in a form that can be pasted.
func (c *devCmd) greet(w *console, api string, link *consoleweb.Link, box *sandbox) error {
	page := api + consoleweb.Path + link.Fragment()
	if c.JSON {
		hello := greeting{API: api, Tenant: devTenant, Token: box.token, Console: page}
		if c.Ephemeral {
			hello.Database = box.postgres.AdminURL()
		}
		return json.NewEncoder(w.stdout).Encode(hello)
	}
	kept := "kept nowhere"
	if c.Data != "" {
		kept = "kept in " + filepath.Join(c.Data, tokenFile)
	}
	_, err := fmt.Fprintf(w.stdout, `
Holdfast is ready.

  API      %s
  Tenant   %s
  Token    %s
           (a service key, %s)
  Console  %s
           (signs you in, once)

Try it, in another terminal:

  export HOLDFAST_API=%s HOLDFAST_TOKEN=%s
  curl $HOLDFAST_API%s \
    -H "Authorization: Bearer $HOLDFAST_TOKEN" -H 'Content-Type: application/json' \
    -d '{"conversation": {"title": "Auth refactor"}, "shared": true}'

`, api, devTenant, box.token, kept, page, api, box.token, conversationv1connect.ConversationServiceCreateConversationProcedure)
	return err
}

// sandbox is a Postgres of our own with the schema, the server's login, a tenant and its key.
type sandbox struct {
	postgres *embedded.Server
	db       *db.DB
	url      string // the server's login's
	token    string
}

type sandboxOptions struct {
	Dir      string // empty: thrown away at the end
	MaxConns int
	Log      *slog.Logger
}

const (
	tokenFile    = "token"
	passwordFile = "password"
	sealFile     = "seal-key"
)

// openSandbox starts a sandbox. On an error nothing is left running.
func openSandbox(ctx context.Context, env lookup, o sandboxOptions) (_ *sandbox, err error) {
	settings := embedded.Options{Log: o.Log, Ephemeral: o.Dir == ""}
	settings.BinDir, _ = env("HOLDFAST_POSTGRES_BIN")
	if o.Dir != "" {
		// The directory is open to all, because Postgres may have to run as another user; what is secret in it is not.
		if err := os.MkdirAll(o.Dir, 0o755); err != nil { //nolint:gosec // see above
			return nil, wrongUsage("--data: %v", err)
		}
		settings.Dir = filepath.Join(o.Dir, "postgres")
	}
	b := &sandbox{}
	if b.postgres, err = embedded.Start(ctx, settings); err != nil {
		if errors.Is(err, embedded.ErrInUse) {
			return nil, fmt.Errorf("another holdfast dev runs in %s; give this one another --data: %w", o.Dir, err)
		}
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close(ctx))
		}
	}()
	owner := b.postgres.AdminURL()
	if err := db.MigrateUp(ctx, owner); err != nil {
		return nil, err
	}
	password, err := secret(o.Dir, passwordFile)
	if err != nil {
		return nil, err
	}
	if password == "" {
		password = rand.Text()
		if err := keepSecret(o.Dir, passwordFile, password); err != nil {
			return nil, err
		}
	}
	if err := db.EnsureLogin(ctx, owner, devLogin, password); err != nil {
		return nil, err
	}
	b.url = b.postgres.URL("postgres", url.UserPassword(devLogin, password))
	if b.db, err = db.Open(ctx, db.Config{URL: b.url, MaxConns: o.MaxConns}); err != nil {
		return nil, err
	}
	operator, err := db.OpenOperator(ctx, owner)
	if err != nil {
		return nil, err
	}
	defer operator.Close()
	if _, err := operator.CreateTenant(ctx, devTenant, "Development"); err != nil {
		return nil, err
	}
	b.token, err = b.key(ctx, operator, o.Dir)
	return b, err
}

// key returns the token of the last start, if it still is one, or a new one.
func (b *sandbox) key(ctx context.Context, operator *db.Operator, dir string) (string, error) {
	token, err := secret(dir, tokenFile)
	if err != nil {
		return "", err
	}
	if id, hash, ok := handlers.SplitKey(token); ok {
		keys, err := b.db.FindKeys(ctx, id)
		if err != nil {
			return "", err
		}
		for _, k := range keys {
			if k.Tenant == devTenant && k.User == "" && bytes.Equal(k.SecretHash, hash) {
				return token, nil
			}
		}
	}
	token, k := handlers.NewKey(devTenant, "", "made by holdfast dev")
	if err := operator.CreateKey(ctx, k); err != nil {
		return "", err
	}
	return token, keepSecret(dir, tokenFile, token)
}

// close stops Postgres, which is gone when it returns.
func (b *sandbox) close(ctx context.Context) error {
	if b.db != nil {
		b.db.Close()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return b.postgres.Stop(ctx)
}

// secret reads a file of the data directory; "" where there is none, or no directory.
func secret(dir, name string) (string, error) {
	if dir == "" {
		return "", nil
	}
	text, err := os.ReadFile(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.TrimSpace(string(text)), err
}

// keepSecret writes a file that only its owner can read, whole or not at all.
func keepSecret(dir, name, text string) error {
	if dir == "" {
		return nil
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", []byte(text+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
