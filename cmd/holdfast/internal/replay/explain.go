package replay

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	livev1 "holdfast/gen/holdfast/live/v1"
	"holdfast/handlers/conversation/voice"
)

// Explain folds a recording here, without a server, and writes what each frame changed and by which rule, and at the end the transcript.
// Frames that change nothing are counted.
func Explain(w io.Writer, frames []Frame) error {
	t := voice.NewTranscript()
	var changes []string
	rules := map[voice.Rule]bool{}
	t.Report = func(e voice.Effect) {
		rules[e.Rule] = true
		changes = append(changes, fmt.Sprintf("    %-60s %s", oneLine(e.String()), e.Rule))
	}
	idle, connection, index := 0, int64(0), int32(0)
	show := func(title string) {
		if len(changes) == 0 {
			idle++
			return
		}
		if idle > 0 {
			fmt.Fprintf(w, "(%d frames that change nothing)\n", idle)
		}
		fmt.Fprintf(w, "%s\n%s\n", title, strings.Join(changes, "\n"))
		idle, changes = 0, nil
	}
	for _, f := range frames {
		at := time.Unix(0, 0).Add(f.At)
		t.Do(at, func(r *voice.Reducer) { r.Silent() })
		if f.Connection != connection {
			t.Connect(at)
			connection, index = f.Connection, 0
		}
		if len(changes) > 0 {
			show(fmt.Sprintf("%.3f s: before connection %d, frame %d", f.At.Seconds(), connection, index+1))
		}
		index++
		if err := t.Fold(at, &livev1.LiveFrame{ClientIndex: index, Frame: &livev1.LiveFrame_Text{Text: f.JSON}}); err != nil {
			return err
		}
		show(fmt.Sprintf("%.3f s: connection %d, frame %d: %s", f.At.Seconds(), connection, index, oneLine(fieldsOf(f.JSON))))
	}
	fmt.Fprintf(w, "\nThe rules:\n")
	for _, rule := range slices.Sorted(maps.Keys(rules)) {
		fmt.Fprintf(w, "    %-24s %s\n", rule, rule.Why())
	}
	fmt.Fprintf(w, "\nThe transcript:\n")
	for _, line := range t.Lines() {
		fmt.Fprintf(w, "    %s\n", oneLine(line))
	}
	return nil
}

// fieldsOf names the fields of a frame, two levels deep. Their values may be secret, and long.
func fieldsOf(frame string) string {
	var fields map[string]json.RawMessage
	if json.Unmarshal([]byte(frame), &fields) != nil {
		return "not one object"
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		var below map[string]json.RawMessage
		if json.Unmarshal(fields[name], &below) != nil || len(below) == 0 {
			names = append(names, name)
			continue
		}
		for _, b := range slices.Sorted(maps.Keys(below)) {
			names = append(names, name+"."+b)
		}
	}
	return strings.Join(names, ", ")
}
