// Command standin takes the place of any program in a container. It serves HTTP and
// gRPC's health check on the ports of STANDIN_PORTS, and says yes to everything; with
// STANDIN_ENDS it ends well at once, as a container that only prepares something does.
// Run beside the container's first process, as a probe or a hook is, it ends well, too.
package main

import (
	"log"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	if os.Getpid() != 1 || os.Getenv("STANDIN_ENDS") != "" {
		return
	}
	stopped := make(chan os.Signal, 1)
	signal.Notify(stopped, syscall.SIGTERM, os.Interrupt)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	for port := range strings.FieldsSeq(os.Getenv("STANDIN_PORTS")) {
		server := &http.Server{Addr: ":" + port, Handler: http.HandlerFunc(yes), Protocols: &protocols}
		go func() { log.Fatal(server.ListenAndServe()) }()
	}
	<-stopped
}

// yes answers HTTP with 200 and nothing, and a gRPC health check with SERVING.
func yes(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		return
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	_, _ = w.Write([]byte{0, 0, 0, 0, 2, 8, 1}) // a message of two bytes: field 1, status, is 1
	w.Header().Set("Grpc-Status", "0")
}
