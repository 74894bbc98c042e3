// Command goproxy writes the Go modules of clients/go as a module proxy, for GOPROXY=file://…:
//
//	go run -C tools ./goproxy v1.2.3 DIRECTORY
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: goproxy VERSION DIRECTORY")
		os.Exit(2)
	}
	if err := write("../clients/go", os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "goproxy:", err)
		os.Exit(1)
	}
}

// write writes every module at or below root to a proxy in dir. They require each other at the same version.
func write(root, version, dir string) error {
	var modules []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "go.mod" {
			modules = append(modules, filepath.Dir(path))
		}
		return err
	})
	if err != nil {
		return err
	}
	ours := map[string]*modfile.File{}
	paths := map[string]string{}
	for _, m := range modules {
		name := filepath.Join(m, "go.mod")
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := modfile.Parse(name, data, nil)
		if err != nil {
			return err
		}
		ours[m], paths[f.Module.Mod.Path] = f, m
	}
	for m, f := range ours {
		for path := range paths {
			for _, r := range f.Require {
				if r.Mod.Path != path {
					continue
				}
				if err := f.AddRequire(path, version); err != nil {
					return err
				}
				if err := f.DropReplace(path, ""); err != nil {
					return err
				}
			}
		}
		f.Cleanup()
		mod, err := f.Format()
		if err == nil {
			err = publish(m, module.Version{Path: f.Module.Mod.Path, Version: version}, mod, dir)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// publish writes one module's files, in the layout that the Go command asks a proxy for.
func publish(root string, m module.Version, mod []byte, dir string) error {
	escaped, err := module.EscapePath(m.Path)
	if err != nil {
		return err
	}
	to := filepath.Join(dir, filepath.FromSlash(escaped), "@v")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	files, err := filesOf(root, mod)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	if err := zip.Create(&archive, m, files); err != nil {
		return err
	}
	info, err := json.Marshal(map[string]any{"Version": m.Version, "Time": time.Unix(0, 0).UTC()})
	if err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		m.Version + ".info": info, m.Version + ".mod": mod, m.Version + ".zip": archive.Bytes(), "list": []byte(m.Version + "\n"),
	} {
		if err := os.WriteFile(filepath.Join(to, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// filesOf returns the files of the module at root, without those of modules below it, and with mod as its go.mod.
func filesOf(root string, mod []byte) ([]zip.File, error) {
	var files []zip.File
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != root {
				return filepath.SkipDir
			}
			return nil
		}
		name, err := filepath.Rel(root, path)
		f := file{filepath.ToSlash(name), path, nil}
		if f.name == "go.mod" {
			f.data = mod
		}
		files = append(files, f)
		return err
	})
	return files, err
}

type file struct {
	name, source string
	data         []byte // instead of the source's
}

func (f file) Path() string { return f.name }

func (f file) Lstat() (fs.FileInfo, error) { return os.Lstat(f.source) }

func (f file) Open() (io.ReadCloser, error) {
	if f.data != nil {
		return io.NopCloser(strings.NewReader(string(f.data))), nil
	}
	return os.Open(f.source)
}
