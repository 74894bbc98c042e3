package credential

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/session/v1"
)

func made() Origin {
	object := ObjectID("acme", "ada")
	return Origin{
		Session: NewSessionID(object, []byte("random")), Generation: 3, Key: KeyOf("hfk_x"),
		Salt: bytes.Repeat([]byte{1}, SaltLen), FamilyKey: bytes.Repeat([]byte{2}, FamilyKeyLen),
	}
}

// Stored hashes and sealed salts must be understood for ever, and object ids found.
func TestFormat(t *testing.T) {
	t.Parallel()
	o := made()
	access, refresh := o.Issue(Access), o.Issue(Refresh)
	for what, tt := range map[string]struct{ got, want string }{
		"object": {ObjectOf(o.Session), goldenObject}, "session": {o.Session, goldenObject + "ojqw4zdpnu"},
		"access": {access.Bearer(), goldenAccess}, "refresh": {refresh.Bearer(), goldenRefresh},
		"hash": {fmt.Sprintf("%x", access.Hash()), goldenHash},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is %q, want %q", what, tt.got, tt.want)
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, c := range []Class{Access, Refresh} {
		want := made().Issue(c)
		got, ok := Parse(want.Bearer())
		if !ok || got != want || got.Generation() != 3 {
			t.Errorf("%s: %v", c, got)
		}
	}
	good := made().Issue(Access).Bearer()
	for name, s := range map[string]string{
		"nothing": "", "a prefix": "hfa_", "another prefix": "hfk_" + good[4:], "cut": good[:len(good)-1], "longer": good + "A",
		"no underscore": strings.Replace(good, "_", "-", 2), "a session id in capitals": good[:4] + strings.ToUpper(good[4:40]) + good[40:],
		"not base64": good[:60] + "!" + good[61:],
	} {
		if got, ok := Parse(s); ok {
			t.Errorf("%s: %v", name, got.Session)
		}
	}
	if ObjectOf("") != "" || ObjectOf(strings.Repeat("A", sessionLen)) != "" || ObjectOf(strings.Repeat("a", sessionLen)) == "" {
		t.Error("ObjectOf")
	}
}

// What a token is made of decides it, and each part of it counts.
func TestIssue(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for name, change := range map[string]func(*Origin){
		"itself": func(*Origin) {}, "session": func(o *Origin) { o.Session = NewSessionID(ObjectID("acme", "eve"), []byte("random")) },
		"generation": func(o *Origin) { o.Generation++ }, "key": func(o *Origin) { o.Key = KeyOf("hfk_y") },
		"salt": func(o *Origin) { o.Salt = bytes.Repeat([]byte{9}, SaltLen) }, "family": func(o *Origin) { o.FamilyKey = bytes.Repeat([]byte{9}, FamilyKeyLen) },
	} {
		for _, c := range []Class{Access, Refresh} {
			o := made()
			change(&o)
			token := o.Issue(c)
			if o.Issue(c) != token {
				t.Errorf("%s: not the same again", name)
			}
			if before, ok := seen[token.Bearer()[40:]]; ok {
				t.Errorf("%s and %s are the same", name, before)
			}
			seen[token.Bearer()[40:]] = name
		}
	}
}

// Only what was issued has a tag, and the tag proves nothing else: the hash does.
func TestIssued(t *testing.T) {
	t.Parallel()
	o := made()
	token := o.Issue(Refresh)
	if !token.Issued(o.FamilyKey) || token.Issued(bytes.Repeat([]byte{9}, FamilyKeyLen)) || token.Issued(nil) || token.Issued([]byte{}) {
		t.Error("Issued")
	}
	for i := range secretLen {
		forged := token
		forged.secret[i] ^= 1
		if forged.Issued(o.FamilyKey) || forged.Matches(token.Hash()) {
			t.Errorf("byte %d does not count", i)
		}
	}
	asAccess := token
	asAccess.Class = Access
	if asAccess.Issued(o.FamilyKey) {
		t.Error("a refresh token passes for an access token")
	}
	if !token.Matches(token.Hash()) || token.Matches(nil) || token.Matches(token.Hash()[:31]) {
		t.Error("Matches")
	}
}

// A token does not show where it is printed by mistake.
func TestATokenIsNotPrinted(t *testing.T) {
	t.Parallel()
	token := made().Issue(Refresh)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", token, "in", struct{ T Token }{token})
	printed := log.String() + fmt.Sprintf("%v %+v %#v %s %q %v", token, token, token, token, token, &token)
	if strings.Contains(printed, token.Bearer()[41:60]) || strings.Contains(printed, "[0 0 0 3") {
		t.Errorf("printed: %s", printed)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	at := func(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(now.Add(d)) }
	newest, older, oldest := made(), made(), made()
	newest.Generation, older.Generation, oldest.Generation = 3, 2, 1
	record := func(change func(*storev1.SessionRecord)) *storev1.SessionRecord {
		r := &storev1.SessionRecord{
			ActiveTime: at(-time.Minute), IdleTimeout: durationpb.New(time.Hour), ExpireTime: at(5 * time.Hour), FamilyKey: newest.FamilyKey,
			AccessHash: newest.Issue(Access).Hash(), AccessExpireTime: at(10 * time.Minute),
			OldAccessHash: older.Issue(Access).Hash(), OldAccessExpireTime: at(20 * time.Second),
			RefreshHash: newest.Issue(Refresh).Hash(), OldRefreshHash: older.Issue(Refresh).Hash(),
		}
		if change != nil {
			change(r)
		}
		return r
	}
	end := func(why storev1.EndReason) func(*storev1.SessionRecord) {
		return func(r *storev1.SessionRecord) { r.End = &storev1.SessionEnd{Reason: why} }
	}
	stranger := made()
	stranger.FamilyKey = bytes.Repeat([]byte{7}, FamilyKeyLen)
	for name, tt := range map[string]struct {
		record func(*storev1.SessionRecord)
		token  Token
		until  time.Duration
		reason errorv1.Reason
	}{
		"newest":                      {nil, newest.Issue(Access), 10 * time.Minute, 0},
		"the one before":              {nil, older.Issue(Access), 20 * time.Second, 0},
		"until the session is idle":   {func(r *storev1.SessionRecord) { r.ActiveTime = at(-55 * time.Minute) }, newest.Issue(Access), 5 * time.Minute, 0},
		"until its absolute end":      {func(r *storev1.SessionRecord) { r.ExpireTime = at(time.Minute) }, newest.Issue(Access), time.Minute, 0},
		"newest, its time over":       {func(r *storev1.SessionRecord) { r.AccessExpireTime = at(0) }, newest.Issue(Access), 0, TokenExpired},
		"the one before, after grace": {func(r *storev1.SessionRecord) { r.OldAccessExpireTime = at(0) }, older.Issue(Access), 0, TokenExpired},
		"an old one":                  {nil, oldest.Issue(Access), 0, TokenExpired},
		"a refresh token":             {nil, newest.Issue(Refresh), 0, Invalid},
		"one never issued":            {nil, stranger.Issue(Access), 0, Invalid},
		"one never issued, when over": {end(storev1.EndReason_END_REASON_REVOKED), stranger.Issue(Access), 0, Invalid},
		"idle":                        {func(r *storev1.SessionRecord) { r.ActiveTime = at(-time.Hour) }, newest.Issue(Access), 0, Expired},
		"too old":                     {func(r *storev1.SessionRecord) { r.ExpireTime = at(0) }, newest.Issue(Access), 0, Expired},
		"signed out":                  {end(storev1.EndReason_END_REASON_SIGNED_OUT), newest.Issue(Access), 0, Revoked},
		"revoked":                     {end(storev1.EndReason_END_REASON_REVOKED), older.Issue(Access), 0, Revoked},
		"reused":                      {end(storev1.EndReason_END_REASON_REUSE_DETECTED), oldest.Issue(Access), 0, Revoked},
		"evicted":                     {end(storev1.EndReason_END_REASON_EVICTED), newest.Issue(Access), 0, Revoked},
		"ended idle":                  {end(storev1.EndReason_END_REASON_IDLE_TIMEOUT), newest.Issue(Access), 0, Expired},
		"an empty record":             {func(r *storev1.SessionRecord) { proto.Reset(r) }, newest.Issue(Access), 0, Invalid},
	} {
		until, refusal := Check(record(tt.record), tt.token, now)
		switch {
		case tt.reason == 0 && (refusal != nil || !until.Equal(now.Add(tt.until))):
			t.Errorf("%s: until %v, %v", name, until.Sub(now), refusal)
		case tt.reason != 0 && (refusal == nil || refusal.Reason != tt.reason):
			t.Errorf("%s: %v, want %s", name, refusal, tt.reason)
		}
	}
}

const (
	goldenObject  = "kosqc54n52hjufxrf2isg2mkle"
	goldenAccess  = "hfa_kosqc54n52hjufxrf2isg2mkleojqw4zdpnu_AAAAA_kW2aku41_H-pTjkwxUXIEbWF6njvVebUBSBgLjjiboIHWOpA2v44dgilaB"
	goldenRefresh = "hfr_kosqc54n52hjufxrf2isg2mkleojqw4zdpnu_AAAAA0cCJRwJLnqlr5uBiwZDbH949f0hnW7b1m0fPEA8gvZ6ODlaupCHEn0HojX1"
	goldenHash    = "d3cd9036d920e51ffc493471468a99ed58f637e258c9054eb71ca581174b3c55"
)

// Secrets are compared in constant time: where a credential is verified nothing else compares bytes.
func TestSecretsAreComparedInConstantTime(t *testing.T) {
	t.Parallel()
	compares := regexp.MustCompile(`bytes\.(Equal|Compare)|slices\.Equal|reflect\.DeepEqual|(?i:hash|secret|tag)[\w\]\)]*\s*[!=]=\s*[^n\s"]`)
	safe := map[string]int{"token.go": 2, "verdict.go": 0, "../book.go": 0, "../../auth.go": 1, "../../guard.go": 0}
	for name, want := range safe {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(string(text), "subtle.ConstantTimeCompare(") + strings.Count(string(text), "hmac.Equal("); got != want {
			t.Errorf("%s compares %d secrets in constant time, want %d", name, got, want)
		}
		for i, line := range strings.Split(string(text), "\n") {
			if found := compares.FindString(line); found != "" && !strings.Contains(line, "ConstantTimeCompare") {
				t.Errorf("%s:%d: %s", name, i+1, line)
			}
		}
	}
	if !compares.MatchString("if r.Hash == other {") || !compares.MatchString("bytes.Equal(a, b)") {
		t.Error("the expression finds nothing")
	}
}
