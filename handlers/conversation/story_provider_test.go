package conversation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// provider speaks the Gemini Live protocol over a WebSocket, as far as the stories need it: it plays a script, from where it
// was on whatever connection there is, and dies where it is told to.
type provider struct {
	t      *testing.T
	server *httptest.Server
	script []step
	// killAt is how many frames of the script are sent until the socket is killed, once; 0: never.
	killAt int
	// retells: a new connection transcribes an utterance again that was cut off.
	retells bool
	// refuses closes the connections that want to resume with this code; 0: it resumes.
	refuses websocket.StatusCode

	mu       sync.Mutex
	at       int // the next step
	sent     int
	killed   bool
	handles  int
	greeted  int
	refused  int
	told     strings.Builder // what the client told as text
	answered map[string]bool // tool calls that a response or a text came for
	// strange are frames that the real one would choke on.
	strange []string
	done    chan struct{}
}

// step is one step of a script: a frame to send, or something to wait for.
type step struct {
	frame string
	// utterance groups the words of one utterance of the user.
	utterance int
	// handle: a new resumable handle is sent.
	handle bool
	// tool waits for the response to this call.
	tool string
	// rotate waits for the next connection.
	rotate bool
}

func (p *provider) start(t *testing.T) {
	t.Helper()
	p.t, p.answered, p.done = t, map[string]bool{}, make(chan struct{})
	p.server = httptest.NewServer(http.HandlerFunc(p.serve))
	t.Cleanup(p.server.Close)
}

// live is one connection.
type live struct {
	p      *provider
	conn   *websocket.Conn
	issued map[string]bool
	woken  chan struct{} // something came from the client
	// goesAway: it said so on this connection.
	goesAway bool
}

func (p *provider) serve(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	ctx, cancel := context.WithTimeout(r.Context(), time.Minute)
	defer cancel()
	l := &live{p: p, conn: conn, issued: map[string]bool{}, woken: make(chan struct{}, 1)}
	_, first, err := conn.Read(ctx)
	if err != nil {
		return
	}
	var m struct {
		Setup struct {
			SessionResumption struct {
				Handle string `json:"handle"`
			} `json:"sessionResumption"`
			HistoryConfig struct {
				Initial bool `json:"initialHistoryInClientContent"`
			} `json:"historyConfig"`
		} `json:"setup"`
	}
	if err := json.Unmarshal(first, &m); err != nil {
		return
	}
	resumes := m.Setup.SessionResumption.Handle != ""
	if resumes && p.refuses != 0 {
		p.mu.Lock()
		p.refused++
		p.mu.Unlock()
		conn.Close(p.refuses, "cannot resume")
		return
	}
	p.connected(resumes, m.Setup.SessionResumption.Handle)
	if conn.Write(ctx, websocket.MessageBinary, []byte(`{"setupComplete":{"sessionId":"s-1"}}`)) != nil {
		return
	}
	if m.Setup.HistoryConfig.Initial {
		_, seed, err := conn.Read(ctx)
		if err != nil {
			return
		}
		p.hear(string(seed))
	} else if !resumes {
		p.mu.Lock()
		p.greeted++
		p.mu.Unlock()
		if conn.Write(ctx, websocket.MessageText, []byte(out("Welcome!")+turnIdle)) != nil {
			return
		}
	}
	go l.listen(ctx, cancel)
	l.play(ctx)
}

// connected finds where the script goes on.
func (p *provider) connected(resumes bool, handle string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var n int
	if _, err := fmt.Sscanf(handle, "secret-handle-%d", &n); resumes && (err != nil || n < 1 || n > p.handles) {
		p.strange = append(p.strange, "resumed with "+handle)
	}
	if p.at > 0 && p.script[p.at-1].rotate {
		return
	}
	if p.at < len(p.script) && p.script[p.at].rotate {
		p.at++ // it left before it was asked to
	}
	if u := p.utteranceAt(); p.retells && u != 0 {
		p.at = slices.IndexFunc(p.script, func(s step) bool { return s.utterance == u })
	}
}

// utteranceAt is the utterance that was cut off; 0: none.
func (p *provider) utteranceAt() int {
	if p.at == 0 || p.at == len(p.script) || p.script[p.at].utterance != p.script[p.at-1].utterance {
		return 0
	}
	return p.script[p.at].utterance
}

// hear takes in text of the client.
func (p *provider) hear(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told.WriteString(text)
	for _, s := range p.script {
		if s.tool != "" && strings.Contains(text, "RESULT-"+s.tool) {
			p.answered[s.tool] = true
		}
	}
}

// listen reads what the client sends, until the connection ends.
func (l *live) listen(ctx context.Context, cancel context.CancelFunc) {
	defer cancel()
	for {
		_, raw, err := l.conn.Read(ctx)
		if err != nil {
			return
		}
		var m struct {
			ClientContent *struct{} `json:"clientContent"`
			ToolResponse  *struct {
				FunctionResponses []struct {
					ID string `json:"id"`
				} `json:"functionResponses"`
			} `json:"toolResponse"`
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return
		}
		if m.ToolResponse != nil {
			l.p.mu.Lock()
			for _, r := range m.ToolResponse.FunctionResponses {
				if !l.issued[r.ID] {
					l.p.strange = append(l.p.strange, "a tool response for "+r.ID+", which this connection did not issue")
				}
				l.p.answered[r.ID] = true
			}
			l.p.mu.Unlock()
		}
		if m.ClientContent != nil {
			l.p.hear(string(raw))
		}
		select {
		case l.woken <- struct{}{}:
		default:
		}
	}
}

// play sends the script from where it is.
func (l *live) play(ctx context.Context) {
	p := l.p
	for {
		p.mu.Lock()
		if p.at == len(p.script) {
			p.mu.Unlock()
			l.conn.Close(websocket.StatusNormalClosure, "over")
			return
		}
		s := p.script[p.at]
		if s.rotate && !l.goesAway {
			p.at++ // the connection that was to be left is gone
			p.mu.Unlock()
			continue
		}
		waits := s.rotate || s.tool != "" && !p.answered[s.tool]
		if !waits {
			p.at++
		}
		frame := s.frame
		if s.handle {
			p.handles++
			frame = resumption(fmt.Sprint("secret-handle-", p.handles))
		}
		if frame != "" && !waits {
			p.sent++
		}
		l.goesAway = l.goesAway || strings.Contains(frame, "goAway")
		kill := p.sent == p.killAt && !p.killed && frame != "" && !waits
		p.killed = p.killed || kill
		sent := p.sent
		p.mu.Unlock()
		if waits {
			select {
			case <-l.woken:
				continue
			case <-ctx.Done():
				if s.rotate {
					p.mu.Lock()
					if p.script[p.at].rotate {
						p.at++
					}
					p.mu.Unlock()
				}
				return
			}
		}
		if frame == "" {
			continue
		}
		if id, ok := strings.CutPrefix(s.frame, `{"toolCall":{"functionCalls":[{"id":"`); ok {
			id, _, _ = strings.Cut(id, `"`)
			p.mu.Lock()
			l.issued[id] = true
			p.mu.Unlock()
		}
		kind := websocket.MessageText
		if sent%2 == 0 {
			kind = websocket.MessageBinary // both carry JSON
		}
		if l.conn.Write(ctx, kind, []byte(frame)) != nil {
			return
		}
		if kill {
			// The client answers a ping when it reads again: so it has taken in all that was sent.
			if err := l.conn.Ping(ctx); err != nil && !errors.Is(err, context.Canceled) {
				return
			}
			return // and CloseNow
		}
	}
}
