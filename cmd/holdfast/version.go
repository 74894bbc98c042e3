package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by -ldflags "-X main.version=v1.2.3".
var version string

// versionCmd is `holdfast version`.
type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(w *console) error {
	_, err := fmt.Fprintf(w.stdout, "holdfast %s, %s, %s/%s\n", buildVersion(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// buildVersion is the release's version or else the commit's.
func buildVersion() string {
	if version != "" {
		return version
	}
	commit, changed := "unknown", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				commit = s.Value[:min(12, len(s.Value))]
			case s.Key == "vcs.modified" && s.Value == "true":
				changed = " with changes"
			}
		}
	}
	return "commit " + commit + changed
}
