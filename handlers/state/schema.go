package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
	"google.golang.org/protobuf/types/known/structpb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	storev1 "holdfast/gen/holdfast/store/state/v1"
	"holdfast/handlers/problem"
)

// declared is a type's declaration, compiled.
type declared struct {
	*storev1.TypeState

	state       *jsonschema.Schema
	collections map[string]*jsonschema.Schema
	migrations  []jsonpatch.Patch
}

const (
	// maxCost bounds how often a schema applies its parts to one value, by way of references. It decides how long a check takes.
	maxCost = 10_000
	// maxWrong bounds the places that a refusal names.
	maxWrong = 5
)

// declare compiles what is declared.
func declare(s *storev1.TypeState) (*declared, error) {
	var err error
	d := &declared{TypeState: s, collections: map[string]*jsonschema.Schema{}}
	if s.GetStateSchema() != nil {
		if d.state, err = compile(s.GetStateSchema()); err != nil {
			return nil, problem.InvalidArgument("type.state_schema", err.Error())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.GetCollectionSchemas())) {
		if d.collections[name], err = compile(s.GetCollectionSchemas()[name]); err != nil {
			return nil, problem.InvalidArgument("type.collection_schemas["+name+"]", err.Error())
		}
	}
	for i, migration := range s.GetMigrations() {
		patch, j, err := patchOf(migration)
		if err != nil {
			return nil, problem.InvalidArgument(fmt.Sprintf("type.migrations[%d].patch[%d]", i, j), err.Error())
		}
		d.migrations = append(d.migrations, patch)
	}
	return d, nil
}

// patchOf is a migration that can be applied, or the number of the operation that is none.
func patchOf(m *storev1.Migration) (out jsonpatch.Patch, i int, err error) {
	for i, operation := range m.GetPatch() {
		text, err := textOf(structpb.NewStructValue(operation))
		if err != nil {
			return nil, i, err
		}
		one, err := jsonpatch.DecodePatch(slices.Concat([]byte("["), text, []byte("]")))
		if err != nil {
			return nil, i, fmt.Errorf("is no operation of a JSON Patch: %w", err)
		}
		out = append(out, one...)
	}
	return out, 0, nil
}

// migrate makes a state what its type's migrations make of it, once each. One that does not apply to it leaves it as it is.
func (d *declared) migrate(s state) {
	for s.GetMigrated() < d.newest() {
		patch := d.migrations[s.GetMigrated()]
		s.Migrated++
		if text, err := patch.ApplyWithOptions(whole(s), &jsonpatch.ApplyOptions{AccumulatedCopySizeLimit: maxState}); err == nil && len(text) <= maxState {
			_ = setWhole(s, text) // where it is no object any more, it stays
		}
	}
}

// newest is how many migrations a new state counts as having had.
func (d *declared) newest() int32 { return int32(len(d.migrations)) } //nolint:gosec // few

// compile makes a schema that reaches nothing but itself and the drafts, which the library has.
func compile(schema *structpb.Struct) (*jsonschema.Schema, error) {
	const url = "holdfast:schema"
	c := jsonschema.NewCompiler()
	c.UseLoader(jsonschema.SchemeURLLoader{})
	if err := c.AddResource(url, schema.AsMap()); err != nil {
		return nil, wrongSchema(err)
	}
	out, err := c.Compile(url)
	if err != nil {
		return nil, wrongSchema(err)
	}
	cost, err := costs{}.of(out, maxNesting)
	if err == nil && cost > maxCost {
		err = fmt.Errorf("applies its parts more than %d times to one value, by allOf, anyOf, oneOf, $ref and the like", maxCost)
	}
	return out, err
}

func wrongSchema(err error) error {
	if invalid, ok := errors.AsType[*jsonschema.SchemaValidationError](err); ok {
		err = invalid.Err
	}
	if wrong, ok := errors.AsType[*jsonschema.ValidationError](err); ok {
		leaf := leaves(wrong, nil)[0]
		return fmt.Errorf("is no JSON Schema: %s: %s", pointer(leaf.InstanceLocation), inWords(leaf))
	}
	return fmt.Errorf("is no JSON Schema that can be used here: %w", err)
}

// costs are what schemas cost at most for one value, by how deep it may yet nest.
type costs map[*jsonschema.Schema]*[maxNesting + 1]float64

// pending marks a cost that is being computed: who meets it has come back without having gone deeper.
const pending = -1

