package main

import (
	conversationstorev1 "holdfast/gen/holdfast/store/conversation/v1"
	coordinationstorev1 "holdfast/gen/holdfast/store/coordination/v1"
	"holdfast/handlers/conversation"
	"holdfast/handlers/coordination"
	"holdfast/handlers/linear"
	"holdfast/handlers/project"
	"holdfast/handlers/session"
	"holdfast/handlers/state"
	"holdfast/object"
)

// kinds are all that this binary knows.
type kinds struct {
	conversations *object.Kind[*conversationstorev1.ConversationState]
	apis          *object.Kind[*coordinationstorev1.ApiState]
	sessions      session.Kinds
	projects      project.Kinds
	linear        linear.Kinds
	states        state.Kinds
}

// registerKinds makes a runtime know them.
func registerKinds(rt *object.Runtime) kinds {
	return kinds{
		conversations: conversation.Register(rt), apis: coordination.Register(rt), sessions: session.Register(rt),
		projects: project.Register(rt), linear: linear.Register(rt), states: state.Register(rt),
	}
}
