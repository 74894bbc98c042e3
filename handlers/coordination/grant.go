package coordination

import (
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

// grant is what an Acquire took. Its id says all of it, so that the busiest limits store nothing for each grant. What is
// stored is which grants were given back, and those that their callers have named. A grant that somebody has made up gives no
// right: a lease is looked up, and only services give anything back.
type grant struct {
	// version is that of the change that made it. No two grants of an API have the same.
	version       int64
	at            time.Time
	permits, cost int64
	// generation of the breaker in which the call began.
	generation int64
	// policies has bit i set where the i-th policy covers the call.
	policies uint32
	// operation marks the operation where operations have breakers of their own, or is 0.
	operation int64
	// user is the key of the user whose own limits count; empty: none do.
	user string
}

// grantPrefix begins the ids of grants that no caller has named.
const grantPrefix = "g."

// rawUser is a user's key in bytes; see ownerKey.
const rawUser = 15

func (g grant) id() string {
	var raw [7*binary.MaxVarintLen64 + rawUser]byte
	b := raw[:0]
	for _, n := range [...]int64{g.version, g.at.UnixMicro(), g.permits, g.cost, g.generation, int64(g.policies)} {
		b = binary.AppendUvarint(b, uint64(n)) //nolint:gosec // none is negative
	}
	if g.operation != 0 {
		b = binary.AppendUvarint(b, uint64(g.operation)) //nolint:gosec // 32 bits
	}
	if g.user != "" {
		b, _ = base32.StdEncoding.AppendDecode(b, []byte(g.user)) // a key is base32
	}
	var text [len(grantPrefix) + (len(raw)*4+2)/3]byte
	return string(base64.RawURLEncoding.AppendEncode(append(text[:0], grantPrefix...), b))
}

// parseGrant reads a grant's id; false where it is a caller's own name.
func parseGrant(id string) (g grant, ok bool) {
	text, ok := strings.CutPrefix(id, grantPrefix)
	if !ok {
		return g, false
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return g, false
	}
	var numbers [6]int64
	for i := range numbers {
		n, size := binary.Uvarint(b)
		if size <= 0 || int64(n) < 0 { //nolint:gosec // what overflows is negative
			return g, false
		}
		numbers[i], b = int64(n), b[size:] //nolint:gosec // the same
	}
	if len(b) != rawUser && len(b) > 0 { // shorter than a user by itself, so nothing else looks like it
		mark, size := binary.Uvarint(b)
		if size <= 0 || mark > math.MaxUint32 || mark == 0 {
			return g, false
		}
		g.operation, b = int64(mark), b[size:]
	}
	if len(b) == rawUser {
		g.user = base32.StdEncoding.EncodeToString(b)
	} else if len(b) > 0 {
		return g, false
	}
	g.version, g.at, g.permits, g.cost, g.generation = numbers[0], time.UnixMicro(numbers[1]), numbers[2], numbers[3], numbers[4]
	g.policies = uint32(numbers[5]) //nolint:gosec // at most 32 policies; more bits are of none
	return g, true
}

// covered are the policies that a grant took from. It is false where they may be others by now.
func (t *tx) covered(g grant) (all []policy, same bool) {
	if g.version <= t.state.GetConfigVersion() || g.version > t.at() || g.at.Before(t.Info().CreateTime) {
		return nil, false
	}
	for i, p := range t.config.GetPolicies() {
		if g.policies&(1<<i) != 0 {
			all = append(all, p)
		}
	}
	return all, true
}

// maxReleased bounds how many grants that were given back are remembered.
const maxReleased = 256

// giveBack gives back what a grant took, and notes that. It returns false where it was given back before, or cannot be.
func (t *tx) giveBack(g grant) bool {
	policies, same := t.covered(g)
	if !same || !noteRelease(t.state, g.version) {
		return false
	}
	if len(policies) > 0 {
		d := &demand{only: namesOf(policies), permits: g.permits, cost: g.cost, users: g.user != ""}
		refund(t.bucketStore, t.config, d, g.at, t.ledger.now)
	}
	// A probe that was not sent makes room for another one.
	breakerHears(t.breakerOfGrant(g), t.config.GetBreaker(), g.generation, healthNone, t.ledger.now)
	return true
}

// noteRelease notes that the grant of a version is given back. It returns false where it was before, or may have been.
func noteRelease(s *storev1.ApiState, version int64) bool {
	i, before := slices.BinarySearch(s.GetReleased(), version)
	if before || version <= s.GetReleasedThrough() {
		return false
	}
	s.Released = slices.Concat(s.GetReleased()[:i], []int64{version}, s.GetReleased()[i:]) // shared with earlier states
	if len(s.GetReleased()) > maxReleased {
		s.ReleasedThrough, s.Released = s.GetReleased()[0], s.GetReleased()[1:]
	}
	return true
}

// Grants that callers have named are kept in groups by a hash of the name: each group has the last ones, so the work is the
// same however many there are, and old ones go without being looked for. A caller's last grantGroup grants are always kept,
// and of the last grantGroups * grantGroup most.
const (
	grantGroups = 64
	grantGroup  = 16
)

// groupKey is that of the group that has a caller's grant.
func groupKey(owner, name string) string {
	h := fnv.New32a()
	h.Write([]byte(name))
	return owner + "/" + strconv.Itoa(int(h.Sum32()%grantGroups))
}

// named finds a grant that the caller has named, or that the server has.
func (t *tx) named(name string) (g grant, ok bool) {
	if g, ok = parseGrant(name); ok {
		return g, true
	}
	group, _ := t.Entry(inGrants, groupKey(t.callerKey(), name)).(*storev1.Grants)
	if i := indexOf(group, name); i >= 0 {
		return parseGrant(group.GetGrants()[i].GetId())
	}
	return g, false
}

func indexOf(group *storev1.Grants, name string) int {
	return slices.IndexFunc(group.GetGrants(), func(g *storev1.Grant) bool { return g.GetName() == name })
}

// keep remembers a grant by the name that its caller gave it, and forget ends that.
func (t *tx) keep(name string, g grant) { t.rename(name, &storev1.Grant{Name: name, Id: g.id()}) }

func (t *tx) forgetGrant(name string) { t.rename(name) }

// rename replaces what is kept under a name.
func (t *tx) rename(name string, by ...*storev1.Grant) {
	key := groupKey(t.callerKey(), name)
	group, _ := t.Entry(inGrants, key).(*storev1.Grants)
	all := slices.Clone(group.GetGrants())
	if i := indexOf(group, name); i >= 0 {
		all = slices.Delete(all, i, i+1)
	}
	all = append(all, by...)
	t.PutFor(t.caller.User, inGrants, key, &storev1.Grants{Grants: all[max(0, len(all)-grantGroup):]})
}

func (t *tx) callerKey() string { return ownerKey(t.caller.User) }
