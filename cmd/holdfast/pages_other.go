//go:build !linux

package main

// dropStartPages does nothing where the kernel is not Linux.
func dropStartPages() error { return nil }
