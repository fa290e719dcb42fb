package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/holdfast-io/holdfast/bench/rig"
)

// etcd is three members of etcd, each this binary again.
type etcd struct {
	dir       string
	syncDelay time.Duration
	configs   []etcdMember
	procs     [members]*rig.Process
	tls       *tls.Config
}

// etcdMember is what a member's process is told.
type etcdMember struct {
	Name, Dir, Peer, Client, Cluster string
	Cert, Key, CA                    string
}

// etcdReady is what a member's process prints once it serves.
const etcdReady = "etcd member ready"

// runEtcdMember is a member's process.
func runEtcdMember(config string) error {
	var m etcdMember
	if err := json.Unmarshal([]byte(config), &m); err != nil {
		return err
	}
	cfg := embed.NewConfig()
	cfg.Name, cfg.Dir, cfg.InitialCluster = m.Name, m.Dir, m.Cluster
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = urls(m.Peer), urls(m.Peer)
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = urls(m.Client), urls(m.Client)
	info := transport.TLSInfo{CertFile: m.Cert, KeyFile: m.Key, TrustedCAFile: m.CA, ClientCertAuth: true}
	cfg.ClientTLSInfo, cfg.PeerTLSInfo = info, info
	cfg.TlsMinVersion = "TLS1.3"
	cfg.QuotaBackendBytes = 8 << 30
	cfg.LogLevel = "error"
	cfg.EnablePprof = true
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return err
	}
	defer e.Close()
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	select {
	case <-e.Server.ReadyNotify():
		fmt.Println(etcdReady)
	case <-asked:
		return nil
	case err := <-e.Err():
		return err
	}
	select {
	case <-asked:
		return nil
	case err := <-e.Err():
		return err
	}
}

func urls(address string) []url.URL {
	return []url.URL{{Scheme: "https", Host: address}}
}

func (e *etcd) start(ctx context.Context) error {
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return err
	}
	cert, key, ca, err := e.certificates()
	if err != nil {
		return err
	}
	addresses, err := rig.FreeAddresses(2 * members)
	if err != nil {
		return err
	}
	var cluster []string
	for i := range members {
		cluster = append(cluster, fmt.Sprintf("m%d=https://%s", i, addresses[i]))
	}
	e.configs = nil
	for i := range members {
		name := fmt.Sprintf("m%d", i)
		e.configs = append(e.configs, etcdMember{
			Name: name, Dir: filepath.Join(e.dir, name), Peer: addresses[i], Client: addresses[members+i],
			Cluster: strings.Join(cluster, ","), Cert: cert, Key: key, CA: ca,
		})
	}
	started := make(chan error, members)
	for i := range members {
		go func() { started <- e.restart(ctx, i) }()
	}
	for range members {
		err = errors.Join(err, <-started)
	}
	return err
}

func (e *etcd) restart(ctx context.Context, i int) error {
	config, err := json.Marshal(e.configs[i])
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	p, err := rig.Begin(ctx, rig.Command{
		Args: []string{self, "etcd-member", string(config)}, Log: filepath.Join(e.dir, e.configs[i].Name+".log"),
		Ready: etcdReady, Start: slowly(e.syncDelay),
	})
	if err != nil {
		return err
	}
	e.procs[i] = p
	return nil
}

// certificates makes a CA, and one certificate for members and clients alike.
func (e *etcd) certificates() (cert, key, ca string, err error) {
	cert, key, ca = filepath.Join(e.dir, "cert.pem"), filepath.Join(e.dir, "key.pem"), filepath.Join(e.dir, "ca.pem")
	now := time.Now()
	caTemplate := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", "", err
	}
	caDER, err := x509.CreateCertificate(rand.Reader, caTemplate, caTemplate, &caKey.PublicKey, caKey)
	if err != nil {
		return "", "", "", err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", "", err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "member"}, NotBefore: caTemplate.NotBefore, NotAfter: caTemplate.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, caTemplate, &leafKey.PublicKey, caKey)
	if err != nil {
		return "", "", "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return "", "", "", err
	}
	for path, block := range map[string]*pem.Block{
		ca: {Type: "CERTIFICATE", Bytes: caDER}, cert: {Type: "CERTIFICATE", Bytes: leafDER}, key: {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			return "", "", "", err
		}
	}
	e.tls, err = transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: ca}.ClientConfig()
	if err == nil {
		e.tls.MinVersion = tls.VersionTLS13
	}
	return cert, key, ca, err
}