func (c costs) of(s *jsonschema.Schema, depth int) (float64, error) {
	switch {
	case s == nil:
		return 0, nil
	case s.DynamicRef != nil || s.RecursiveRef != nil:
		return 0, errors.New("has a $dynamicRef or a $recursiveRef, which are not supported")
	case c[s] == nil:
		c[s] = &[maxNesting + 1]float64{}
	case c[s][depth] == pending:
		return 0, errors.New("has a $ref that leads back to itself")
	case c[s][depth] != 0:
		return c[s][depth], nil
	}
	c[s][depth] = pending
	total, widest := 1.0, 0.0
	var failed error
	add := func(to *float64, s *jsonschema.Schema, depth int) {
		cost, err := c.of(s, depth)
		*to, failed = *to+cost, errors.Join(failed, err)
	}
	// All of these apply to the value itself.
	for _, in := range slices.Concat([]*jsonschema.Schema{s.Ref, s.Not, s.If, s.Then, s.Else}, s.AllOf, s.AnyOf, s.OneOf, slices.Collect(maps.Values(s.DependentSchemas))) {
		add(&total, in, depth)
	}
	for _, in := range s.Dependencies {
		if in, ok := in.(*jsonschema.Schema); ok {
			add(&total, in, depth)
		}
	}
	if depth > 0 {
		// A member or an element meets one of these, ...
		one := slices.Concat(slices.Collect(maps.Values(s.Properties)), s.PrefixItems)
		all := append(slices.Collect(maps.Values(s.PatternProperties)), s.PropertyNames, s.UnevaluatedProperties, s.Contains, s.UnevaluatedItems, s.Items2020)
		for _, in := range []any{s.AdditionalProperties, s.Items, s.AdditionalItems} {
			switch in := in.(type) {
			case *jsonschema.Schema:
				all = append(all, in)
			case []*jsonschema.Schema:
				one = append(one, in...)
			}
		}
		for _, in := range one {
			cost := 0.0
			add(&cost, in, depth-1)
			widest = max(widest, cost)
		}
		// ... and perhaps all of these.
		for _, in := range all {
			add(&total, in, depth-1)
		}
	}
	c[s][depth] = total + widest
	return c[s][depth], failed
}

// checkState refuses a state that is not as its type is declared.
func (d *declared) checkState(s state) error {
	if d == nil || d.state == nil {
		return nil
	}
	return check(d.state, "state", whole(s))
}

// checkEntry refuses an entry that is not as its type is declared.
func (d *declared) checkEntry(collection, key string, e *storev1.Entry) error {
	if d == nil || d.collections[collection] == nil {
		return nil
	}
	where := "entries/" + collection + "/" + key
	if e.GetJson() == "" {
		return problem.InvalidArgument(where, "is no JSON, which the collection has as its type is declared")
	}
	return check(d.collections[collection], where, json.RawMessage(e.GetJson()))
}

func check(schema *jsonschema.Schema, where string, value json.RawMessage) error {
	v := decoded(value)
	if number := endless(v); number != "" {
		return problem.InvalidArgument(where, fmt.Sprintf("has a number of more than %d digits, which no schema can check: %.50s", maxDigits, number))
	}
	wrong, ok := errors.AsType[*jsonschema.ValidationError](schema.Validate(v))
	if !ok {
		return nil
	}
	var fields []*errorv1.Violation
	for _, leaf := range leaves(wrong, nil) {
		fields = append(fields, &errorv1.Violation{Field: where + pointer(leaf.InstanceLocation), Description: inWords(leaf)})
	}
	return problem.InvalidFields(fields...)
}

// leaves are the first places at which a value is wrong.
func leaves(e *jsonschema.ValidationError, out []*jsonschema.ValidationError) []*jsonschema.ValidationError {
	if len(e.Causes) == 0 && len(out) < maxWrong {
		return append(out, e)
	}
	for _, cause := range e.Causes {
		out = leaves(cause, out)
	}
	return out
}

// inWords is what is wrong, in words.
func inWords(e *jsonschema.ValidationError) string {
	const longest = 300
	text := e.ErrorKind.LocalizedString(message.NewPrinter(language.English))
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + "…"
	}
	return text
}

// pointer is a JSON Pointer.
func pointer(steps []string) string {
	var b strings.Builder
	for _, step := range steps {
		b.WriteString("/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(step))
	}
	return b.String()
}

// endless is a number that takes more memory to compare than its text has, or nothing.
func endless(v any) string {
	switch v := v.(type) {
	case json.Number:
		if _, ok := decimalOf(string(v)); !ok {
			return string(v)
		}
	case []any:
		for _, element := range v {
			if n := endless(element); n != "" {
				return n
			}
		}
	case map[string]any:
		for _, member := range v {
			if n := endless(member); n != "" {
				return n
			}
		}
	}
	return ""
}
