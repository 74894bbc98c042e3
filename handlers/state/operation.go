package state

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	statev1 "holdfast/gen/holdfast/state/v1"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	typev1 "holdfast/gen/holdfast/type/v1"
	"holdfast/handlers/problem"
	"holdfast/object"
)

// entries are those of an object, as a change sees them.
type entries interface {
	get(collection, key string) *storev1.Entry
	// put sets an entry. fresh: there can be none.
	put(collection, key string, e *storev1.Entry, fresh bool)
	remove(collection, key string)
	// scan returns the first entries of a part of a collection, and whether there are more.
	scan(collection string, p part, limit int) (found []found, more bool)
}

// part is a part of a collection: what is set of it. backward: the last one first.
type part struct {
	prefix, after, before string
	backward              bool
}

func (p part) has(key string) bool {
	return strings.HasPrefix(key, p.prefix) && key > p.after && (p.before == "" || key < p.before)
}

type found struct {
	key   string
	entry *storev1.Entry
}

// change is what operations work on.
type change struct {
	state   state
	as      *declared // what its type is declared to be
	entries entries
	now     time.Time
	version int64 // that it makes
	// touched: entries have changed. event names the change.
	touched bool
	event   string
	deleted int // entries
	room    object.Room
}

// maxDeleted bounds the entries that one change removes of ranges: it reads all of them, and its undo keeps them.
const maxDeleted = 1000

// apply makes the operations in order.
func (c *change) apply(ops []*statev1.Operation) (results []*statev1.Result, err error) {
	for i, op := range ops {
		r := &statev1.Result{}
		switch o := op.GetOperation().(type) {
		case *statev1.Operation_SetState:
			err = c.setState(structpb.NewStructValue(o.SetState), "")
		case *statev1.Operation_SetStateJson:
			err = c.setState(nil, o.SetStateJson)
		case *statev1.Operation_SetFields:
			err = c.setFields(i, o.SetFields)
		case *statev1.Operation_Increment:
			err = c.increment(i, o.Increment, r)
		case *statev1.Operation_Append:
			err = c.append(o.Append, r)
		case *statev1.Operation_Put:
			err = c.put(o.Put, r)
		case *statev1.Operation_Delete:
			err = c.delete(o.Delete, r)
		case *statev1.Operation_Expect:
			err = c.expect(i, o.Expect)
		case *statev1.Operation_Lease:
			err = c.lease(o.Lease, r)
		case *statev1.Operation_Emit:
			if c.event != "" && c.event != o.Emit {
				err = problem.InvalidArgument("", "a change has one name; an operation before has emitted "+c.event)
			}
			c.event = o.Emit
		case *statev1.Operation_SetTimer:
			err = c.setTimer(o.SetTimer)
		case *statev1.Operation_ClearTimer:
			delete(c.state.GetTimers(), o.ClearTimer)
		case *statev1.Operation_FinishTimer:
			err = c.finishTimer(o.FinishTimer, r)
		}
		if err != nil {
			return nil, within("operations", i, err)
		}
		results = append(results, r)
	}
	size := 0
	for k, v := range c.state.GetFields() {
		size += len(k) + len(v)
	}
	if size > maxState {
		return nil, tooLarge("state", size, maxState)
	}
	return results, nil
}

// within says in which element of a list of the request something is refused.
func within(list string, i int, err error) error {
	p, ok := err.(*problem.Error) //nolint:errorlint // made here
	if !ok {
		return err
	}
	if v, ok := p.Detail.(*errorv1.Violations); ok {
		for _, f := range v.GetFields() {
			f.Field = strings.TrimSuffix(fmt.Sprintf("%s[%d].%s", list, i, f.GetField()), ".")
		}
	}
	p.Message = fmt.Sprintf("%s[%d]: %s", list, i, p.Message)
	return p
}

func tooLarge(what string, size, limit int) *problem.Error {
	p := problem.SizeExceeded(what, int64(size), int64(limit), fmt.Sprintf("%s: would have %d bytes, over the limit of %d", what, size, limit))
	p.Detail.(*errorv1.Limit).Scope = "object" //nolint:forcetypeassert // SizeExceeded has just set it
	return p
}

