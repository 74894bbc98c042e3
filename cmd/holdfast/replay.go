package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	"holdfast/cmd/holdfast/internal/replay"
	conversationv1 "holdfast/gen/holdfast/conversation/v1"
	"holdfast/gen/holdfast/conversation/v1/conversationv1connect"
	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/gen/holdfast/live/v1/livev1connect"
	typev1 "holdfast/gen/holdfast/type/v1"
	watchv1 "holdfast/gen/holdfast/watch/v1"
	"holdfast/gen/holdfast/watch/v1/watchv1connect"
	"holdfast/seal"
)

// replayCmd is `holdfast replay`.
type replayCmd struct {
	File string `arg:"" optional:"" help:"A recorded Gemini Live session, such as examples/gemini-live-session.jsonl; - for standard input."`

	Conversation string `help:"Replay the frames that this conversation keeps, in place of a file. Connections that are to keep them set keepFramesFor." placeholder:"ID"`
	Explain      bool   `help:"Show what each frame changes and by which rule. Nothing is sent to a server."`

	Speed    float64       `help:"How many times faster than recorded; 0: as fast as possible." default:"1" placeholder:"X"`
	MaxPause time.Duration `help:"Shorten longer pauses to this." default:"3s"`
	API      string        `help:"Base URL of the server. Default: http://127.0.0.1:8080, or without a token a server of its own." name:"api" env:"HOLDFAST_API" placeholder:"URL"`
	Token    string        `help:"API key for the server, such as \"holdfast dev\" prints." env:"HOLDFAST_TOKEN" placeholder:"KEY"`
}

const (
	replayAPI = "http://127.0.0.1:8080"
	// catchUp bounds the time until the watcher sees the last change.
	catchUp = 10 * time.Second
	// shownLines bounds the messages and tool calls that are redrawn in place: they fit on a small terminal.
	shownLines = 18
)

// Run sends the recording, shows the conversation grow, and prints what came of it.
func (c *replayCmd) Run(ctx context.Context, w *console) error {
	switch {
	case c.Speed < 0 || c.MaxPause < 0:
		return wrongUsage("--speed and --max-pause cannot be negative")
	case (c.File == "") == (c.Conversation == ""):
		return wrongUsage("give a file or --conversation, and not both")
	case c.Token == "" && (c.API != "" && !c.Explain || c.Conversation != ""):
		return wrongUsage("no API key for %s: set HOLDFAST_TOKEN or give --token; `holdfast dev` and `holdfast key create` print one", cmp.Or(c.API, replayAPI))
	}
	frames, err := c.frames(ctx, w.stdin)
	if err != nil {
		return err
	}
	if c.Explain {
		return replay.Explain(w.stdout, frames)
	}
	if c.Token == "" {
		fmt.Fprintln(w.stderr, "There is no HOLDFAST_TOKEN, so this starts a server of its own, which is gone afterwards.")
		return withThrowAwayServer(ctx, w, func(ctx context.Context, api, token string) error {
			return c.replay(ctx, w.stdout, api, token, frames)
		})
	}
	return c.replay(ctx, w.stdout, cmp.Or(c.API, replayAPI), c.Token, frames)
}

func newTransport() *http.Transport {
	return &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true}
}

func (c *replayCmd) replay(ctx context.Context, stdout io.Writer, api, token string, frames []replay.Frame) error {
	transport := newTransport()
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: &bearer{token, transport}}
	r := &replayRun{
		service: conversationv1connect.NewConversationServiceClient(client, api), live: livev1connect.NewLiveServiceClient(client, api),
		page: watchv1connect.NewWatchServiceClient(client, api), show: lineByLine(stdout),
	}
	if isTerminal(stdout) {
		r.show = inPlace(stdout)
	}
	err := r.run(ctx, replay.Batches(frames, c.Speed, c.MaxPause))
	if connect.CodeOf(err) == connect.CodeUnavailable {
		return fmt.Errorf("%w (is there a server at %s? `holdfast dev` starts one)", err, api)
	}
	if err != nil {
		return err
	}
	fmt.Fprintln(stdout)
	for _, plan := range r.plans {
		fmt.Fprintln(stdout, plan)
	}
	fmt.Fprintf(stdout, "\n%d messages, %d tool calls, %d versions from %d frames\nconversation %s\n",
		r.view.Messages(), r.view.ToolCalls(), r.view.Version(), len(frames), r.conversation)
	return nil
}

