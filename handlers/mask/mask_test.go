package mask_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	projectv1 "holdfast/gen/holdfast/project/v1"
	"holdfast/handlers/mask"
)

func project(t *testing.T, text string) *projectv1.Project {
	t.Helper()
	p := &projectv1.Project{}
	if err := protojson.Unmarshal([]byte(text), p); err != nil {
		t.Fatal(err)
	}
	return p
}

var mutable = []string{"title", "description", "repository", "labels", "settings"} //nolint:gochecknoglobals // never changed

func TestMerge(t *testing.T) {
	t.Parallel()
	const was = `{"projectId": "p", "title": "a", "description": "b", "repository": {"url": "u", "defaultBranch": "main"},
		"labels": {"team": "core", "a.b": "1"}, "settings": {"x": {"y": 1, "z": 2}, "n": null, "l": [1]}}`
	for name, tt := range map[string]struct{ src, paths, want string }{
		"what is set is set":         {`{"title": "c"}`, "", `{"title": "c"}`},
		"nothing":                    {`{}`, "", `{}`},
		"what is not mutable":        {`{"projectId": "q", "title": "c"}`, "", `{"title": "c"}`},
		"labels merge":               {`{"labels": {"new": "2", "team": ""}}`, "", `{"labels": {"a.b": "1", "new": "2"}}`},
		"a Struct merges, in depth":  {`{"settings": {"x": {"y": null, "w": {"v": 3}}, "l": [2]}}`, "", `{"settings": {"x": {"z": 2, "w": {"v": 3}}, "n": null, "l": [2]}}`},
		"a value becomes a Struct":   {`{"settings": {"l": {"a": 1, "b": null}}}`, "", `{"settings": {"x": {"y": 1, "z": 2}, "n": null, "l": {"a": 1}}}`},
		"a message merges":           {`{"repository": {"url": "v"}}`, "", `{"repository": {"url": "v", "defaultBranch": "main"}}`},
		"a mask sets":                {`{"title": "c", "description": "d"}`, "title", `{"title": "c"}`},
		"a mask clears":              {`{"description": "d"}`, "title", `{"title": ""}`},
		"a mask replaces labels":     {`{"labels": {"new": "2"}}`, "labels", `{"labels": {"new": "2"}}`},
		"a mask clears labels":       {`{}`, "labels", `{"labels": {}}`},
		"a label is set":             {`{"labels": {"team": "web", "new": "2"}}`, "labels.team", `{"labels": {"team": "web", "a.b": "1"}}`},
		"a label with a dot is gone": {`{}`, "labels.a.b", `{"labels": {"team": "core"}}`},
		"a label that is not there":  {`{}`, "labels.no", `{}`},
		"a mask replaces a Struct":   {`{"settings": {"x": null}}`, "settings", `{"settings": {"x": null}}`},
		"a setting is set":           {`{"settings": {"x": {"y": 9, "q": 1}}}`, "settings.x.y", `{"settings": {"x": {"y": 9, "z": 2}, "n": null, "l": [1]}}`},
		"a setting is null":          {`{"settings": {"x": null}}`, "settings.x", `{"settings": {"x": null, "n": null, "l": [1]}}`},
		"a setting is gone":          {`{}`, "settings.x.y", `{"settings": {"x": {"z": 2}, "n": null, "l": [1]}}`},
		"a setting that is not":      {`{}`, "settings.q.r", `{}`},
		"a setting under a new one":  {`{"settings": {"q": {"r": 1}}}`, "settings.q.r", `{"settings": {"x": {"y": 1, "z": 2}, "n": null, "l": [1], "q": {"r": 1}}}`},
		"a field of a message":       {`{"repository": {"url": "v"}}`, "repository.default_branch", `{"repository": {"url": "u"}}`},
		"JSON names":                 {`{"repository": {"defaultBranch": "x"}}`, "repository.defaultBranch", `{"repository": {"url": "u", "defaultBranch": "x"}}`},
		"several":                    {`{"title": "c", "labels": {"team": "x"}}`, "title,description,labels.team", `{"title": "c", "description": "", "labels": {"team": "x", "a.b": "1"}}`},
		"all":                        {`{"title": "c", "projectId": "q"}`, "*", `{"title": "c", "description": "", "repository": null, "labels": {}, "settings": null}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &fieldmaskpb.FieldMask{}
			if tt.paths != "" {
				m.Paths = strings.Split(tt.paths, ",")
			}
			src := project(t, tt.src)
			dst, sent := project(t, was), proto.Clone(src)
			if err := mask.Merge(dst, src, m, mutable...); err != nil {
				t.Fatal(err)
			}
			// What the wanted text names differs from what was, and nothing else does.
			want := project(t, was)
			named := project(t, tt.want)
			for _, f := range mutable {
				fd := want.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(f))
				if strings.Contains(tt.want, `"`+f+`"`) {
					want.ProtoReflect().Clear(fd)
					if named.ProtoReflect().Has(fd) {
						want.ProtoReflect().Set(fd, named.ProtoReflect().Get(fd))
					}
				}
			}
			if !proto.Equal(dst, want) {
				t.Errorf("got  %v\nwant %v", dst, want)
			}
			if !proto.Equal(src, sent) {
				t.Errorf("the request became %v", src)
			}
		})
	}
}

func TestMergeRefusesPathsThatAreNotThere(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"", "no", "project_id", "title.x", "labels.", "settings.", "repository.no", "repository.url.x", ".title", "**", "Title"} {
		dst := project(t, `{"title": "a"}`)
		err := mask.Merge(dst, project(t, `{"title": "b"}`), &fieldmaskpb.FieldMask{Paths: []string{"title", path}}, mutable...)
		if err == nil || !strings.Contains(err.Error(), "update_mask") {
			t.Errorf("%q: %v", path, err)
		}
		if dst.GetTitle() != "a" {
			t.Errorf("%q changed %v", path, dst)
		}
	}
}
