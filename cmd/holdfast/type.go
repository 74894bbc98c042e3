package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"text/tabwriter"

	statev1 "holdfast/gen/holdfast/state/v1"
	"holdfast/gen/holdfast/state/v1/statev1connect"
	"holdfast/jsonpb"
)

// typeCmd is `holdfast type`, over the API of a running server.
type typeCmd struct {
	Put    typePutCmd    `cmd:"" help:"Declare a type, or change what is declared of it."`
	List   typeListCmd   `cmd:"" help:"List the types that are declared."`
	Delete typeDeleteCmd `cmd:"" help:"End a declaration; the objects stay."`
}

func (c apiConfig) states(do func(statev1connect.StateServiceClient) error) error {
	return c.ask(func(client *http.Client) error { return do(statev1connect.NewStateServiceClient(client, c.API)) })
}

type typePutCmd struct {
	apiConfig

	File string `arg:"" help:"A file with the type in JSON, as the type of PutType." type:"existingfile"`
}

// Run prints the version that it makes.
func (c *typePutCmd) Run(ctx context.Context, w *console) error {
	text, err := os.ReadFile(c.File)
	if err != nil {
		return err
	}
	declared := &statev1.Type{}
	if _, err := jsonpb.New().Unmarshal(text, declared, 0); err != nil {
		return wrongUsage("%s: %v", c.File, err)
	}
	return c.states(func(s statev1connect.StateServiceClient) error {
		res, err := s.PutType(ctx, &statev1.PutTypeRequest{Type: declared})
		if err == nil {
			_, err = fmt.Fprintf(w.stdout, "%s is declared, version %d\n", res.GetType().GetType(), res.GetType().GetVersion())
		}
		return err
	})
}

type typeListCmd struct{ apiConfig }

// Run prints one type a line.
func (c *typeListCmd) Run(ctx context.Context, w *console) error {
	return c.states(func(s statev1connect.StateServiceClient) error {
		t := tabwriter.NewWriter(w.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "TYPE\tVERSION\tUPDATED")
		for token := ""; ; {
			res, err := s.ListTypes(ctx, &statev1.ListTypesRequest{PageToken: token})
			if err != nil {
				return err
			}
			for _, of := range res.GetTypes() {
				fmt.Fprintf(t, "%s\t%d\t%s\n", of.GetType(), of.GetVersion(), stamp(of.GetUpdateTime()))
			}
			if token = res.GetNextPageToken(); token == "" {
				return t.Flush()
			}
		}
	})
}

type typeDeleteCmd struct {
	apiConfig

	Type string `arg:"" help:"The type."`
}

// Run says whether there was one.
func (c *typeDeleteCmd) Run(ctx context.Context, w *console) error {
	return c.states(func(s statev1connect.StateServiceClient) error {
		res, err := s.DeleteType(ctx, &statev1.DeleteTypeRequest{Type: c.Type})
		if err != nil {
			return err
		}
		said := "was not declared"
		if res.GetExisted() {
			said = "is no longer declared"
		}
		_, err = fmt.Fprintln(w.stdout, c.Type, said)
		return err
	})
}