// unexpected refuses what is not as the change wants it.
func unexpected(i int, path, said string, actual json.RawMessage) *problem.Error {
	name := cmp.Or(path, "the state")
	p := problem.New(errorv1.Reason_REASON_EXPECTATION_FAILED, fmt.Sprintf("%s %s; read it and decide again", name, said))
	if len(actual) > maxActual {
		actual = nil
	}
	p.Detail = &errorv1.Expectation{Operation: int32(i), Path: path, ActualJson: string(actual)} //nolint:gosec // small
	return p
}

const maxActual = 4 << 10

// whole is the state as one JSON text.
func whole(s state) json.RawMessage {
	members := make(map[string]json.RawMessage, len(s.GetFields()))
	for k, v := range s.GetFields() {
		members[k] = json.RawMessage(v)
	}
	return encoded(members)
}

// jsonOf is JSON that came as a value or as text.
func jsonOf(field string, v *structpb.Value, text string) (json.RawMessage, error) {
	if v != nil {
		return textOf(v)
	}
	value, said := parse(text)
	if said != "" {
		return nil, problem.InvalidArgument(field, said)
	}
	return value, nil
}

func (c *change) setState(v *structpb.Value, text string) error {
	value, err := jsonOf("set_state_json", v, text)
	if err != nil {
		return err
	}
	if !setWhole(c.state, value) {
		return problem.InvalidArgument("set_state_json", "is not an object, which a state is")
	}
	return nil
}

// setWhole sets all of a state, unless the value is no object.
func setWhole(s state, value json.RawMessage) bool {
	var members map[string]json.RawMessage
	if first(value) != '{' || json.Unmarshal(value, &members) != nil {
		return false
	}
	s.Fields = make(map[string]string, len(members))
	for k, v := range members {
		s.Fields[k] = string(v)
	}
	return true
}

