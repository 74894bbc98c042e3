package gemini

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	storev1 "holdfast/gen/holdfast/store/conversation/v1"
)

// Content is what one side says or does.
type Content struct {
	Role  Text   `json:"role"`
	Parts []Part `json:"parts"`
}

// Part is a piece of a Content.
type Part struct {
	Text       Text `json:"text"`
	Thought    bool `json:"thought"`
	InlineData struct {
		MIMEType Text       `json:"mimeType"`
		Data     inlineData `json:"data"`
	} `json:"inlineData"`
	FileData struct {
		MIMEType Text `json:"mimeType"`
		URI      Text `json:"fileUri"`
		Name     Text `json:"displayName"`
	} `json:"fileData"`
	FunctionCall        *FunctionCall  `json:"functionCall"`
	ExecutableCode      Object         `json:"executableCode"`
	CodeExecutionResult Object         `json:"codeExecutionResult"`
	AudioTranscription  *Transcription `json:"audioTranscription"`
	ThoughtSignature    inlineData     `json:"thoughtSignature"`
}

// Media reports whether a part is a file or has data.
func (p *Part) Media() bool { return p.InlineData.Data.size > 0 || p.FileData.URI != "" }

// Text is what the content says; the model's thoughts are not said.
func (c *Content) Text() string { return Text(c.Said()).Whole() }

// Said is text, as it came.
func (c *Content) Said() string {
	var b strings.Builder
	for i := range c.Parts {
		if !c.Parts[i].Thought {
			b.WriteString(string(c.Parts[i].Text))
		}
	}
	return b.String()
}

// Transcribed is what transcriptions among the parts say.
func (c *Content) Transcribed() string {
	var b strings.Builder
	for i := range c.Parts {
		if t := c.Parts[i].AudioTranscription; t != nil {
			b.WriteString(t.Text.Whole())
		}
	}
	return b.String()
}

// Calls are the function calls among the parts.
func (c *Content) Calls() (calls []FunctionCall) {
	for i := range c.Parts {
		if call := c.Parts[i].FunctionCall; call != nil {
			call.Signature = c.Parts[i].ThoughtSignature.Bytes()
			calls = append(calls, *call)
		}
	}
	return calls
}

// maxSignature is the bytes of a text's thought signature that is kept: it is in the state while the turn is open.
const maxSignature = 8 << 10

// Signature is the newest thought signature of the text, and how many cannot be kept, because they are too long, or of audio, which
// is not kept either.
func (c *Content) Signature() (signature []byte, lost int) {
	for i := range c.Parts {
		p := &c.Parts[i]
		if p.ThoughtSignature.size == 0 || p.FunctionCall != nil || p.ExecutableCode.Fields != nil || p.CodeExecutionResult.Fields != nil || p.isFile() {
			continue
		}
		if s := p.ThoughtSignature.Bytes(); len(s) > 0 && len(s) <= maxSignature && !p.Media() {
			signature = s
		} else {
			lost++
		}
	}
	return signature, lost
}

// maxInlineData is how much data of one part is kept.
const maxInlineData = 256 << 10

// Kept are the parts of what a user wrote; nil: there is only text.
func (c *Content) Kept() (list []*storev1.Part) {
	if !slices.ContainsFunc(c.Parts, func(p Part) bool { return p.Media() }) {
		return nil
	}
	left := maxInlineData
	for i := range c.Parts {
		p := &c.Parts[i]
		mime := FirstBytes(string(p.InlineData.MIMEType), MaxName)
		switch {
		case p.FileData.URI != "":
			list = append(list, &storev1.Part{Part: &storev1.Part_File{File: &storev1.FileRef{
				Uri: FirstBytes(string(p.FileData.URI), maxURI), MimeType: FirstBytes(string(p.FileData.MIMEType), MaxName), Name: FirstBytes(string(p.FileData.Name), MaxName),
			}}})
		case p.InlineData.Data.size > 0:
			data := p.InlineData.Data.Bytes()
			if len(data) == 0 || len(data) > left {
				list = append(list, &storev1.Part{Part: &storev1.Part_Text{Text: fmt.Sprintf("[%s of %d bytes, which was not kept]", cmp.Or(mime, "data"), p.InlineData.Data.size)}})
				continue
			}
			left -= len(data)
			list = append(list, &storev1.Part{Part: &storev1.Part_Data{Data: &storev1.Blob{Data: data, MimeType: mime}}})
		case p.Text != "" && !p.Thought:
			list = append(list, &storev1.Part{Part: &storev1.Part_Text{Text: FirstBytes(p.Text.Whole(), MaxTurnText)}})
		}
	}
	return list
}

const maxURI = 2048

// Spoken reports whether the content has anything but thoughts: text, or audio that is not read here.
func (c *Content) Spoken() bool {
	return slices.ContainsFunc(c.Parts, func(p Part) bool { return !p.Thought && p.FunctionCall == nil })
}

// HasAudio reports whether a part is audio.
func (c *Content) HasAudio() bool {
	return slices.ContainsFunc(c.Parts, func(p Part) bool { return strings.HasPrefix(string(p.InlineData.MIMEType), "audio/") })
}

// AudioMillis is how much audio the content has, in milliseconds: PCM of 16 bits, one channel. Other data counts as none.
func (c *Content) AudioMillis() int64 {
	const (
		usualRate   = 24000
		sampleBytes = 2
	)
	var ms int64
	for _, p := range c.Parts {
		kind, options, _ := strings.Cut(string(p.InlineData.MIMEType), ";")
		if kind != "audio/pcm" {
			continue
		}
		rate := int64(usualRate)
		if text, ok := strings.CutPrefix(strings.TrimSpace(options), "rate="); ok {
			if r, err := strconv.ParseInt(text, 10, 32); err == nil && r >= 1000 {
				rate = r
			}
		}
		ms += int64(p.InlineData.Data.size) * 1000 / (sampleBytes * rate)
	}
	return ms
}

// onlyAudio reports whether the content has nothing that is kept.
func (c *Content) onlyAudio() bool {
	return !slices.ContainsFunc(c.Parts, func(p Part) bool {
		return p.Text != "" || p.InlineData.Data.size == 0 || p.FunctionCall != nil || p.AudioTranscription != nil || p.isFile()
	})
}

// Made are the parts that a part of the model is stored as: what it executes, the result, or a file. Audio is not kept.
func (p *Part) Made() (list []*storev1.Part) {
	for _, code := range []struct {
		name string
		data Object
	}{{"executableCode", p.ExecutableCode}, {"codeExecutionResult", p.CodeExecutionResult}} {
		if code.data.Fields != nil {
			value := structpb.NewStructValue(Fields(map[string]*structpb.Value{code.name: structpb.NewStructValue(code.data.Fields)}))
			list = append(list, &storev1.Part{Part: &storev1.Part_Json{Json: value}, ThoughtSignature: p.ThoughtSignature.Bytes()})
		}
	}
	if p.isFile() {
		list = (&Content{Parts: []Part{*p}}).Kept()
		list[0].ThoughtSignature = p.ThoughtSignature.Bytes()
	}
	return list
}

// isFile reports whether a part of the model is a file, such as a picture, and not a piece of what it plays.
func (p *Part) isFile() bool {
	kind, _, _ := strings.Cut(string(p.InlineData.MIMEType), "/")
	return p.FileData.URI != "" || p.InlineData.Data.size > 0 && kind != "audio" && kind != "video"
}