func (e *etcd) stop() {
	for i, p := range e.procs {
		if p != nil {
			p.Kill()
			e.procs[i] = nil
		}
	}
	_ = os.RemoveAll(e.dir)
}

func (e *etcd) member(i int) *rig.Process { return e.procs[i] }
func (e *etcd) pids() []int               { return rig.PIDsOf(e.procs[:]) }

func (e *etcd) leader(ctx context.Context) (int, error) {
	c, err := e.client(0, 1, 2)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	for {
		for i, m := range e.configs {
			ask, cancel := context.WithTimeout(ctx, time.Second)
			status, err := c.Status(ask, "https://"+m.Client)
			cancel()
			if err == nil && status.Leader != 0 && status.Leader == status.Header.MemberId {
				return i, nil
			}
		}
		if err := rig.Pause(ctx, 20*time.Millisecond); err != nil {
			return 0, fmt.Errorf("etcd has no leader: %w", err)
		}
	}
}

// pause waits for d, or until ctx ends.
func (e *etcd) client(to ...int) (*clientv3.Client, error) {
	var endpoints []string
	for _, i := range to {
		endpoints = append(endpoints, "https://"+e.configs[i].Client)
	}
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, TLS: e.tls, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		MaxCallRecvMsgSize: 256 << 20,
	})
}

func (e *etcd) dial(ctx context.Context, way string, to ...int) (conn, error) {
	if way != unary {
		return nil, fmt.Errorf("etcd has no way %q", way)
	}
	c, err := e.client(to...)
	if err != nil {
		return nil, err
	}
	return etcdConn{c}, nil
}

type etcdConn struct{ c *clientv3.Client }

func (e etcdConn) close() { e.c.Close() }

func (e etcdConn) put(ctx context.Context, p pair) error {
	_, err := e.c.Put(ctx, string(p.key), string(p.value))
	return err
}

func (e etcdConn) putAll(ctx context.Context, pairs []pair) error {
	ops := make([]clientv3.Op, len(pairs))
	for i, p := range pairs {
		ops[i] = clientv3.OpPut(string(p.key), string(p.value))
	}
	_, err := e.c.Txn(ctx).Then(ops...).Commit()
	return err
}

func (e etcdConn) get(ctx context.Context, key []byte, linearizable bool) error {
	var opts []clientv3.OpOption
	if !linearizable {
		opts = append(opts, clientv3.WithSerializable())
	}
	resp, err := e.c.Get(ctx, string(key), opts...)
	if err == nil && len(resp.Kvs) == 0 {
		return fmt.Errorf("%s is not there", key)
	}
	return err
}

func (e etcdConn) watch(ctx context.Context, key []byte, event func([]byte)) error {
	events := e.c.Watch(ctx, string(key), clientv3.WithCreatedNotify())
	select {
	case resp := <-events:
		if err := resp.Err(); err != nil {
			return err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	go func() {
		for resp := range events {
			for _, ev := range resp.Events {
				event(ev.Kv.Value)
			}
		}
	}()
	return nil
}

func (e etcdConn) list(ctx context.Context, prefix []byte) (int, error) {
	total, from, revision := 0, string(prefix), int64(0)
	for {
		resp, err := e.c.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(string(prefix))), clientv3.WithLimit(pageSize), clientv3.WithRev(revision))
		if err != nil {
			return total, err
		}
		total += len(resp.Kvs)
		if !resp.More {
			return total, nil
		}
		if revision == 0 {
			revision = resp.Header.Revision
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

func (e etcdConn) backup(ctx context.Context) (int64, error) {
	r, err := e.c.Snapshot(ctx)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(io.Discard, r)
}
