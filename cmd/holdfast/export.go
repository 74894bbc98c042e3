package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"holdfast/db"
	"holdfast/handlers"
	"holdfast/identity"
)

// exportCmd is `holdfast export`.
type exportCmd struct {
	databaseConfig

	Tenant string `help:"The tenant." required:"" placeholder:"TENANT"`
	User   string `help:"Only what belongs to this user of it." placeholder:"USER"`
}

// Run writes the export to standard output.
func (c *exportCmd) Run(ctx context.Context, w *console) error {
	if err := checkTenantAndUser(c.Tenant, c.User); err != nil {
		return err
	}
	d, err := c.open(ctx, operatorConns)
	if err != nil {
		return err
	}
	defer d.Close()
	rows, err := d.Export(ctx, identity.Tenant(c.Tenant), identity.User(c.User), w.stdout)
	if err != nil {
		return fmt.Errorf("what was written is not whole: %w", err)
	}
	fmt.Fprintf(w.stderr, "exported %v\n", rows)
	return nil
}

// importCmd is `holdfast import`.
type importCmd struct {
	databaseConfig

	Tenant string `help:"The tenant to store it in: an empty one, or one without objects of the same ids." required:"" placeholder:"TENANT"`
	File   string `arg:"" help:"An export; - reads standard input into a temporary file first." placeholder:"FILE"`
}

// Run imports a file. One that is ended leaves nothing, and may be run again.
func (c *importCmd) Run(ctx context.Context, w *console) (err error) {
	if err := checkTenantAndUser(c.Tenant, ""); err != nil {
		return err
	}
	f, err := c.read(w.stdin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	d, err := c.open(ctx, operatorConns)
	if err != nil {
		return err
	}
	defer d.Close()
	rows, err := d.Import(ctx, identity.Tenant(c.Tenant), f)
	if err != nil {
		return err
	}
	if err := d.RecountUsage(ctx, identity.Tenant(c.Tenant)); err != nil {
		fmt.Fprintf(w.stderr, "usage was not recounted, which quotas go by; it is once a day: %v\n", err)
	}
	leftOut := rows[db.EndpointsLeftOut]
	delete(rows, db.EndpointsLeftOut)
	fmt.Fprintf(w.stdout, "imported %v\n", rows)
	if leftOut > 0 {
		fmt.Fprintf(w.stdout, "left out %d webhook endpoints, which another tenant has; make new ones with PutEndpoint\n", leftOut)
	}
	return nil
}

// read opens the file, or a temporary one that is gone when it is closed.
func (c *importCmd) read(stdin io.Reader) (_ io.ReadSeekCloser, err error) {
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return nil, wrongUsage("%v", err)
		}
		return f, nil
	}
	f, err := os.CreateTemp("", "holdfast-import-*")
	if err != nil {
		return nil, err
	}
	spool := &temporary{f}
	if _, err = io.Copy(f, stdin); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, spool.Close())
	}
	return spool, nil
}

type temporary struct{ *os.File }

// Close closes the file and removes it.
func (f *temporary) Close() error { return errors.Join(f.File.Close(), os.Remove(f.Name())) }

// checkTenantAndUser refuses what cannot be a tenant or a user; no user is none.
func checkTenantAndUser(tenant, user string) error {
	if !handlers.ValidTenant(identity.Tenant(tenant)) {
		return wrongUsage("%q cannot be a tenant's id: it is 1 to 128 of A-Z a-z 0-9 . _ : -", tenant)
	}
	if user != "" && !handlers.ValidUser(identity.User(user)) {
		return wrongUsage("%q cannot be a user's id: it is 1 to 128 bytes without control characters", user)
	}
	return nil
}
