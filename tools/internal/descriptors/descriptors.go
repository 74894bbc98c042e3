// Package descriptors reads what `buf build --as-file-descriptor-set` writes.
package descriptors

import (
	"io"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

const (
	// Ours begins the names of our packages.
	Ours = "holdfast."
	// Stored begins those of what rows hold, which no caller sees.
	Stored = Ours + "store."
)

// Read returns the files of a set.
func Read(in io.Reader) (*protoregistry.Files, error) {
	raw, err := io.ReadAll(in)
	if err != nil {
		return nil, err
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(raw, &set); err != nil {
		return nil, err
	}
	return protodesc.NewFiles(&set)
}
