package gemini

import (
	"bytes"
	"strings"
)

// The Live API takes and sends proto JSON, in which a field has two names: clientContent and client_content. Go's decoder knows one of
// them, and does not say which fields it left out. One pass over the keys of a frame turns the second name into the first, and finds
// the fields that are not known. What is below `*` is the user's or the model's own, such as arguments, and stays as it is. What is
// below `~` is kept whole, so any field is known there.

// knownFields are the fields of the Live API that have a meaning here, or are known to have none.
var knownFields = parseFields(`
setup{model generationConfig~ systemInstruction* tools* realtimeInputConfig* sessionResumption{handle transparent} contextWindowCompression*
 inputAudioTranscription* outputAudioTranscription* proactivity* explicitVadSignal avatarConfig* safetySettings* historyConfig* labels* translationConfig~}
clientContent{turns{role parts{&part}} turnComplete}
realtimeInput{audio* video* text audioStreamEnd activityStart{} activityEnd{} mediaChunks*}
toolResponse{functionResponses{id name response* willContinue scheduling}}
contextUpdate*
setupComplete{sessionId}
serverContent{modelTurn{role parts{&part}} inputTranscription{&transcription} interimInputTranscription{&transcription} outputTranscription{&transcription}
 interrupted generationComplete turnComplete turnCompleteReason interactionStatus waitingForInput groundingMetadata~ urlContextMetadata~}
toolCall{functionCalls{id name args* partialArgs{jsonPath stringValue numberValue boolValue nullValue willContinue} willContinue}}
toolCallCancellation{ids}
usageMetadata~
goAway{timeLeft}
sessionResumptionUpdate{newHandle resumable lastConsumedClientMessageIndex}
voiceActivity{voiceActivityType audioOffset}
voiceActivityDetectionSignal{vadSignalType}
`, map[string]string{
	"part": `text thought inlineData{mimeType data displayName} fileData{mimeType fileUri displayName} functionCall{id name args*} executableCode* codeExecutionResult*
 audioTranscription{&transcription} thoughtSignature videoMetadata* mediaResolution*`,
	"transcription": `text finished languageCode speakerLabel startOffset endOffset`,
})

// fields are the known fields of an object; nil: of a value in which nothing is looked at.
type fields map[string]fields

// allFields marks an object of which any field is known, and those below it.
const allFields = "~"

// parseFields reads names, each with its own fields in braces. &name stands for a definition.
func parseFields(text string, definitions map[string]string) fields {
	for name, definition := range definitions {
		text = strings.ReplaceAll(text, "&"+name, definition)
	}
	for name, definition := range definitions { // those in definitions
		text = strings.ReplaceAll(text, "&"+name, definition)
	}
	words := strings.Fields(strings.NewReplacer("{", " { ", "}", " } ", "*", "").Replace(text))
	var read func() fields
	read = func() fields {
		f := fields{}
		for len(words) > 0 && words[0] != "}" {
			name, all := strings.CutSuffix(words[0], allFields)
			if words, f[name] = words[1:], nil; len(words) > 0 && words[0] == "{" {
				words = words[1:]
				f[name] = read()
				words = words[1:] // }
			} else if all {
				f[name] = fields{allFields: nil}
			}
		}
		return f
	}
	return read()
}

// camelCase returns a frame's JSON with the first names of all fields, and for each object in it whether it has unknown ones. What is
// no JSON it returns as it is.
func camelCase(raw []byte) (out []byte, unknown []bool) {
	s := keyScanner{raw: raw}
	for s.blanks(); s.at < len(raw); s.blanks() {
		s.unknown = false
		if !s.value(knownFields) {
			break
		}
		unknown = append(unknown, s.unknown)
	}
	if s.out == nil {
		return raw, unknown
	}
	return append(s.out, raw[s.copied:]...), unknown
}

type keyScanner struct {
	raw     []byte
	at      int
	unknown bool
	depth   int
	// out is raw up to copied with the keys changed; nil: no key was.
	out    []byte
	copied int
}

func (s *keyScanner) blanks() {
	for s.at < len(s.raw) && (s.raw[s.at] == ' ' || s.raw[s.at] == '\n' || s.raw[s.at] == '\t' || s.raw[s.at] == '\r') {
		s.at++
	}
}

// next skips blanks and returns the next character, or 0.
func (s *keyScanner) next() byte {
	s.blanks()
	if s.at == len(s.raw) {
		return 0
	}
	return s.raw[s.at]
}

// value passes a value. It returns false where it is no JSON; the decoder finds out why.
func (s *keyScanner) value(known fields) bool {
	const maxDepth = 1000 // the decoder refuses deeper ones, or soon after
	if s.depth++; s.depth > maxDepth {
		return false
	}
	defer func() { s.depth-- }()
	switch s.next() {
	case '{':
		return s.elements('}', func() bool {
			below, ok := s.key(known)
			return ok && s.value(below)
		})
	case '[':
		return s.elements(']', func() bool { return s.value(known) })
	case '"':
		_, ok := s.text()
		return ok
	case 0:
		return false
	}
	from := s.at
	for s.at < len(s.raw) && strings.IndexByte(",]} \n\t\r{[\"", s.raw[s.at]) < 0 {
		s.at++
	}
	return s.at > from
}

// elements passes what is between brackets.
func (s *keyScanner) elements(end byte, element func() bool) bool {
	s.at++
	if s.next() == end {
		s.at++
		return true
	}
	for element() {
		switch s.next() {
		case end:
			s.at++
			return true
		case ',':
			s.at++
		default:
			return false
		}
	}
	return false
}

// text passes a string, and returns what is between the quotes.
func (s *keyScanner) text() ([]byte, bool) {
	s.at++
	from := s.at
	for {
		i := bytes.IndexByte(s.raw[s.at:], '"')
		if i < 0 {
			return nil, false
		}
		s.at += i
		escapes := 0
		for s.at-escapes > from && s.raw[s.at-escapes-1] == '\\' {
			escapes++
		}
		s.at++
		if escapes%2 == 0 {
			return s.raw[from : s.at-1], true
		}
	}
}

// key passes a key and its colon, and returns the fields that the value may have.
func (s *keyScanner) key(known fields) (fields, bool) {
	if s.next() != '"' {
		return nil, false
	}
	from := s.at + 1
	name, ok := s.text()
	if !ok || s.next() != ':' {
		return nil, false
	}
	s.at++
	if known == nil {
		return nil, true
	}
	if below, found := known[string(name)]; found {
		return below, true
	}
	first := lowerCamel(string(name))
	below, found := known[first]
	if _, all := known[allFields]; all {
		below, found = known, true
	}
	if !found {
		s.unknown = true
		return nil, true
	}
	if first == string(name) {
		return below, true
	}
	s.out = append(append(s.out, s.raw[s.copied:from]...), first...)
	s.copied = from + len(name)
	return below, true
}

// lowerCamel is the JSON name of a field of a proto message.
func lowerCamel(name string) string {
	var b strings.Builder
	upper := false
	for _, r := range name {
		if r == '_' {
			upper = true
			continue
		}
		if upper {
			b.WriteString(strings.ToUpper(string(r)))
		} else {
			b.WriteRune(r)
		}
		upper = false
	}
	return b.String()
}
