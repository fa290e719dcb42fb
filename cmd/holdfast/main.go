// Command holdfast is the one binary of Holdfast: a peer (`server`), a node's
// agent (`agent`), a cluster on one machine (`dev`), and the command line with
// which people use any of them.
//
// One file a command: its help, its flags, and runX, which writes to the app's
// writers. What commands share is in app.go (streams and flags), remote.go (the
// connection), errors.go (exit codes), kinds.go (what users call things) and
// watch.go. The narration of a rollout is a package of its own, internal/rollout.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "dev"

func main() {
	dispatch(os.Args)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process at once
	}()
	os.Exit(newApp().run(ctx, os.Args[1:]))
}
