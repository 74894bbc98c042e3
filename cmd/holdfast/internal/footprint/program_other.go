//go:build !linux

package footprint

func releaseProgram() {}

func programResident() int64 { return 0 }
