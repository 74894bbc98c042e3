package object_test

import (
	"reflect"
	"testing"
	"time"

	"holdfast/object"
	"holdfast/object/objecttest"
)

// All times that the runtime gives are in UTC, whatever the zones of the machine and of the database.
func TestTimesAreInUTC(t *testing.T) {
	t.Parallel()
	b := setup(t)
	config := toyConfig()
	config.Name, config.OnTimer = "timed", func(*object.Tx[toy], string) error { return nil }
	kind := object.Register(b.rt, config)
	var check func(what string, v reflect.Value)
	check = func(what string, v reflect.Value) {
		switch {
		case v.Type() == reflect.TypeFor[time.Time]():
			if at, _ := reflect.TypeAssert[time.Time](v); at.Location() != time.UTC {
				t.Errorf("%s is %v", what, at)
			}
		case v.Kind() == reflect.Slice:
			for i := range v.Len() {
				check(what, v.Index(i))
			}
		case v.Kind() == reflect.Struct:
			for i := range v.NumField() {
				if f := v.Type().Field(i); f.IsExported() && f.Name != "State" {
					check(what+"."+f.Name, v.Field(i))
				}
			}
		}
	}
	for _, path := range []string{"created", "fast", "sure"} {
		if path == "sure" {
			b.rt.Forget(b.Tenant, "timed", "x")
		}
		snap, err := kind.Update(b.ctx, "x", func(tx *object.Tx[toy]) error {
			check(path+": now", reflect.ValueOf(tx.Now()))
			check(path+": info", reflect.ValueOf(tx.Info()))
			tx.State().Name += "+"
			tx.SetTimer("t", tx.Now().Add(time.Hour).In(time.Local)) //nolint:gosmopolitan // that is what it is about
			at, _ := tx.Timer("t")
			check(path+": timer", reflect.ValueOf(at))
			return nil
		}, object.Upsert())
		if err != nil {
			t.Fatal(err)
		}
		check(path, reflect.ValueOf(snap))
	}
	b.rt.Forget(b.Tenant, "timed", "x")
	see := func(what string, v any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(what, err)
		}
		check(what, reflect.ValueOf(v))
	}
	snap, err := kind.View(b.ctx, "x")
	see("view", snap, err)
	page, err := kind.List(b.ctx, object.ListOptions{})
	see("list", page, err)
	entries, err := kind.Entries(b.ctx, "x", toyEntries, object.EntriesOptions{})
	see("entries", entries, err)
	past, err := objecttest.ViewAt(b.ctx, kind, "x", object.Moment{Version: 1})
	see("past", past, err)
	history, err := kind.History(b.ctx, "x", 0, 10)
	see("history", history, err)
	check("clock", reflect.ValueOf(kind.Now()))
}
