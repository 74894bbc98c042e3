// Package console serves the console: a page in the binary that shows what a tenant has, live and as it was. It has no rights of its own:
// it calls the API as everyone does, with the credential of the person who looks.
//
// Its source is clients/ts/console. dist is built from it, and committed so that `go install` needs no Node; CI builds it again and fails if that
// makes a difference.
package console

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"sync"
)

//go:embed all:dist
var dist embed.FS

// Path is where the console is served.
const Path = "/console/"

// policy lets the page load its own files and call its own server. Nothing else can be loaded, sent to, or framed.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Link signs one person in: the first caller that presents its code gets the token. It is safe for concurrent use.
type Link struct {
	code   string
	mu     sync.Mutex
	answer *Credential // nil: it was used
}

// Credential is what a link gives.
type Credential struct {
	Tenant string `json:"tenant"`
	Token  string `json:"token"`
}

// NewLink returns a link that gives the credential once.
func NewLink(c Credential) *Link { return &Link{code: rand.Text(), answer: &c} }

// Fragment returns the end of the link's URL. Browsers keep it to themselves: it is in no request, and so in no log.
func (l *Link) Fragment() string { return "#/link/" + l.code }

func (l *Link) take(code string) *Credential {
	if l == nil || subtle.ConstantTimeCompare([]byte(code), []byte(l.code)) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.answer
	l.answer = nil
	return c
}

// Handler serves the console at Path. link may be nil.
func Handler(link *Link) http.Handler {
	files := sync.OnceValue(load)
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+Path+"link", func(w http.ResponseWriter, r *http.Request) {
		code := new(bytes.Buffer)
		_, err := code.ReadFrom(http.MaxBytesReader(w, r.Body, 64))
		c := link.take(code.String())
		if err != nil || c == nil {
			http.Error(w, "This link was used, or belongs to another server.", http.StatusGone)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(c) // the caller has gone
	})
	mux.HandleFunc("GET "+Path, func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, Path)
		if name == "" {
			name = "index.html"
		}
		f, ok := files()[name]
		if !ok {
			http.NotFound(w, r)
			return
		}
		f.serve(w, r)
	})
	return mux
}

type file struct {
	kind, age  string
	body, gzip []byte
}

// load reads the files, and compresses them. Those under assets/ have a hash in their names.
func load() map[string]file {
	files := map[string]file{}
	root, _ := fs.Sub(dist, "dist") // the error is that of a path that is not valid
	_ = fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := fs.ReadFile(root, name)
		f := file{kind: mime.TypeByExtension(path.Ext(name)), age: "no-cache", body: body}
		if strings.HasPrefix(name, "assets/") {
			f.age = "public, max-age=31536000, immutable"
		}
		var small bytes.Buffer
		z, _ := gzip.NewWriterLevel(&small, gzip.BestCompression)
		_, _ = z.Write(body)
		_ = z.Close() // a buffer takes all
		f.gzip = small.Bytes()
		files[name] = f
		return err
	})
	return files
}

func (f file) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", f.kind)
	h.Set("Cache-Control", f.age)
	h.Set("Content-Security-Policy", policy)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Vary", "Accept-Encoding")
	h.Set("X-Content-Type-Options", "nosniff")
	body := f.body
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		h.Set("Content-Encoding", "gzip")
		body = f.gzip
	}
	_, _ = w.Write(body) // the caller has gone
}
