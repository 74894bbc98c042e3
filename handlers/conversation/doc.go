// Package conversation is the ConversationManager: the rules of conversations, and the RPCs that apply them. The rules
// are plain functions over a conversation's state; the object runtime makes what they come to durable.
//
// What is said by voice comes as frames of the Live API. Package gemini reads them, package voice makes a transcript of them, and this
// package decides who may send them (fence.go), what a connection begins with (live_session.go), and stores what they lead to
// (live_service.go).
package conversation