// withThrowAwayServer starts a server for do alone.
func withThrowAwayServer(ctx context.Context, w *console, do func(ctx context.Context, api, token string) error) (err error) {
	log := slog.New(slog.DiscardHandler)
	box, err := openSandbox(ctx, w.env, sandboxOptions{Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, box.close(ctx)) }()
	secrets, err := seal.NewBox(seal.NewKey()) // nothing outlives the replay
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	group, serving := errgroup.WithContext(serving)
	ready := make(chan string, 1)
	group.Go(func() error {
		return serverConfig{}.run(serving, w, log, box.db, secrets, "127.0.0.1:0", func(api string) error {
			ready <- api
			return nil
		})
	})
	group.Go(func() error {
		defer stop()
		select {
		case api := <-ready:
			return do(serving, api, box.token)
		case <-serving.Done():
			return ctx.Err()
		}
	})
	return group.Wait()
}

// frames reads the recording.
func (c *replayCmd) frames(ctx context.Context, stdin io.Reader) ([]replay.Frame, error) {
	name := cmp.Or(c.File, c.Conversation)
	read := func() ([]replay.Frame, error) { return c.read(stdin) }
	if c.File == "" {
		read = func() ([]replay.Frame, error) { return c.kept(ctx) }
	}
	frames, err := read()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return frames, nil
}

// kept reads the frames that the conversation keeps.
func (c *replayCmd) kept(ctx context.Context) ([]replay.Frame, error) {
	transport := newTransport()
	defer transport.CloseIdleConnections()
	client := livev1connect.NewLiveServiceClient(&http.Client{Transport: &bearer{c.Token, transport}}, cmp.Or(c.API, replayAPI))
	var batches []*livev1.LiveFrameBatch
	for token := ""; ; {
		page, err := client.ListLiveFrames(ctx, &livev1.ListLiveFramesRequest{ConversationId: c.Conversation, PageToken: token})
		if err != nil {
			return nil, err
		}
		batches = append(batches, page.GetBatches()...)
		if token = page.GetNextPageToken(); token == "" {
			return replay.Kept(batches)
		}
	}
}

func (c *replayCmd) read(stdin io.Reader) ([]replay.Frame, error) {
	if c.File == "-" {
		return replay.Read(stdin)
	}
	f, err := os.Open(c.File)
	if err != nil {
		return nil, errors.Unwrap(err) // without the name, which the caller adds
	}
	defer f.Close() //nolint:errcheck // read, not written
	return replay.Read(f)
}

// replayRun is one recording on its way into one conversation.
type replayRun struct {
	service      conversationv1connect.ConversationServiceClient
	page         watchv1connect.WatchServiceClient
	live         livev1connect.LiveServiceClient
	show         func(v *replay.View, changed []string)
	conversation string
	view         replay.View // the watcher's, until it has ended

	connection int64    // of the recording
	token      int32    // of the server
	plans      []string // a line for each connection
}

// replaySetup is the setup hash of every connection: a recording does not change its mind.
const replaySetup = "replay"

// connect leaves the connection before for the next of the recording, and notes what the server would have a client do.
func (r *replayRun) connect(ctx context.Context, connection int64) error {
	req := &livev1.ConnectLiveRequest{
		ConversationId: r.conversation, Device: &typev1.Device{Name: fmt.Sprintf("connection %d", connection)}, SetupHash: replaySetup,
		Options: &livev1.LiveOptions{LeaveToolCalls: true}, // the recording has the responses
	}
	if r.token != 0 {
		req.Previous = &livev1.Previous{FencingToken: r.token}
	}
	res, err := r.live.ConnectLive(ctx, req)
	if err != nil {
		return fmt.Errorf("open connection %d: %w", connection, err)
	}
	r.connection, r.token = connection, res.GetLease().GetFencingToken()
	r.plans = append(r.plans, describePlan(connection, res.GetPlan()))
	return nil
}

// describePlan is a plan in a line, without the handle, which is a secret.
func describePlan(connection int64, p *livev1.Plan) string {
	line := fmt.Sprintf("connection %d: start fresh (%s)", connection, strings.ToLower(strings.TrimPrefix(p.GetReason().String(), "PLAN_REASON_")))
	if p.GetHandle() != "" {
		line = fmt.Sprintf("connection %d: resume", connection)
	}
	if turns := p.GetSend().GetFields()["clientContent"].GetStructValue().GetFields()["turns"].GetListValue().GetValues(); len(turns) > 0 {
		line += fmt.Sprintf(", and tell %d turns", len(turns))
	}
	if n := len(p.GetToolCalls()); n > 0 {
		line += fmt.Sprintf("; %d tool calls wait", n)
	}
	return line
}

