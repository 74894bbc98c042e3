package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	inspectv1 "holdfast/gen/holdfast/inspect/v1"
	"holdfast/gen/holdfast/inspect/v1/inspectv1connect"
	typev1 "holdfast/gen/holdfast/type/v1"
)

// objectCmd is `holdfast object`: the inspector, over the API of a running server.
type objectCmd struct {
	List    objectListCmd    `cmd:"" help:"List the objects of a kind, or without one the kinds."`
	Get     objectGetCmd     `cmd:"" help:"Print an object as it is, or as it was."`
	Events  objectEventsCmd  `cmd:"" help:"Print what happened to an object, newest first."`
	Diff    objectDiffCmd    `cmd:"" help:"Print in what an object differs between two moments."`
	Restore objectRestoreCmd `cmd:"" help:"Make an object what it was, as a new version."`
	Timers  objectTimersCmd  `cmd:"" help:"Print what objects wait for."`
	Retry   objectRetryCmd   `cmd:"" help:"Make a timer due now, also one that is not tried any more."`
}

// apiConfig says which server a command asks, and as whom.
type apiConfig struct {
	API   string `help:"Base URL of the server." name:"api" env:"HOLDFAST_API" default:"http://127.0.0.1:8080" placeholder:"URL"`
	Token string `help:"API key, such as \"holdfast dev\" prints." env:"HOLDFAST_TOKEN" placeholder:"KEY"`
}

// inspect runs do with a client of the server.
func (c apiConfig) inspect(do func(inspectv1connect.InspectServiceClient) error) error {
	return c.ask(func(client *http.Client) error { return do(inspectv1connect.NewInspectServiceClient(client, c.API)) })
}

// ask runs do with what calls the server.
func (c apiConfig) ask(do func(*http.Client) error) error {
	if c.Token == "" {
		return wrongUsage("no API key for %s: set HOLDFAST_TOKEN or give --token; `holdfast dev` and `holdfast key create` print one", c.API)
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	err := do(&http.Client{Transport: &bearer{c.Token, transport}})
	if connect.CodeOf(err) == connect.CodeUnavailable {
		return fmt.Errorf("%w (is there a server at %s? `holdfast dev` starts one)", err, c.API)
	}
	return err
}

// printJSON prints a message, indented, with the field names of its proto.
func printJSON(w io.Writer, m proto.Message) error {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil { // protojson's own spaces are random
		return err
	}
	_, err = fmt.Fprintln(w, out.String())
	return err
}

// parseMoment reads a version or a time; "" is nil, which is now.
func parseMoment(s string) (*inspectv1.Moment, error) {
	if s == "" {
		return nil, nil
	}
	if v, err := strconv.ParseInt(s, 10, 64); err == nil {
		return &inspectv1.Moment{Point: &inspectv1.Moment_Version{Version: v}}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return nil, wrongUsage("%q is no version, such as 3, and no time, such as 2026-11-23T12:00:00Z", s)
	}
	return &inspectv1.Moment{Point: &inspectv1.Moment_Time{Time: timestamppb.New(t)}}, nil
}

// objectRef names an object.
type objectRef struct {
	apiConfig

	Kind string `arg:"" help:"The kind, such as conversation."`
	ID   string `arg:"" help:"The object's id."`
}

func (r *objectRef) ref() *typev1.ObjectRef { return &typev1.ObjectRef{Kind: r.Kind, ObjectId: r.ID} }

type objectListCmd struct {
	apiConfig

	Kind   string  `arg:"" optional:"" help:"The kind, such as conversation."`
	Prefix string  `help:"Only ids that begin so." placeholder:"TEXT"`
	Owner  *string `help:"Only what belongs to this user." placeholder:"USER"`
	ByID   bool    `help:"By id; otherwise newest activity first." name:"by-id"`
	Limit  int32   `help:"At most so many, up to 200." default:"50"`
}

// Run prints one object a line.
func (c *objectListCmd) Run(ctx context.Context, w *console) error {
	return c.inspect(func(s inspectv1connect.InspectServiceClient) error {
		res, err := s.ListObjects(ctx, &inspectv1.ListObjectsRequest{
			Kind: c.Kind, Prefix: c.Prefix, Owner: c.Owner, ById: c.ByID, PageSize: c.Limit,
		})
		if err != nil {
			return err
		}
		t := tabwriter.NewWriter(w.stdout, 0, 0, 2, ' ', 0)
		for _, kind := range res.GetKinds() {
			fmt.Fprintln(t, kind)
		}
		if c.Kind != "" {
			fmt.Fprintln(t, "ID\tOWNER\tVERSION\tUPDATED")
		}
		for _, o := range res.GetObjects() {
			fmt.Fprintf(t, "%s\t%s\t%d\t%s\n", o.GetObjectId(), o.GetOwner(), o.GetVersion(), stamp(o.GetUpdateTime()))
		}
		return t.Flush()
	})
}

func stamp(t *timestamppb.Timestamp) string { return t.AsTime().Format(time.RFC3339Nano) }

type objectGetCmd struct {
	objectRef

	At         string `help:"As it was at this version or time." placeholder:"MOMENT"`
	Collection string `help:"With entries of this collection." placeholder:"NAME"`
	Page       string `help:"The last page's nextPageToken." placeholder:"TOKEN"`
	Limit      int32  `help:"At most so many entries, up to 200." default:"50"`
}

// Run prints an object as JSON.
func (c *objectGetCmd) Run(ctx context.Context, w *console) error {
	at, err := parseMoment(c.At)
	if err != nil {
		return err
	}
	return c.inspect(func(s inspectv1connect.InspectServiceClient) error {
		res, err := s.GetObject(ctx, &inspectv1.GetObjectRequest{
			Ref: c.ref(), At: at, Collection: c.Collection, PageToken: c.Page, PageSize: c.Limit,
		})
		if err != nil {
			return err
		}
		return printJSON(w.stdout, res)
	})
}

type objectEventsCmd struct {
	objectRef

	Page  string `help:"The last page's token, which is printed where there is more." placeholder:"TOKEN"`
	Limit int32  `help:"At most so many, up to 200." default:"50"`
}

// Run prints one event a line.
func (c *objectEventsCmd) Run(ctx context.Context, w *console) error {
	return c.inspect(func(s inspectv1connect.InspectServiceClient) error {
		res, err := s.ListEvents(ctx, &inspectv1.ListEventsRequest{Ref: c.ref(), PageToken: c.Page, PageSize: c.Limit})
		if err != nil {
			return err
		}
		t := tabwriter.NewWriter(w.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "VERSION\tTIME\tTYPE\tACTOR\tFIELDS\tENTRIES\tREQUEST")
		for _, e := range res.GetEvents() {
			entries := strings.Join(e.GetEntries()[:min(len(e.GetEntries()), 3)], " ")
			if n := int(e.GetEntryCount()); n > 3 {
				entries += fmt.Sprintf(" and %d more", n-3)
			}
			fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", e.GetVersion(), stamp(e.GetTime()), e.GetType(), e.GetActor(),
				strings.Join(e.GetFields(), " "), entries, e.GetRequestId())
		}
		if next := res.GetNextPageToken(); next != "" {
			fmt.Fprintf(t, "older ones: --page %s\n", next)
		}
		return t.Flush()
	})
}

