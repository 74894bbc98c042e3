package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/prometheus/client_golang/prometheus"
)

// version and commit are set by -ldflags "-X main.version=v1.2.3 -X main.commit=…", where the build does not see the
// repository.
//
//nolint:gochecknoglobals // only the linker sets them
var version, commit string

// versionCmd is `holdfast version`.
type versionCmd struct{}

// Run prints the version.
func (versionCmd) Run(w *console) error {
	_, err := fmt.Fprintln(w.stdout, versionLine())
	return err
}

// versionLine is the output of `version` and --version.
func versionLine() string {
	return fmt.Sprintf("holdfast %s, %s, %s/%s", readBuild(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// build says what was built.
type build struct {
	version string // of the release; "" for none
	commit  string // "unknown" where the build did not see the repository, such as with `go run`
}

// readBuild returns what the linker was told, or else what Go found in the repository.
func readBuild() build {
	b := build{version: version, commit: commit}
	if b.commit != "" {
		return b
	}
	b.commit = "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			b.commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true": // comes after the revision
			b.commit += " with changes"
		}
	}
	return b
}

// String is the release's version, if it has one, and the commit.
func (b build) String() string {
	if b.version == "" {
		return "commit " + b.commit
	}
	return b.version + ", commit " + b.commit
}

// metric is the constant 1, whose labels say what runs.
func (b build) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "holdfast_build_info", Help: "The constant 1; its labels say what was built.",
		ConstLabels: prometheus.Labels{"version": b.version, "commit": b.commit, "go": runtime.Version()},
	}, func() float64 { return 1 })
}
