// Package replay plays a recorded Gemini Live session to Holdfast and shows the conversation that comes of it.
//
//	Read ──frames──▶ Batches ──▶ Play ──IngestLive──▶ server ──Watch──▶ View ──lines──▶ terminal
package replay

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	livev1 "holdfast/gen/holdfast/live/v1"
)

// maxLine bounds a line of a recording: what the server takes in one request.
const maxLine = 4 << 20

// Frame is one frame of a recording.
type Frame struct {
	// At is when it came, since the recording began.
	At time.Duration
	// Connection counts the connections to the provider, from 1.
	Connection int64
	// JSON is the frame as it came.
	JSON string
}

// line is a line of the file.
type line struct {
	T     *float64        `json:"t"` // milliseconds
	Conn  int64           `json:"conn"`
	From  string          `json:"from"`
	Frame json.RawMessage `json:"frame"`
}

// Read reads a recording: a JSON object a line, {"t": ms, "conn": n, "from": "client" or "server", "frame": {…}}, in the
// order of time. Empty lines are skipped. An error names the line.
func Read(r io.Reader) ([]Frame, error) {
	var frames []Frame
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	number := 0
	for lines.Scan() {
		number++
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		f, err := parse(lines.Bytes())
		if err == nil && len(frames) > 0 {
			err = follows(f, frames[len(frames)-1])
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		frames = append(frames, f)
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("line %d: longer than %d bytes", number+1, maxLine)
	case err != nil:
		return nil, err
	case len(frames) == 0:
		return nil, errors.New("no frames")
	}
	return frames, nil
}

func parse(text []byte) (Frame, error) {
	var l line
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return Frame{}, fmt.Errorf(`not an object with t, conn, from and frame: %w`, err)
	}
	if d.More() {
		return Frame{}, errors.New("something follows the object")
	}
	frame := bytes.TrimSpace(l.Frame)
	switch {
	case l.T == nil || *l.T < 0:
		return Frame{}, errors.New("t must be the milliseconds since the recording began")
	case l.Conn < 1:
		return Frame{}, errors.New("conn must be a number from 1")
	case l.From != "client" && l.From != "server":
		return Frame{}, errors.New(`from must be "client" or "server"`)
	case len(frame) == 0 || frame[0] != '{':
		return Frame{}, errors.New("frame must be an object")
	}
	return Frame{At: time.Duration(*l.T * float64(time.Millisecond)), Connection: l.Conn, JSON: string(frame)}, nil
}

// Kept makes a recording of the frames that a conversation keeps, as ListLiveFrames has them. What came twice is in it once.
func Kept(batches []*livev1.LiveFrameBatch) ([]Frame, error) {
	var frames []Frame
	last := map[int32]int32{} // the newest frame of each connection
	for _, b := range batches {
		for _, f := range b.GetFrames() {
			if f.GetClientIndex() <= last[b.GetFromConnection()] {
				continue
			}
			last[b.GetFromConnection()] = f.GetClientIndex()
			text, err := frameText(f)
			if err != nil {
				return nil, fmt.Errorf("frame %d of connection %d: %w", f.GetClientIndex(), b.GetFromConnection(), err)
			}
			frames = append(frames, Frame{
				At: b.GetReceiveTime().AsTime().Sub(batches[0].GetReceiveTime().AsTime()), Connection: int64(b.GetFromConnection()), JSON: text,
			})
		}
	}
	if len(frames) == 0 {
		return nil, errors.New("it keeps no frames; set keepFramesFor in ConnectLive's options")
	}
	return frames, nil
}

func frameText(f *livev1.LiveFrame) (string, error) {
	switch f := f.GetFrame().(type) {
	case *livev1.LiveFrame_Object:
		raw, err := protojson.Marshal(f.Object)
		return string(raw), err
	case *livev1.LiveFrame_Binary:
		return string(f.Binary), nil
	case *livev1.LiveFrame_Text:
		return f.Text, nil
	default:
		return "", errors.New("it is empty")
	}
}

func follows(f, before Frame) error {
	switch {
	case f.At < before.At:
		return fmt.Errorf("t falls, from %d to %d", before.At.Milliseconds(), f.At.Milliseconds())
	case f.Connection < before.Connection:
		return fmt.Errorf("conn falls, from %d to %d", before.Connection, f.Connection)
	}
	return nil
}
