// Command errorsdoc writes docs/errors.md from the enum holdfast.error.v1.Reason. It reads what `buf build -o -` writes, which has the
// comments.
package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	errorv1 "holdfast/gen/holdfast/error/v1"
	"holdfast/handlers/problem"
)

const head = `# Errors

Generated from [proto/holdfast/error/v1/error.proto](../proto/holdfast/error/v1/error.proto) by ` + "`make generate`" + `; do not edit.

Every error of every RPC has a ` + "`holdfast.error.v1.Problem`" + ` as the first of its details. Connect's JSON has it in clear as
` + "`details[0].debug`" + `, so that a browser needs no protobuf; ErrorInfo, BadRequest and RetryInfo of google.rpc follow it, for tools that
know those.

` + "```json" + `
{
  "code": "aborted",
  "message": "conversation/c1 is at version 9, not 8; read it again and decide again",
  "details": [{
    "type": "holdfast.error.v1.Problem",
    "value": "…",
    "debug": {"reason": "VERSION_MISMATCH", "retry": "RETRY_REREAD",
      "mismatch": {"currentVersion": "9", "exists": true, "object": "conversation/c1"}}
  }]
}
` + "```" + `

Programs go by ` + "`reason`" + `, and where they do not know it, by ` + "`retry`" + `. An error without a Problem is not Holdfast's: a proxy's, or
HTTP that is no request at all (such as headers of more than 16 KiB). Go by its code or status. Webhooks are answered in plain text.

`

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "errorsdoc:", err)
		os.Exit(1)
	}
}

func run(image io.Reader, out io.Writer) error {
	b, err := io.ReadAll(image)
	if err != nil {
		return fmt.Errorf("read the image: %w", err)
	}
	files := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(b, files); err != nil {
		return fmt.Errorf("the image: %w", err)
	}
	reasons, retries := errorv1.Reason(0).Descriptor(), errorv1.Retry(0).Descriptor()
	said := map[string]string{} // by "enum index, value index"
	for _, f := range files.GetFile() {
		if f.GetName() != reasons.ParentFile().Path() {
			continue
		}
		for _, l := range f.GetSourceCodeInfo().GetLocation() {
			said[fmt.Sprint(l.GetPath())] = strings.Join(strings.Fields(l.GetLeadingComments()), " ")
		}
	}
	comment := func(enum, value int) (string, error) { // 5 is the number of enum_type, 2 that of value
		if text := said[fmt.Sprint([]int{5, enum, 2, value})]; text != "" {
			return text, nil
		}
		return "", fmt.Errorf("value %d of enum %d has no comment", value, enum)
	}
	var text strings.Builder
	text.WriteString(head + "## Retry\n\n| retry | what a client may do |\n|---|---|\n")
	for i := 1; i < retries.Values().Len(); i++ {
		what, err := comment(retries.Index(), i)
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "| %s | %s |\n", strings.TrimPrefix(string(retries.Values().Get(i).Name()), "RETRY_"), what)
	}
	text.WriteString("\n## Reasons\n\n| reason | code | retry | what happened, and what to do |\n|---|---|---|---|\n")
	for i := 1; i < reasons.Values().Len(); i++ {
		what, err := comment(reasons.Index(), i)
		if err != nil {
			return err
		}
		e := problem.New(errorv1.Reason(reasons.Values().Get(i).Number()), "")
		fmt.Fprintf(&text, "| `%s` | %v | %s | %s |\n", problem.Name(e.Reason), e.Code(),
			strings.TrimPrefix(e.Retry().String(), "RETRY_"), strings.ReplaceAll(what, "|", `\|`))
	}
	_, err = io.WriteString(out, text.String())
	return err //nolint:wrapcheck // main says enough
}
