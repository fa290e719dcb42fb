package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// conn is a connection to a peer. Its methods may be called by many at once.
type conn interface {
	create(ctx context.Context, plural string, obj runtime.Object) error
	get(ctx context.Context, plural, name string) error
	close()
}

// connect makes as many connections as clients need, to peers in turn, and returns once
// each has been used.
func (r *run) connect(ctx context.Context, way string, clients int, to ...int) (conns []conn, done func()) {
	for i := range min(clients, connections) {
		peer := to[i%len(to)]
		switch way {
		case restJSON, restProto:
			conns = append(conns, newRESTConn(r, way, peer))
		default:
			c := r.peers.Client(peer)
			one := connectConn{client: c, objects: c.Objects()}
			if way == stream {
				one.session = c.ObjectSession(client.SessionOptions{})
				one.objects = one.session
			}
			conns = append(conns, one)
		}
	}
	var shaking sync.WaitGroup
	for _, c := range conns {
		shaking.Go(func() { _ = c.get(ctx, "pods", "none") })
	}
	shaking.Wait()
	return conns, func() {
		for _, c := range conns {
			c.close()
		}
	}
}

// objects are the calls that a session has as well as the unary API.
type objects interface {
	Get(context.Context, *holdfastv1.GetRequest) (*holdfastv1.GetResponse, error)
	Create(context.Context, *holdfastv1.CreateRequest) (*holdfastv1.CreateResponse, error)
	Apply(context.Context, *holdfastv1.ApplyRequest) (*holdfastv1.ApplyResponse, error)
}

// connectConn speaks Connect, unary or over a session.
type connectConn struct {
	client  *client.Client
	session *client.ObjectSession // nil: unary
	objects objects
}

func (c connectConn) create(ctx context.Context, _ string, obj runtime.Object) error {
	_, err := c.objects.Create(ctx, &holdfastv1.CreateRequest{Object: &holdfastv1.Object{Data: protobuf(obj)}})
	return err
}

func (c connectConn) get(ctx context.Context, _, name string) error {
	_, err := c.objects.Get(ctx, &holdfastv1.GetRequest{Kind: podKind, Namespace: namespace, Name: name})
	return err
}

func (c connectConn) close() {
	if c.session != nil {
		c.session.Close()
	}
	c.client.Close()
}

// restConn speaks Kubernetes' REST dialect over one connection of HTTP/2.
type restConn struct {
	transport *http.Transport
	base      string
	media     string
	encode    func(runtime.Object) []byte
}

func newRESTConn(r *run, way string, peer int) restConn {
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	c := restConn{
		transport: &http.Transport{TLSClientConfig: r.peers.Credentials.ClientTLS(pki.RolePeer, "h2"), Protocols: &protocols},
		base:      "https://" + r.peers.Addresses[peer] + "/api/v1/namespaces/" + namespace + "/",
		media:     "application/json", encode: jsonOf,
	}
	if way == restProto {
		c.media, c.encode = "application/vnd.kubernetes.protobuf", protobuf
	}
	return c
}

func (c restConn) create(ctx context.Context, plural string, obj runtime.Object) error {
	return c.do(ctx, http.MethodPost, plural, c.encode(obj))
}

func (c restConn) get(ctx context.Context, plural, name string) error {
	return c.do(ctx, http.MethodGet, plural+"/"+name, nil)
}

func (c restConn) do(ctx context.Context, method, path string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Accept", c.media)
	req.Header.Set("Content-Type", c.media)
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %.300s", method, path, resp.Status, data)
	}
	return err
}

func (c restConn) close() { c.transport.CloseIdleConnections() }
