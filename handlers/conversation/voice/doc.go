// Package voice is the reducer of spoken conversations: the frames of the Live API in, a transcript out. It knows nothing of how a
// conversation is stored.
//
//	gemini.Message ──▶ Reducer ──▶ Effects: messages (an utterance of the user, an answer of the model) and tool calls
//	   a frame, read      │
//	                      ├──▶ the conversation's state: what is open, where things stand, what may still come
//	                      └──▶ Effect by Effect, if somebody asks: what each frame did, and by which Rule
//
// Who may send frames, and what a connection resumes with, is decided outside (handlers/conversation). The same frames in one batch or
// in many lead to the same state and transcript, and a batch that comes twice changes nothing. The Live API promises no order between a
// transcription and the rest, so the rules below say which words belong together, by what the API tells, and where it tells nothing, by
// a guess. Each rule is a Rule of explain.go, and has an example in testdata/rules.
//
// # A turn
//
//	          words, or speech starts              the model's first output
//	(nothing) ───────────────────────▶ user_turn ─────────────────────────▶ user_turn + assistant_turn
//	    ▲                                  │                                    │            │
//	    │           generationComplete,    │                  generationComplete│            │ interrupted, or
//	    │           without an answer;     │                                    ▼            │ speech starts
//	    ├── silence; speech starts again ◀─┘                     generated: COMPLETE, open   ▼
//	    │                                                                       │       user_turn ends,
//	    ├── turnComplete; words or speech of the user; output again; silence ◀──┘       the next words are
//	    │                                                                               a new one
//	    └── turnComplete; output again after words of the user; the connection's end ◀──────┘
//
// The connection's end and silence end all of it, except an utterance at a connection's end: it may go on in the next. A pending tool
// call keeps a turn open in silence, and after generationComplete.
//
// Words of the user after generationComplete are another utterance where the one before is a whole sentence. Otherwise they may be its
// end, transcribed late: they join it, and are parted from it again if the model begins another answer before a turnComplete.
//
// A turnComplete of a turn that has ended before is not taken for that of the next: if the model has not begun again, or if the turn
// was interrupted, which always gets one, and the next is not generated yet.
//
// What the last answer still gets (last_answer), until the model begins the next or another connection does: words, where audio came
// for the answer and none has come since; the provider's count; the reason of its end; what it rests on. A turn that ends without words
// and for a reason is a message without text.
//
// # The order
//
// The seq of a message is its place in what was said (docs/adr/0010-seq-is-the-order.md). A turn gets its place before its words come,
// where something else is about to be placed behind it (place.go):
//   - a question, when its answer or its call is placed, and speech was heard to start, or audio comes for the answer, and the provider
//     transcribes the user, or has not shown yet whether it does;
//   - an answer whose audio was sent, when the user speaks over it.
//
// Without these signs the first words of a question take the place of the answer that is being given, which moves one on (goFirst).
// A tool call has the place behind the newest message when it is issued. What is said after its result is a message of its own; what is
// said before that goes on with the message before the call, even in the middle of a word.
//
// # Limits
//
// What is guessed wrong: a user who speaks over a model, where neither speech nor an interruption is told, is taken for its late
// question. A question that is transcribed after the turnComplete of its answer, where speech is not told, is taken for the next one.
// A model that speaks twice without anyone having spoken, with audio for the first answer only, is taken for one answer.
// For repetitions see retelling.go.
package voice
