package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"holdfast/db"
	"holdfast/handlers"
	"holdfast/identity"
)

// keyCmd is `holdfast key`.
type keyCmd struct {
	Create keyCreateCmd `cmd:"" help:"Make an API key and print its token, which is not shown again."`
	List   keyListCmd   `cmd:"" help:"List a tenant's API keys."`
	Revoke keyRevokeCmd `cmd:"" help:"End an API key for good; servers refuse it within two seconds."`
}

type keyCreateCmd struct {
	ownerConfig

	Tenant      string `required:"" help:"Whose key it is." env:"HOLDFAST_TENANT" placeholder:"TENANT"`
	User        string `help:"The user that the key acts as. Default: a service, which may act for every user." placeholder:"USER"`
	Description string `help:"What it is for."`
}

// Run makes a key. Only the token goes to standard output, so that a script can take it from there.
func (c *keyCreateCmd) Run(ctx context.Context, w *console) error {
	if c.User != "" && !handlers.ValidUser(identity.User(c.User)) {
		return wrongUsage("--user: a user's id is 1 to 128 bytes, without control characters")
	}
	o, err := c.operator(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	token, k := handlers.NewKey(identity.Tenant(c.Tenant), identity.User(c.User), c.Description)
	if err := o.CreateKey(ctx, k); err != nil {
		if errors.Is(err, db.ErrTenantUnknown) {
			return fmt.Errorf("there is no tenant %q; `holdfast tenant create %s` makes it", c.Tenant, c.Tenant)
		}
		return err
	}
	fmt.Fprintf(w.stderr, "key %s of tenant %s, %s; this is its token, which is not shown again:\n", k.ID, k.Tenant, role(k))
	_, err = fmt.Fprintln(w.stdout, token)
	return err
}

func role(k db.Key) string {
	if k.User == "" {
		return "service"
	}
	return "user " + string(k.User)
}

type keyListCmd struct {
	ownerConfig

	Tenant string `required:"" help:"Whose keys." env:"HOLDFAST_TENANT" placeholder:"TENANT"`
}

// Run lists a tenant's keys, the revoked ones too.
func (c *keyListCmd) Run(ctx context.Context, w *console) error {
	o, err := c.operator(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	keys, err := o.Keys(ctx, identity.Tenant(c.Tenant))
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "KEY\tROLE\tCREATED\tREVOKED\tDESCRIPTION")
	for _, k := range keys {
		revoked := "-"
		if k.RevokeTime != nil {
			revoked = k.RevokeTime.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", k.ID, role(k), k.CreateTime.UTC().Format(time.RFC3339), revoked, k.Description)
	}
	return t.Flush()
}

type keyRevokeCmd struct {
	ownerConfig

	Tenant string `required:"" help:"Whose key." env:"HOLDFAST_TENANT" placeholder:"TENANT"`
	Key    string `arg:"" help:"The key's id, as listed: the part of its token between the underscores."`
}

// Run revokes a key.
func (c *keyRevokeCmd) Run(ctx context.Context, w *console) error {
	o, err := c.operator(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	if err := o.RevokeKey(ctx, identity.Tenant(c.Tenant), c.Key); err != nil {
		if errors.Is(err, db.ErrKeyUnknown) {
			return fmt.Errorf("tenant %s has no key %q; `holdfast key list` shows them", c.Tenant, c.Key)
		}
		return err
	}
	fmt.Fprintf(w.stdout, "key %s is revoked\n", c.Key)
	return nil
}
