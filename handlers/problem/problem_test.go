package problem_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/handlers/problem"
)

// A reason is one that the server gives, and that docs/errors.md explains.
func TestEveryReasonIsUsedAndDocumented(t *testing.T) {
	t.Parallel()
	var code strings.Builder
	if err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		code.Write(text)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	docs, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	for number, name := range errorv1.Reason_name {
		r := errorv1.Reason(number)
		if r == errorv1.Reason_REASON_UNSPECIFIED {
			continue
		}
		if !regexp.MustCompile(`errorv1\.Reason_` + name + `\b`).MatchString(code.String()) {
			t.Errorf("no error has the reason %s", name)
		}
		if !strings.Contains(string(docs), "| `"+problem.Name(r)+"` | "+problem.New(r, "").Code().String()+" |") {
			t.Errorf("docs/errors.md does not have %s; run make generate", name)
		}
	}
}

func TestEveryReasonHasACodeAndARetryClass(t *testing.T) {
	t.Parallel()
	for number, name := range errorv1.Reason_name {
		options, _ := errorv1.Reason(number).Descriptor().Values().ByNumber(errorv1.Reason(number).Number()).Options().(*descriptorpb.EnumValueOptions)
		rule, _ := proto.GetExtension(options, errorv1.E_Rule).(*errorv1.Rule)
		var code connect.Code
		if err := code.UnmarshalText([]byte(rule.GetCode())); number != 0 && (err != nil || code.String() != rule.GetCode() || rule.GetRetry() == 0) {
			t.Errorf("%s: %v, %v", name, rule, err)
		}
		if got := problem.New(errorv1.Reason(number), ""); number != 0 && (got.Code() != code || got.Retry() != rule.GetRetry()) {
			t.Errorf("%s is %v, %v", name, got.Code(), got.Retry())
		}
	}
}