func (c *change) setFields(i int, op *statev1.SetFields) error {
	named := map[string]bool{}
	twice := func(field, path string) error {
		way := strings.Join(steps(path), "\x00") // which no name has
		if named[way] && !strings.HasSuffix(path, "/-") {
			return problem.InvalidArgument(field, "names "+strconv.Quote(path)+" twice")
		}
		named[way] = true
		return nil
	}
	for _, path := range op.GetRemove() {
		if err := twice("set_fields.remove", path); err != nil {
			return err
		}
		if err := c.set(i, "set_fields.remove", path, nil); err != nil {
			return err
		}
	}
	// In the order of the paths, because one may lead into another.
	for _, path := range slices.Sorted(maps.Keys(op.GetFields())) {
		if err := twice("set_fields.fields", path); err != nil {
			return err
		}
		value, err := textOf(op.GetFields()[path])
		if err != nil {
			return err
		}
		if err := c.set(i, "set_fields.fields", path, value); err != nil {
			return err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(op.GetFieldsJson())) {
		if err := twice("set_fields.fields_json", path); err != nil {
			return err
		}
		value, said := parse(op.GetFieldsJson()[path])
		if said != "" {
			return problem.InvalidArgument("set_fields.fields_json["+strconv.Quote(path)+"]", said)
		}
		if err := c.set(i, "set_fields.fields_json", path, value); err != nil {
			return err
		}
	}
	return nil
}

// set sets what a path leads to, or removes it where value is nil.
func (c *change) set(i int, field, path string, value json.RawMessage) error {
	way := steps(path)
	switch {
	case len(way) == 0:
		return problem.InvalidArgument(field, "has an empty path; use set_state")
	case badEscape(path) != "":
		return problem.InvalidArgument(field, badEscape(path))
	case len(way) > maxNesting:
		return problem.InvalidArgument(field, fmt.Sprintf("has a path of more than %d steps", maxNesting))
	}
	name := way[0]
	was := json.RawMessage(c.state.GetFields()[name])
	is, ok := with(was, way[1:], value)
	if !ok {
		return unexpected(i, path, "leads into what is no object, or past the end of a list", was)
	}
	if len(is) == 0 {
		delete(c.state.GetFields(), name)
		return nil
	}
	if value != nil && len(way) > 1 {
		if _, said := parse(string(is)); said != "" {
			return problem.InvalidArgument(field, said)
		}
	}
	if c.state.Fields == nil {
		c.state.Fields = map[string]string{}
	}
	c.state.Fields[name] = string(is)
	return nil
}

// get is what a path leads to, or nil.
func (c *change) get(path string) json.RawMessage {
	way := steps(path)
	if len(way) == 0 {
		return whole(c.state)
	}
	v, ok := c.state.GetFields()[way[0]]
	if !ok {
		return nil
	}
	return find(json.RawMessage(v), way[1:])
}

func (c *change) increment(i int, op *statev1.Increment, r *statev1.Result) error {
	by := 1.0
	if op.By != nil { //nolint:protogetter // unset is 1
		by = op.GetBy()
	}
	if said := badEscape(op.GetPath()); said != "" {
		return problem.InvalidArgument("increment.path", said)
	}
	was := c.get(op.GetPath())
	n, ok := decimal{}, false
	switch first(was) {
	case 0:
		n, ok = decimalOf("0")
	case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
		n, ok = decimalOf(string(was))
	}
	step, fits := decimalOf(strconv.FormatFloat(by, 'g', -1, 64))
	if !ok || !fits {
		return unexpected(i, op.GetPath(), "is no number that can be added to", was)
	}
	sum := n.plus(step).String()
	if _, ok := decimalOf(sum); !ok { // nothing could be added to it
		return unexpected(i, op.GetPath(), fmt.Sprintf("and what is added have more than %d digits together", maxDigits), was)
	}
	if err := c.set(i, "increment.path", op.GetPath(), json.RawMessage(sum)); err != nil {
		return err
	}
	if v := valueOf(json.RawMessage(sum)); v != nil {
		number := v.GetNumberValue()
		r.Number = &number
	} else {
		r.NumberText = sum
	}
	return nil
}

// written is the entry of a field as it is stored.
func (c *change) written(field string, e *statev1.Entry) (*storev1.Entry, error) {
	out := &storev1.Entry{Version: c.version, Labels: e.GetLabels()}
	var size int
	switch v := e.GetValue().(type) {
	case *statev1.Entry_Text:
		out.Value, size = &storev1.Entry_Text{Text: v.Text}, len(v.Text)
	case *statev1.Entry_Data:
		out.Value, size = &storev1.Entry_Data{Data: v.Data}, len(v.Data)
	case nil:
		return nil, problem.InvalidArgument(field, "has no value: set json, json_text, text or data")
	default:
		text, err := jsonOf(field+".json_text", e.GetJson(), e.GetJsonText())
		if err != nil {
			return nil, err
		}
		out.Value, size = &storev1.Entry_Json{Json: string(text)}, len(text)
	}
	if size > maxValue {
		return nil, tooLarge("entry "+e.GetCollection()+"/"+e.GetKey(), size, maxValue)
	}
	return out, nil
}

// shown is an entry as callers see it.
func shown(collection, key string, e *storev1.Entry) *statev1.Entry {
	out := &statev1.Entry{Collection: collection, Key: key, Version: e.GetVersion(), Labels: e.GetLabels()}
	switch v := e.GetValue().(type) {
	case *storev1.Entry_Text:
		out.Value = &statev1.Entry_Text{Text: v.Text}
	case *storev1.Entry_Data:
		out.Value = &statev1.Entry_Data{Data: v.Data}
	case *storev1.Entry_Json:
		if value := valueOf(json.RawMessage(v.Json)); value != nil {
			out.Value = &statev1.Entry_Json{Json: value}
		} else {
			out.Value = &statev1.Entry_JsonText{JsonText: v.Json}
		}
	}
	return out
}

func (c *change) append(e *statev1.Entry, r *statev1.Result) error {
	switch {
	case e.GetCollection() == "":
		return problem.InvalidArgument("append.collection", "is missing")
	case e.GetKey() != "":
		return problem.InvalidArgument("append.key", "must be empty: an appended entry gets the next number; use put")
	}
	value, err := c.written("append", e)
	if err != nil {
		return err
	}
	r.Key = object.SeqKey(c.count(e.GetCollection(), c.lastSeq(e.GetCollection())+1))
	if err := c.as.checkEntry(e.GetCollection(), r.GetKey(), value); err != nil {
		return err
	}
	c.touched = true
	c.entries.put(e.GetCollection(), r.GetKey(), value, true)
	return nil
}

func (c *change) lastSeq(collection string) int64 {
	return c.state.GetCollections()[collection].GetLastSeq()
}

// count notes that a collection has an entry of a number.
func (c *change) count(collection string, seq int64) int64 {
	if c.state.Collections == nil {
		c.state.Collections = map[string]*storev1.Collection{}
	}
	c.state.Collections[collection] = &storev1.Collection{LastSeq: seq}
	return seq
}

func (c *change) put(op *statev1.Put, r *statev1.Result) error {
	e := op.GetEntry()
	if e.GetCollection() == "" || e.GetKey() == "" {
		return problem.InvalidArgument("put.entry", "has no collection or no key; use append for the next number")
	}
	value, err := c.written("put.entry", e)
	if err != nil {
		return err
	}
	if op.GetOnExists() > statev1.OnExists_ON_EXISTS_REPLACE && c.entries.get(e.GetCollection(), e.GetKey()) != nil {
		if op.GetOnExists() == statev1.OnExists_ON_EXISTS_KEEP {
			return nil
		}
		return problem.New(errorv1.Reason_REASON_ALREADY_EXISTS, fmt.Sprintf("%s/%s: there is such an entry", e.GetCollection(), e.GetKey()))
	}
	if err := c.as.checkEntry(e.GetCollection(), e.GetKey(), value); err != nil {
		return err
	}
	// Appended entries come behind it, should it look like one of them.
	if n, err := strconv.ParseInt(e.GetKey(), 10, 64); err == nil && n > c.lastSeq(e.GetCollection()) && object.SeqKey(n) == e.GetKey() {
		if n >= maxSeq {
			return problem.InvalidArgument("put.entry.key", "is too high a number for appended entries to follow")
		}
		c.count(e.GetCollection(), n)
	}
	r.Put, c.touched = true, true
	c.entries.put(e.GetCollection(), e.GetKey(), value, false)
	return nil
}

// maxSeq is where the keys of appended entries would no longer be in the order of their numbers.
const maxSeq = 999_000_000_000

func (c *change) delete(op *statev1.DeleteEntries, r *statev1.Result) error {
	ways := 0
	ranged := op.GetPrefix() != "" || op.GetAfter() != "" || op.GetBefore() != ""
	for _, way := range []bool{len(op.GetKeys()) > 0, ranged, op.GetLast() > 0, op.GetAll()} {
		if way {
			ways++
		}
	}
	switch {
	case ways != 1:
		return problem.InvalidArgument("delete", "names keys, or last, or a range (prefix, after, before), or all: one of these")
	case op.GetLimit() > 0 && !ranged && !op.GetAll():
		return problem.InvalidArgument("delete.limit", "is for a range and for all")
	}
	var gone []found
	switch {
	case len(op.GetKeys()) > 0:
		for _, key := range slices.Compact(slices.Sorted(slices.Values(op.GetKeys()))) {
			if e := c.entries.get(op.GetCollection(), key); e != nil {
				gone = append(gone, found{key, e})
			}
		}
	case op.GetLast() > 0:
		var more bool
		if gone, more = c.entries.scan(op.GetCollection(), part{backward: true}, int(op.GetLast())); more && len(gone) < int(op.GetLast()) {
			return tooManyDeleted()
		}
		slices.Reverse(gone)
	default:
		most := int(op.GetLimit())
		if most == 0 {
			most = maxDeleted
		}
		p := part{prefix: op.GetPrefix(), after: op.GetAfter(), before: op.GetBefore()}
		gone, r.More = c.entries.scan(op.GetCollection(), p, most)
		if r.GetMore() && (op.GetLimit() == 0 || len(gone) == 0) {
			return tooManyDeleted()
		}
	}
	if c.deleted += len(gone); c.deleted > 10*maxDeleted {
		return tooManyDeleted()
	}
	for _, f := range gone {
		c.entries.remove(op.GetCollection(), f.key)
		c.touched = true
		if op.GetReturnDeleted() {
			e := shown(op.GetCollection(), f.key, f.entry)
			if !c.room.Fits(sizeOf(f.key, f.entry)) {
				return problem.SizeExceeded("bytes", 0, object.AnswerBytes, "what is to be returned has more than 2 MiB, or more than this change's share of them; delete fewer at a time")
			}
			r.Deleted = append(r.Deleted, e)
		}
	}
	r.DeletedCount = int32(len(gone)) //nolint:gosec // small
	return nil
}

// sizeOf is about what an entry takes in an answer.
func sizeOf(key string, e *storev1.Entry) int {
	const around = 64
	return around + len(key) + len(e.GetJson()) + len(e.GetText()) + 4*len(e.GetData())/3
}

func tooManyDeleted() error {
	return problem.SizeExceeded("entries", 0, maxDeleted, fmt.Sprintf(
		"a change deletes at most %d entries of a range, of 16 MiB together; set limit, and call again while more is set", maxDeleted))
}

func (c *change) expect(i int, op *statev1.Expect) error {
	last, isLast := op.GetExpected().(*statev1.Expect_Last)
	switch {
	case op.GetExpected() == nil:
		return problem.InvalidArgument("expect", "says nothing: set absent, json, json_text, text, data, version or last")
	case op.GetCollection() == "" && op.GetKey() != "":
		return problem.InvalidArgument("expect.collection", "is missing: the key is that of an entry")
	case badEscape(op.GetPath()) != "":
		return problem.InvalidArgument("expect.path", badEscape(op.GetPath()))
	case op.GetCollection() != "" && op.GetPath() != "":
		return problem.InvalidArgument("expect.path", "is of the state, and collection is set")
	case isLast != (op.GetCollection() != "" && op.GetKey() == ""):
		return problem.InvalidArgument("expect", "wants a key, or last without one")
	case isLast:
		return c.expectLast(i, op.GetCollection(), last.Last.GetEntries())
	case op.GetCollection() != "":
		return c.expectEntry(i, op)
	}
	is := c.get(op.GetPath())
	switch want := op.GetExpected().(type) {
	case *statev1.Expect_Absent:
		if want.Absent != (is == nil) {
			return unexpected(i, op.GetPath(), map[bool]string{true: "is there", false: "is not there"}[want.Absent], is)
		}
	case *statev1.Expect_Json, *statev1.Expect_JsonText:
		wanted, err := jsonOf("expect.json_text", op.GetJson(), op.GetJsonText())
		if err != nil {
			return err
		}
		if is == nil || !same(is, wanted) {
			return unexpected(i, op.GetPath(), "is something else", is)
		}
	default:
		return problem.InvalidArgument("expect", "is about the state, which is JSON: set absent, json or json_text")
	}
	return nil
}

func (c *change) expectEntry(i int, op *statev1.Expect) error {
	name := op.GetCollection() + "/" + op.GetKey()
	e := c.entries.get(op.GetCollection(), op.GetKey())
	var actual json.RawMessage
	if e.GetJson() != "" {
		actual = json.RawMessage(e.GetJson())
	}
	ok := false
	switch want := op.GetExpected().(type) {
	case *statev1.Expect_Absent:
		if want.Absent != (e == nil) {
			return unexpected(i, name, map[bool]string{true: "is there", false: "is not there"}[want.Absent], actual)
		}
		return nil
	case *statev1.Expect_Json, *statev1.Expect_JsonText:
		wanted, err := jsonOf("expect.json_text", op.GetJson(), op.GetJsonText())
		if err != nil {
			return err
		}
		ok = actual != nil && same(actual, wanted)
	case *statev1.Expect_Text:
		v, is := e.GetValue().(*storev1.Entry_Text)
		ok = is && v.Text == want.Text
	case *statev1.Expect_Data:
		v, is := e.GetValue().(*storev1.Entry_Data)
		ok = is && bytes.Equal(v.Data, want.Data)
	case *statev1.Expect_Version:
		ok = e != nil && e.GetVersion() == want.Version
	}
	if !ok {
		return unexpected(i, name, "is something else", actual)
	}
	return nil
}

// expectLast compares the last entries with those that are wanted: their values, and their keys where they are given.
func (c *change) expectLast(i int, collection string, want []*statev1.Entry) error {
	last, _ := c.entries.scan(collection, part{backward: true}, max(len(want), 1))
	slices.Reverse(last)
	ok := len(last) == len(want)
	for j := range want {
		if !ok {
			break
		}
		wanted, err := c.written(fmt.Sprintf("expect.last.entries[%d]", j), want[j])
		if err != nil {
			return err
		}
		is := last[j].entry
		switch v := wanted.GetValue().(type) {
		case *storev1.Entry_Json:
			ok = is.GetJson() != "" && same(json.RawMessage(is.GetJson()), json.RawMessage(v.Json))
		case *storev1.Entry_Text:
			text, same := is.GetValue().(*storev1.Entry_Text)
			ok = same && text.Text == v.Text
		case *storev1.Entry_Data:
			data, same := is.GetValue().(*storev1.Entry_Data)
			ok = same && bytes.Equal(data.Data, v.Data)
		}
		ok = ok && (want[j].GetKey() == "" || want[j].GetKey() == last[j].key)
	}
	if !ok {
		return unexpected(i, collection, "ends with other entries", nil)
	}
	return nil
}

// maxLeases bounds the leases of an object.
const maxLeases = 100

func (c *change) lease(op *statev1.TakeLease, r *statev1.Result) error {
	l, token := c.state.GetLeases()[op.GetName()], int64(op.GetFencingToken())
	switch {
	case token == 0 && (op.GetRelease() || op.GetDuration() == nil):
		return problem.InvalidArgument("lease", "wants a duration to take the lease for, or the fencing_token of who has it")
	case op.GetRelease() && op.GetDuration() != nil:
		return problem.InvalidArgument("lease.duration", "is for who keeps the lease")
	case token != 0 && l.GetNumber() != token:
		return problem.New(errorv1.Reason_REASON_FENCED, fmt.Sprintf("lease %s: %d is not its newest fencing token; take it again", op.GetName(), token))
	case op.GetRelease():
		delete(c.state.GetLeases(), op.GetName())
		return nil
	case token == 0 && l != nil && (c.now.Before(l.GetExpireTime().AsTime()) || l.GetNumber() == c.version):
		p := problem.New(errorv1.Reason_REASON_LEASE_HELD, "lease "+op.GetName()+": someone else has it")
		p.Detail = &errorv1.Held{What: "state", ExpireTime: l.GetExpireTime()}
		return p
	case token == 0:
		l = &storev1.Lease{Number: c.version}
	default:
		l = &storev1.Lease{Number: token, Holder: l.GetHolder(), ExpireTime: l.GetExpireTime()}
	}
	if op.GetHolder() != "" {
		l.Holder = op.GetHolder()
	}
	if op.GetDuration() != nil {
		l.ExpireTime = timestamppb.New(c.now.Add(op.GetDuration().AsDuration()))
	}
	if c.state.Leases == nil {
		c.state.Leases = map[string]*storev1.Lease{}
	}
	c.state.Leases[op.GetName()] = l
	if len(c.state.GetLeases()) > maxLeases {
		maps.DeleteFunc(c.state.GetLeases(), func(_ string, l *storev1.Lease) bool { return !c.now.Before(l.GetExpireTime().AsTime()) })
		if len(c.state.GetLeases()) > maxLeases {
			return problem.LimitReached("object", "leases", maxLeases, "an object has at most 100 leases at a time", 0)
		}
	}
	r.Lease = shownLease(l)
	r.Lease.ExpiresIn = durationpb.New(max(0, l.GetExpireTime().AsTime().Sub(c.now)))
	return nil
}

func shownLease(l *storev1.Lease) *typev1.Lease {
	return &typev1.Lease{FencingToken: int32(l.GetNumber()), Holder: l.GetHolder(), ExpireTime: l.GetExpireTime()} //nolint:gosec // a version
}
