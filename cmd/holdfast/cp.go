package main

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

type copyFlags struct {
	container string
}

func (a *app) copyCommand() *cobra.Command {
	var f copyFlags
	cmd := &cobra.Command{
		Use:   "cp SOURCE DESTINATION",
		Short: "Copy files and directories to and from a container",
		Long: `Copy files and directories, with their modes and times, between this machine and a
container. One of both is POD:PATH, or NAMESPACE/POD:PATH, the other a path of this
machine. A destination that is a directory gets the source into it, under its name;
what is there already is overwritten.

The container's image must have tar. What it sends is not trusted: nothing is written
outside of the destination.`,
		Example: `  holdfast cp site.conf web-7f2ab:/etc/site/
  holdfast cp web-7f2ab:/var/log/app ./logs -c main
  holdfast cp ./dist team/web-7f2ab:/srv`,
		Args: exactArgs(2, "SOURCE and DESTINATION"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runCopy(cmd.Context(), f, args[0], args[1]) },
	}
	cmd.Flags().StringVarP(&f.container, "container", "c", "", "which container, if the pod has several")
	return cmd
}

// place is one end of a copy.
type place struct {
	namespace, pod string // pod empty: of this machine
	path           string
}

// parsePlace reads PATH, POD:PATH or NAMESPACE/POD:PATH. What begins like a path is
// one, whatever is in it.
func parsePlace(arg string) (place, error) {
	pod, file, remote := strings.Cut(arg, ":")
	if !remote || strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, ".") {
		return place{path: arg}, nil
	}
	p := place{pod: pod, path: file}
	if ns, name, ok := strings.Cut(pod, "/"); ok {
		p.namespace, p.pod = ns, name
	}
	if p.pod == "" || p.path == "" || strings.Contains(p.pod, "/") {
		return place{}, failf(exitUsage, "%q: want POD:PATH, or NAMESPACE/POD:PATH; a file of this machine with a colon in its name is ./NAME", arg)
	}
	return p, nil
}

func (a *app) runCopy(ctx context.Context, f copyFlags, source, destination string) error {
	from, err := parsePlace(source)
	if err != nil {
		return err
	}
	to, err := parsePlace(destination)
	if err != nil {
		return err
	}
	switch {
	case from.pod == "" && to.pod == "":
		return failf(exitUsage, "neither %s nor %s is in a pod: one must be POD:PATH", source, destination)
	case from.pod != "" && to.pod != "":
		return failf(exitUsage, "both are in pods: copy to this machine first")
	}
	r, err := a.dial()
	if err != nil {
		return err
	}
	c := &copier{app: a, r: r, container: f.container}
	if to.pod != "" {
		err = c.upload(ctx, from.path, to)
	} else {
		err = c.download(ctx, from, to.path)
	}
	if err != nil {
		return err
	}
	a.note("Copied %d files, %d bytes.", c.files, c.bytes)
	return nil
}

// copier copies by tar in the container.
type copier struct {
	app       *app
	r         *remote
	container string
	files     int
	bytes     int64
}

// run runs a command in the container. It returns its exit code and what it
// complains of.
func (c *copier) run(ctx context.Context, at place, stdin io.Reader, stdout io.Writer, command ...string) (int, string, error) {
	namespace := at.namespace
	if namespace == "" {
		namespace = c.app.inNamespace()
	}
	s, err := openExec(ctx, c.r, &holdfastv1.ExecStart{
		Namespace: namespace, Pod: at.pod, Container: c.container, Command: command, Stdin: stdin != nil,
	})
	if err != nil {
		return 0, "", err
	}
	defer s.stream.Close()
	if stdin != nil {
		go s.pump(stdin)
	}
	complaint := &head{most: 4096}
	code, err := s.receive(stdout, complaint)
	return code, strings.TrimSpace(complaint.String()), err
}

// head keeps the beginning of what is written.
type head struct {
	strings.Builder
	most int
}