// run creates a conversation, sends the batches, and returns when the watcher has seen what came of the last.
func (r *replayRun) run(ctx context.Context, batches []replay.Batch) error {
	made, err := r.service.CreateConversation(ctx, &conversationv1.CreateConversationRequest{Conversation: &conversationv1.Conversation{Title: "Replay"}, Shared: true})
	if err != nil {
		return fmt.Errorf("create a conversation: %w", err)
	}
	r.conversation = made.GetConversation().GetConversationId()

	// A watcher that fails ends the sending, and its error is why.
	ctx, cancel := context.WithCancelCause(ctx)
	seen := make(chan int64, 1) // the newest version that the watcher saw
	var watcher sync.WaitGroup
	watcher.Go(func() { cancel(r.watch(ctx, seen)) })

	last := made.GetConversation().GetVersion()
	err = replay.Play(ctx, batches, func(ctx context.Context, b replay.Batch) error {
		last, err = r.send(ctx, b)
		return err
	})
	if err == nil {
		err = await(ctx, seen, last)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(nil)
	watcher.Wait()
	return err
}

// send sends a batch and returns the version that it made. Sent again, it would change nothing.
func (r *replayRun) send(ctx context.Context, b replay.Batch) (int64, error) {
	if b.Epoch != r.connection {
		if err := r.connect(ctx, b.Epoch); err != nil {
			return 0, err
		}
	}
	res, err := r.live.IngestLive(ctx, &livev1.IngestLiveRequest{ConversationId: r.conversation, FencingToken: r.token, Frames: b.Frames})
	if err != nil {
		return 0, fmt.Errorf("send frames %d to %d of connection %d: %w",
			b.Frames[0].GetClientIndex(), b.Frames[len(b.Frames)-1].GetClientIndex(), b.Epoch, err)
	}
	return res.GetVersion(), nil
}

// await waits until the version was seen.
func await(ctx context.Context, seen <-chan int64, version int64) error {
	timer := time.NewTimer(catchUp)
	defer timer.Stop()
	for {
		select {
		case v := <-seen:
			if v >= version {
				return nil
			}
		case <-timer.C:
			return fmt.Errorf("the watcher has not seen version %d within %v", version, catchUp)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// watch follows the conversation until ctx is over, and connects again where the server ends the stream. It leaves the
// newest version in seen, which has room for one.
func (r *replayRun) watch(ctx context.Context, seen chan int64) error {
	const messages = 200
	for {
		stream, err := r.page.Watch(ctx, &watchv1.WatchRequest{Items: []*watchv1.Item{{
			ItemId: "conversation", Cursor: r.view.Cursor(), Of: &watchv1.Item_Conversation{
				Conversation: &watchv1.ConversationItem{ConversationId: r.conversation, MessageLimit: messages},
			},
		}}})
		if err != nil {
			return fmt.Errorf("watch the conversation: %w", err)
		}
		progress := false
		for stream.Receive() {
			progress = true
			if changed := r.view.Apply(stream.Msg()); stream.Msg().GetChanged() != nil {
				r.show(&r.view, changed)
			}
			select {
			case <-seen:
			default:
			}
			seen <- r.view.Version()
		}
		err = stream.Err()
		_ = stream.Close() // its error is that of the stream
		switch {
		case err == nil:
			return errors.New("watch the conversation: the server ended the stream")
		case !progress || connect.CodeOf(err) != connect.CodeUnavailable:
			return fmt.Errorf("watch the conversation: %w", err)
		}
	}
}

// lineByLine shows each change as lines below those before.
func lineByLine(w io.Writer) func(*replay.View, []string) {
	return func(_ *replay.View, changed []string) {
		for _, l := range changed {
			fmt.Fprintln(w, l)
		}
	}
}

// inPlace shows the conversation as it is, in the place where it was shown before.
func inPlace(w io.Writer) func(*replay.View, []string) {
	screen := replay.NewScreen(w)
	return func(v *replay.View, _ []string) { screen.Draw(v.Lines(shownLines)) }
}

// isTerminal reports whether w is a terminal that can be redrawn.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// bearer presents a token with every request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b *bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(req)
}
