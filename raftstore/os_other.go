//go:build !linux

package raftstore

import (
	"errors"
	"os"
)

// Peers run on Linux; elsewhere only the client is of use. See os_linux.go.

func syncData(f *os.File) error       { return f.Sync() }
func dropCache(*os.File)              {}
func allocate(*os.File, int64) error  { return errors.ErrUnsupported }
func diskSpace(string) (Space, error) { return Space{}, errors.ErrUnsupported }
func tryLock(*os.File) bool           { return true }