func (h *head) Write(p []byte) (int, error) {
	if room := h.most - h.Len(); room > 0 {
		h.Builder.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// tarError says why tar did not do its work; nil if it did.
func (c *copier) tarError(ctx context.Context, at place, code int, complaint string, err error) error {
	what := "copy with pod/" + at.pod
	missing := code == 126 || code == 127
	if err != nil {
		missing = strings.Contains(err.Error(), "executable file not found")
	}
	switch {
	case missing:
		return failf(exitRefused, "%s: its image has no tar, which cp needs; a single file can be copied by whatever it has, as in: holdfast exec -i %s -- sh -c 'cat > FILE' < FILE", what, at.pod)
	case err != nil:
		return c.app.explain(ctx, c.r, what, err)
	case code != 0:
		return failf(exitError, "%s: tar ended with %d: %s", what, code, complaint)
	}
	return nil
}

// upload sends a file or directory of this machine.
func (c *copier) upload(ctx context.Context, from string, to place) error {
	if _, err := os.Lstat(from); err != nil {
		return failf(exitNotFound, "%w", err)
	}
	dir, name := path.Split(to.path)
	if name == "" || name == "." || name == ".." {
		dir, name = to.path, ""
	} else if code, _, err := c.run(ctx, to, nil, io.Discard, "test", "-d", to.path); err == nil && code == 0 {
		dir, name = to.path, ""
	}
	if dir == "" {
		dir = "." // of the container
	}
	if name == "" {
		abs, err := filepath.Abs(from)
		if err != nil {
			return err
		}
		if name = filepath.Base(abs); name == string(filepath.Separator) {
			return failf(exitUsage, "%s has no name to have in %s: say POD:%s/NAME", from, to.path, strings.TrimSuffix(dir, "/"))
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := c.pack(w, from, name)
		w.CloseWithError(err) // nil: the end
		packed <- err
	}()
	code, complaint, err := c.run(ctx, to, r, io.Discard, "tar", "-xpf", "-", "-C", dir)
	r.CloseWithError(io.ErrClosedPipe)
	packErr := <-packed
	if err := c.tarError(ctx, to, code, complaint, err); err != nil {
		return err
	}
	if packErr != nil {
		return failf(exitError, "read %s: %w: the copy is incomplete", from, packErr)
	}
	return nil
}

// pack writes an archive of from, which is called name in it. Everything belongs to
// the container's own user, or to root: this machine's users mean nothing there.
func (c *copier) pack(w io.Writer, from, name string) error {
	out := tar.NewWriter(w)
	err := filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if file == from { // what is named is meant, not a link to it
			info, err = os.Stat(file)
		}
		if err != nil {
			return err
		}
		link := ""
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			if link, err = os.Readlink(file); err != nil {
				return err
			}
		case !info.IsDir() && !info.Mode().IsRegular():
			c.app.note("Left out %s: it is neither a file, a directory nor a link.", file)
			return nil
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		header.Name = path.Join(name, filepath.ToSlash(rel))
		header.Uid, header.Gid, header.Uname, header.Gname = 0, 0, "", ""
		if err := out.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
			return err
		}
		in, err := os.Open(file)
		if err != nil {
			return err
		}
		defer in.Close()
		n, err := io.Copy(out, in)
		c.files++
		c.bytes += n
		return err
	})
	return errors.Join(err, out.Close())
}

