package kube

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/holdfast-io/holdfast/apiserver"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// logs streams a container's log as text.
func (c *call) logs() error {
	req, limit, err := c.logsRequest()
	if err != nil {
		return err
	}
	if err := c.cfg.Authorize(c.r.Context(), apiserver.Attributes{Verb: "get", Resource: "pods", Subresource: "log", Namespace: c.at.namespace, Name: c.at.name}); err != nil {
		return c.failed(err)
	}
	out := &logStream{call: c, left: limit, limited: limit > 0}
	err = c.cfg.Pods.Logs(c.r.Context(), req, out)
	switch {
	case out.full, c.r.Context().Err() != nil:
		return nil
	case err != nil && c.w.begun:
		return err // breaks the connection off: half a log must not look like a whole one
	case err != nil:
		return c.failed(err)
	}
	return out.SendHeaders()
}

func (c *call) logsRequest() (req *holdfastv1.LogsRequest, limit int64, err error) {
	values := c.r.URL.Query()
	p := &params{values: values}
	req = &holdfastv1.LogsRequest{
		Namespace: c.at.namespace, Pod: c.at.name, Container: p.text("container"),
		Follow: p.flag("follow"), Previous: p.flag("previous"), Timestamps: p.flag("timestamps"), TailLines: -1,
	}
	if p.has("tailLines") {
		req.TailLines = p.number("tailLines")
	}
	if p.has("limitBytes") {
		if limit = p.number("limitBytes"); limit == 0 {
			p.wrong("limitBytes", p.text("limitBytes"), "want at least 1")
		}
	}
	if p.has("sinceSeconds") && p.has("sinceTime") {
		p.faults = append(p.faults, "at most one of sinceTime and sinceSeconds may be given")
	}
	if p.has("sinceSeconds") {
		seconds := p.number("sinceSeconds")
		if seconds == 0 {
			p.wrong("sinceSeconds", p.text("sinceSeconds"), "want at least 1")
		}
		req.Since = timestamppb.New(c.now().Add(-time.Duration(seconds) * time.Second))
	}
	if p.has("sinceTime") {
		at, err := time.Parse(time.RFC3339, p.text("sinceTime"))
		if err != nil {
			p.wrong("sinceTime", p.text("sinceTime"), `want a time such as "2026-01-31T12:00:00Z"`)
		}
		req.Since = timestamppb.New(at)
	}
	if stream := p.text("stream"); stream != "" && stream != "All" {
		p.wrong("stream", stream, `only "All" is supported yet`)
	}
	if len(p.faults) > 0 {
		return nil, 0, apierrors.NewBadRequest(strings.Join(p.faults, "; "))
	}
	return req, limit, nil
}

// logStream writes a log's pieces as they come.
type logStream struct {
	*call
	limited, full bool
	left          int64
}

// SendHeaders tells the client that the log has been found.
func (s *logStream) SendHeaders() error {
	if s.w.begun {
		return nil
	}
	s.w.Header().Set("Content-Type", "text/plain")
	s.w.Header().Set("Cache-Control", "no-cache, private")
	s.w.WriteHeader(http.StatusOK)
	return http.NewResponseController(s.w).Flush()
}

// Send writes a piece.
func (s *logStream) Send(msg *holdfastv1.LogsResponse) error {
	if err := s.SendHeaders(); err != nil {
		return err
	}
	data := msg.GetData()
	if s.limited && int64(len(data)) >= s.left {
		data, s.full = data[:s.left], true
	}
	s.left -= int64(len(data))
	if _, err := s.w.Write(data); err != nil {
		return err
	}
	if err := http.NewResponseController(s.w).Flush(); err != nil {
		return err
	}
	if s.full {
		return errLogFull
	}
	return nil
}

// errLogFull ends a log of which all that was asked for has been sent.
var errLogFull = errors.New("limitBytes of the log have been sent")
