package coordination

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	storev1 "holdfast/gen/holdfast/store/coordination/v1"
)

// readyMade are the configs of the APIs that are there without being configured, or nil. The numbers are those that the
// providers document, and providers change them: UpdateApi replaces them.
func readyMade(api string) *storev1.ApiConfig {
	switch api {
	case "codegen":
		return codegenConfig()
	case "linear":
		return linearConfig()
	case "gemini":
		return geminiConfig()
	}
	return nil
}

// codegenConfig has the limits of Codegen's API reference: creating a run 10 a minute, most others 60 in 30 s, logs 60 a
// minute, editing a pull request 30, and what sets up or analyses 5. It says nothing about bursts, so any period counts.
// Its answers tell nothing of limits, so nothing corrects a mistake here: hence the margins.
func codegenConfig() *storev1.ApiConfig {
	sliding := func(name string, limit int64, period time.Duration, operations ...string) *storev1.Policy {
		return &storev1.Policy{
			Name: name, Algorithm: storev1.Algorithm_ALGORITHM_SLIDING, Limit: limit, Period: durationpb.New(period),
			Operations: operations, Margin: durationpb.New(2 * time.Second),
		}
	}
	return &storev1.ApiConfig{Policies: []*storev1.Policy{
		sliding("create-run", 10, time.Minute, "create_run", "resume_run"),
		sliding("read", 60, 30*time.Second, "get_run", "list_runs", "read"),
		sliding("logs", 60, time.Minute, "run_logs"),
		sliding("edit-pr", 30, time.Minute, "edit_pr"),
		sliding("setup", 5, time.Minute, "setup_commands", "analyze_logs"),
	}}
}

// linearConfig has the limits of an API key in Linear's documentation: a leaky bucket of 2,500 requests and one of
// 3,000,000 points of complexity an hour. (An OAuth app has 5,000 and 2,000,000.)
func linearConfig() *storev1.ApiConfig {
	return &storev1.ApiConfig{Policies: []*storev1.Policy{
		{
			Name: "requests", Algorithm: storev1.Algorithm_ALGORITHM_GCRA, Limit: 2500, Period: durationpb.New(time.Hour),
			Dimension: "requests",
		},
		{
			Name: "complexity", Algorithm: storev1.Algorithm_ALGORITHM_GCRA, Limit: 3_000_000, Period: durationpb.New(time.Hour),
			Unit: storev1.Unit_UNIT_COST, Dimension: "complexity",
		},
	}}
}

// geminiConfig has the limits of a first paid tier, per project: requests and input tokens a minute, requests a day until
// midnight Pacific, and the 1,000 live sessions at once of Vertex. A live session is the operation live.
func geminiConfig() *storev1.ApiConfig {
	const pacific = "America/Los_Angeles"
	return &storev1.ApiConfig{
		Policies: []*storev1.Policy{
			{
				Name: "requests-minute", Algorithm: storev1.Algorithm_ALGORITHM_SLIDING, Limit: 150, Period: durationpb.New(time.Minute),
				Dimension: "requests",
			},
			{
				Name: "tokens-minute", Algorithm: storev1.Algorithm_ALGORITHM_SLIDING, Limit: 2_000_000, Period: durationpb.New(time.Minute),
				Unit: storev1.Unit_UNIT_COST, Dimension: "tokens",
			},
			{
				Name: "requests-day", Algorithm: storev1.Algorithm_ALGORITHM_CALENDAR, Limit: 10_000,
				Calendar: storev1.Calendar_CALENDAR_DAY, TimeZone: pacific, Dimension: "requests-day",
			},
			{
				Name: "live-sessions", Algorithm: storev1.Algorithm_ALGORITHM_CONCURRENCY, Limit: 1000,
				Lease: durationpb.New(15 * time.Minute), Operations: []string{"live"},
			},
		},
		TimeZone: pacific,
	}
}

// configOf is what is in force for an API: what a service configured, or else what is ready-made, or else nothing but
// the defaults.
func configOf(api string, s *storev1.ApiState) *storev1.ApiConfig {
	if s.GetConfig() != nil {
		return s.GetConfig()
	}
	if c := readyMade(api); c != nil {
		return c
	}
	return &storev1.ApiConfig{}
}