// download fetches a file or directory of a container.
func (c *copier) download(ctx context.Context, from place, to string) error {
	dir, name := path.Split(path.Clean(from.path))
	if dir == "" {
		dir = "."
	}
	if name == "" || name == ".." {
		return failf(exitUsage, "%s has no name: copy what is in it, one by one", from.path)
	}
	into, as := filepath.Split(filepath.Clean(to))
	if info, err := os.Stat(to); err == nil && info.IsDir() {
		into, as = to, name
	} else if strings.HasSuffix(to, string(filepath.Separator)) {
		return failf(exitNotFound, "%s is no directory", to)
	}
	if into == "" {
		into = "."
	}
	root, err := os.OpenRoot(into)
	if err != nil {
		return failf(exitNotFound, "%w", err)
	}
	defer root.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := c.unpack(r, root, name, as)
		if err == nil {
			_, _ = io.Copy(io.Discard, r) // what fills the archive's last block
		}
		r.CloseWithError(err)
		unpacked <- err
	}()
	code, complaint, err := c.run(ctx, from, nil, w, "tar", "-cf", "-", "-C", dir, name)
	w.CloseWithError(err)
	unpackErr := <-unpacked
	if err != nil && errors.Is(unpackErr, err) {
		unpackErr = nil // only what came of it
	}
	if bad, ok := errors.AsType[*failure](unpackErr); ok {
		return bad
	}
	if unpackErr != nil && code == 0 {
		return failf(exitError, "write %s: %w: the copy is incomplete", to, unpackErr)
	}
	return c.tarError(ctx, from, code, complaint, err)
}

// unpack writes the archive's name, and what is below it, as as into root, out of
// which nothing leads.
func (c *copier) unpack(r io.Reader, root *os.Root, name, as string) error {
	type stamp struct {
		file   string
		header *tar.Header
	}
	var dirs []stamp // their modes and times come last: what is in them comes between
	for in := tar.NewReader(r); ; {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		rest, ok := below(name, header.Name)
		if !ok {
			return failf(exitRefused, "the container's tar sent %q, which is not in %s: it was not written, nor what came after it", header.Name, name)
		}
		file := filepath.FromSlash(path.Join(as, rest))
		mode := header.FileInfo().Mode().Perm()
		switch header.Typeflag {
		case tar.TypeDir:
			if err := root.Mkdir(file, 0o700|mode); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			dirs = append(dirs, stamp{file, header})
			continue
		case tar.TypeReg:
			err = c.writeFile(root, file, in, mode)
		case tar.TypeSymlink:
			target := filepath.FromSlash(header.Linkname)
			if _, ok := below(name, path.Join(path.Dir(path.Clean(header.Name)), header.Linkname)); !ok || path.IsAbs(header.Linkname) {
				c.app.note("Left out the link %s: it leads to %s, outside of what is copied.", header.Name, header.Linkname)
				continue
			}
			if err := root.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := root.Symlink(target, file); err != nil {
				return err
			}
			continue
		case tar.TypeLink:
			old, ok := below(name, header.Linkname)
			if !ok {
				return failf(exitRefused, "the container's tar sent a link to %q, which is not in %s: it was not made", header.Linkname, name)
			}
			_ = root.Remove(file)
			err = root.Link(filepath.FromSlash(path.Join(as, old)), file)
		default:
			c.app.note("Left out %s: it is neither a file, a directory nor a link.", header.Name)
			continue
		}
		if err != nil {
			return err
		}
		if header.Typeflag == tar.TypeReg {
			_ = root.Chtimes(file, header.ModTime, header.ModTime)
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		d := dirs[i]
		if err := root.Chmod(d.file, d.header.FileInfo().Mode().Perm()); err != nil {
			return err
		}
		_ = root.Chtimes(d.file, d.header.ModTime, d.header.ModTime)
	}
	return nil
}

// below returns what is behind dir in name, which must be dir or lead into it.
func below(dir, name string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(path.Clean(name), dir)
	return strings.TrimPrefix(rest, "/"), ok && (rest == "" || rest[0] == '/')
}

// writeFile writes a file in place of whatever has its name, links included.
func (c *copier) writeFile(root *os.Root, file string, in io.Reader, mode fs.FileMode) error {
	if err := root.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := root.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode|0o200)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, in)
	c.files++
	c.bytes += n
	return errors.Join(err, out.Chmod(mode), out.Close())
}