type objectDiffCmd struct {
	objectRef

	From string `arg:"" help:"The earlier version or time."`
	To   string `arg:"" optional:"" help:"The later version or time. Default: now."`
}

// Run prints a difference as JSON.
func (c *objectDiffCmd) Run(ctx context.Context, w *console) error {
	from, err := parseMoment(c.From)
	if err != nil {
		return err
	}
	to, err := parseMoment(c.To)
	if err != nil {
		return err
	}
	return c.inspect(func(s inspectv1connect.InspectServiceClient) error {
		res, err := s.DiffObject(ctx, &inspectv1.DiffObjectRequest{Ref: c.ref(), From: from, To: to})
		if err != nil {
			return err
		}
		return printJSON(w.stdout, res)
	})
}

type objectRestoreCmd struct {
	objectRef

	At        string `arg:"" help:"The version or time to go back to."`
	IfVersion *int64 `help:"Only while it is at this version." placeholder:"VERSION"`
}

// Run restores an object and prints its new version.
func (c *objectRestoreCmd) Run(ctx context.Context, w *console) error {
	at, err := parseMoment(c.At)
	if err != nil {
		return err
	}
	return c.inspect(func(s inspectv1connect.InspectServiceClient) error {
		res, err := s.RestoreObject(ctx, &inspectv1.RestoreObjectRequest{
			RequestId: uuid.NewString(), IfVersion: c.IfVersion, Ref: c.ref(), At: at,
		})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(w.stdout, "%s %s is as it was at version %d; it is at version %d now, and `holdfast object restore %s %s %d` undoes that\n",
			c.Kind, c.ID, res.GetRestoredVersion(), res.GetVersion(), c.Kind, c.ID, res.GetVersion()-1)
		return err
	})
}

type objectTimersCmd struct {
	apiConfig

	Kind   string `arg:"" optional:"" help:"Only of objects of this kind."`
	ID     string `arg:"" optional:"" help:"Only of this object."`
	Parked bool   `help:"Only those that are not tried any more."`
	Limit  int32  `help:"At most so many, up to 200." default:"50"`
}

// Run prints one timer a line.
func (c *objectTimersCmd) Run(ctx context.Context, w *console) error {
	return c.inspect(func(s inspectv1connect.InspectServiceClient) error {
		res, err := s.ListTimers(ctx, &inspectv1.ListTimersRequest{Kind: c.Kind, ObjectId: c.ID, Parked: c.Parked, PageSize: c.Limit})
		if err != nil {
			return err
		}
		t := tabwriter.NewWriter(w.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "KIND\tID\tTIMER\tDUE\tNEXT TRY\tFAILED\tERROR")
		for _, timer := range res.GetTimers() {
			next := stamp(timer.GetNextTime())
			if timer.GetParked() {
				next = "parked"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", timer.GetKind(), timer.GetObjectId(), timer.GetName(), stamp(timer.GetDueTime()),
				next, timer.GetAttempts(), timer.GetLastError())
		}
		return t.Flush()
	})
}

type objectRetryCmd struct {
	objectRef

	Timer string `arg:"" help:"The timer's name."`
}

// Run makes a timer due.
func (c *objectRetryCmd) Run(ctx context.Context, w *console) error {
	return c.inspect(func(s inspectv1connect.InspectServiceClient) error {
		if _, err := s.RetryTimer(ctx, &inspectv1.RetryTimerRequest{
			RequestId: uuid.NewString(), Ref: c.ref(), Name: c.Timer,
		}); err != nil {
			return err
		}
		_, err := fmt.Fprintf(w.stdout, "%s of %s %s is due\n", c.Timer, c.Kind, c.ID)
		return err
	})
}
