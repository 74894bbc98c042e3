package handlers_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// Every request that cannot be read is refused with a reason and in words about the request: none of Go's, of its libraries or
// of the server's insides.
func TestWhatCannotBeReadIsRefusedWithAReason(t *testing.T) {
	t.Parallel()
	b := setup(t)
	key := b.key(t, "ada")
	const (
		appendMessages = "/holdfast.conversation.v1.ConversationService/Append"
		get            = "/holdfast.conversation.v1.ConversationService/GetConversation"
		ingest         = "/holdfast.live.v1.LiveService/IngestLive"
		create         = "/holdfast.conversation.v1.ConversationService/CreateConversation"
		asJSON         = "Content-Type: application/json"
		asProto        = "Content-Type: application/proto"
		asStream       = "Content-Type: application/connect+json"
		asProtoStream  = "Content-Type: application/connect+proto"
		gzipped        = "Content-Encoding: gzip"
	)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write([]byte(`{"conversationId":"` + strings.Repeat("c", 1000)))
	_ = z.Close()
	damaged := bytes.Clone(packed.Bytes())
	damaged[len(damaged)-6] ^= 0xff // its checksum
	corrupt := bytes.Clone(packed.Bytes())
	corrupt[11] = 0xff
	frame := func(body string) string {
		return string(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body)))) + body
	}
	query := func(pairs ...string) string {
		q := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			q.Set(pairs[i], pairs[i+1])
		}
		return get + "?" + q.Encode()
	}
	const broken, field, unknown, inexact = "BODY_BROKEN", "FIELD_INVALID", "FIELD_UNKNOWN", "NUMBER_INEXACT"
	for name, tt := range map[string]struct {
		path, body string
		headers    []string
		reason     string
		about      string // what the message must name
	}{
		"no JSON":                       {appendMessages, "hello", []string{asJSON}, broken, ""},
		"JSON that breaks off":          {appendMessages, `{"conversationId":"c1"`, []string{asJSON}, broken, ""},
		"JSON with more behind it":      {appendMessages, `{"conversationId":"c1"}}`, []string{asJSON}, broken, ""},
		"a list":                        {appendMessages, `[]`, []string{asJSON}, broken, ""},
		"null":                          {appendMessages, `null`, []string{asJSON}, broken, ""},
		"an empty body":                 {appendMessages, ``, []string{asJSON}, broken, "{}"},
		"a wrong type":                  {appendMessages, `{"conversationId":7}`, []string{asJSON}, field, "conversationId"},
		"a wrong type, deep":            {appendMessages, `{"conversationId":"c1","messages":[{"text":"a"},{"text":{}}]}`, []string{asJSON}, field, "messages[1].text"},
		"an object for a list":          {appendMessages, `{"messages":{}}`, []string{asJSON}, field, "messages"},
		"a field twice":                 {appendMessages, `{"conversationId":"a","conversationId":"b"}`, []string{asJSON}, field, "conversationId"},
		"an enum of no known name":      {appendMessages, `{"conversationId":"c1","messages":[{"role":"ROLE_KING"}]}`, []string{asJSON}, unknown, "role"},
		"an enum that is a list":        {appendMessages, `{"conversationId":"c1","messages":[{"role":[]}]}`, []string{asJSON}, field, "role"},
		"bad base64":                    {ingest, `{"conversationId":"c1","fencingToken":1,"frames":[{"clientIndex":1,"binary":"***"}]}`, []string{asJSON}, field, "binary"},
		"a number out of range":         {get, `{"conversationId":"c1","messageLimit":2147483648}`, []string{asJSON}, inexact, "messageLimit"},
		"a number beyond all":           {get, `{"conversationId":"c1","ifVersionNot":"99999999999999999999"}`, []string{asJSON}, inexact, "ifVersionNot"},
		"a fraction":                    {get, `{"conversationId":"c1","messageLimit":1.5}`, []string{asJSON}, inexact, "messageLimit"},
		"a duration that is none":       {create, `{"conversationId":"c1","conversation":{"ttl":"a week"}}`, []string{asJSON}, field, "conversation.ttl"},
		"invalid UTF-8 in JSON":         {appendMessages, "{\"conversationId\":\"\xff\"}", []string{asJSON}, field, "conversationId"},
		"half a surrogate pair":         {appendMessages, `{"conversationId":"\ud800"}`, []string{asJSON}, field, "conversationId"},
		"U+0000":                        {appendMessages, `{"conversationId":"c1","messages":[{"role":"ROLE_USER","text":"\u0000"}]}`, []string{asJSON}, field, "text"},
		"a field that is required":      {appendMessages, `{}`, []string{asJSON}, field, "conversation_id"},
		"an empty binary body":          {appendMessages, ``, []string{asProto}, field, "conversation_id"},
		"broken binary":                 {appendMessages, "\x0a\xff", []string{asProto}, broken, "AppendRequest"},
		"binary of another type":        {appendMessages, "\x08\x01\x0a", []string{asProto}, broken, ""},
		"invalid UTF-8 in binary":       {appendMessages, "\x0a\x01\xff", []string{asProto}, broken, "UTF-8"},
		"JSON as binary":                {appendMessages, `{"conversationId":"c1"}`, []string{asProto}, broken, ""},
		"no gzip":                       {appendMessages, `{"conversationId":"c1"}`, []string{asJSON, gzipped}, broken, "gzip"},
		"gzip that breaks off":          {appendMessages, packed.String()[:packed.Len()-9], []string{asJSON, gzipped}, broken, ""},
		"gzip with a wrong checksum":    {appendMessages, string(damaged), []string{asJSON, gzipped}, broken, "gzip"},
		"gzip that is damaged":          {appendMessages, string(corrupt), []string{asJSON, gzipped}, broken, ""},
		"gzip of broken JSON":           {appendMessages, packed.String(), []string{asJSON, gzipped}, field, "conversationId"},
		"a time that is no number":      {get, `{"conversationId":"c1"}`, []string{asJSON, "Connect-Timeout-Ms: soon"}, broken, "Connect-Timeout-Ms"},
		"a time below zero":             {get, `{"conversationId":"c1"}`, []string{asJSON, "Connect-Timeout-Ms: -1"}, broken, "Connect-Timeout-Ms"},
		"another version of Connect":    {get, `{"conversationId":"c1"}`, []string{asJSON, "Connect-Protocol-Version: 9"}, broken, "Connect-Protocol-Version"},
		"a stream of broken JSON":       {watchRPC, frame(`{"items"`), []string{asStream}, broken, ""},
		"a stream of a wrong type":      {watchRPC, frame(`{"items":{}}`), []string{asStream}, field, "items"},
		"a stream of broken binary":     {watchRPC, frame("\x0a\xff"), []string{asProtoStream}, broken, ""},
		"a stream's frame breaks off":   {watchRPC, frame(`{"items":[]}`)[:12], []string{asStream}, broken, ""},
		"a stream's head breaks off":    {watchRPC, "\x00\x00", []string{asStream}, broken, ""},
		"GET without a message":         {query("encoding", "json"), "", nil, broken, "message"},
		"GET without an encoding":       {query("message", "{}"), "", nil, broken, "encoding"},
		"GET in an encoding of no kind": {query("message", "{}", "encoding", "xml"), "", nil, broken, "encoding"},
		"GET of another version":        {query("message", "{}", "encoding", "json", "connect", "v9"), "", nil, broken, "connect"},
		"GET of broken JSON":            {query("message", "{", "encoding", "json"), "", nil, broken, ""},
		"GET of an empty message":       {query("message", "", "encoding", "json"), "", nil, broken, ""},
		"GET of a wrong type":           {query("message", `{"conversationId":[]}`, "encoding", "json"), "", nil, field, "conversationId"},
		"GET of bad base64":             {query("message", "***", "encoding", "proto", "base64", "1"), "", nil, broken, "base64"},
		"GET of broken binary":          {query("message", "Cv8", "encoding", "proto", "base64", "1"), "", nil, broken, ""},
		"GET of no gzip":                {query("message", "eyJjb252ZXJzYXRpb25JZCI6ImMxIn0", "encoding", "json", "base64", "1", "compression", "gzip"), "", nil, broken, "gzip"},
		"GET that is not escaped":       {get + "?message=%zz&encoding=json", "", nil, broken, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			verb := http.MethodPost
			if tt.headers == nil {
				verb = http.MethodGet
			}
			got := b.do(t, verb, tt.path, strings.NewReader(tt.body), append(tt.headers, key)...)
			if strings.HasSuffix(got.code, "200") || got.code == "ok" {
				t.Fatalf("answered %d %s", got.status, got.body)
			}
			if got.code != "invalid_argument" || got.reason != tt.reason || !strings.Contains(got.body, tt.about) {
				t.Errorf("%s %s %s, want %s about %q", got.code, got.reason, got.body, tt.reason, tt.about)
			}
			for _, inside := range []string{"proto:", "jsonpb", "handlers:", "*", "unmarshal", "protobuf error", "flate", "strconv", "EOF", "dynamicpb"} {
				said, _, _ := strings.Cut(got.body, `"details"`)
				if strings.Contains(said, inside) {
					t.Errorf("%s tells of %q", said, inside)
				}
			}
		})
	}
}
