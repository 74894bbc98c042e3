package handlers_test

const (
	liveRPCs  = "/holdfast.live.v1.LiveService/"
	isTheirs  = "failed_precondition LEASE_HELD" // the tenant's service is connected
	liveFrame = `{"clientIndex":9,"text":"{\"serverContent\":{\"inputTranscription\":{\"text\":\"mine\"}}}"}`
)

var liveArea = area{
	fill: fillConversation,
	fuzzing: fuzzing{
		needy: []string{"ClaimToolCall", "CompleteToolCall"},
		seed: [][2]string{
			{conversationRPCs + "CreateConversation", `{"conversationId":"c1"}`}, {"ConnectLive", `{"conversationId":"c1"}`},
		},
		reads: map[string][2]string{"": {conversationRPCs + "GetConversation", `{"conversationId":"c1","messageLimit":9}`}},
		full: map[string]string{
			"ConnectLive": `{"requestId":"r-2","ifVersion":"2","conversationId":"c1","device":{"name":"d","platform":"p","userAgent":"u","address":"a"},"provider":"LIVE_PROVIDER_VERTEX_AI",
				"setupHash":"h","takeOver":true,"previous":{"fencingToken":1,"frames":[{"clientIndex":1,"text":"{}"}],"closeCode":1006,"handleRefused":true,"playedMs":5},
				"seedBudgetTokens":300,"seedEndsWithUser":true,"options":{"keepFramesFor":"60s","silence":"2s","leaveToolCalls":true,"toolLease":"5s"}}`,
			"IngestLive": `{"conversationId":"c1","fencingToken":1,"playedMs":7,"frames":[{"clientIndex":1,"text":"{}"},{"clientIndex":2,"binary":"e30"},
				{"clientIndex":3,"object":{"toolCall":{"functionCalls":[{"id":"a","name":"n","args":{"b":1}}]},"serverContent":{"outputTranscription":{"text":"t"}},"usageMetadata":{"totalTokenCount":5}}}]}`,
			"DisconnectLive":   `{"requestId":"r-2","ifVersion":"2","conversationId":"c1","fencingToken":1,"frames":[{"clientIndex":1,"text":"{}"}],"closeCode":1006,"playedMs":7}`,
			"ClaimToolCall":    `{"requestId":"r-2","ifVersion":"2","conversationId":"c1","seq":1,"worker":"w","leaseDuration":"2s","fencingToken":1}`,
			"CompleteToolCall": `{"requestId":"r-2","ifVersion":"2","conversationId":"c1","seq":1,"fencingToken":1,"response":{"a":[1]},"isError":true,"willContinue":true,"scheduling":"SILENT"}`,
			"ListLiveFrames":   `{"pageSize":1,"pageToken":"","conversationId":"c1"}`,
		},
	},
	cases: map[string]isolationCase{
		liveRPCs + "ConnectLive":      {body: `{"conversationId":"c1","takeOver":true}`, tenants: isTheirs},
		liveRPCs + "IngestLive":       {body: `{"conversationId":"c1","fencingToken":2,"frames":[` + liveFrame + `]}`, tenants: isTheirs},
		liveRPCs + "DisconnectLive":   {body: `{"conversationId":"c1","fencingToken":2}`, tenants: isTheirs},
		liveRPCs + "ClaimToolCall":    {body: `{"conversationId":"c1","seq":2,"worker":"mine"}`},
		liveRPCs + "CompleteToolCall": {body: `{"conversationId":"c1","seq":1,"fencingToken":1,"response":{}}`},
		liveRPCs + "ListLiveFrames":   {body: `{"conversationId":"c1"}`, reads: true, tenants: isEmpty},
	},
}
