package main

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-io/holdfast/client"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	// ownRenewTimeout bounds the renewal of a person's certificate, which nobody has
	// asked for: the command that was typed goes on without.
	ownRenewTimeout = 3 * time.Second
	// ownWarning is how long before its end a person is told of a certificate that could
	// not be renewed.
	ownWarning = 14 * 24 * time.Hour
)

// renewOwn has the context's certificate renewed once about two thirds of its life are
// over, and writes it into the file of contexts. Who uses the cluster now and then never
// sees one expire; who does not is told how long it is good yet. It returns whether the
// file has changed.
func (a *app) renewOwn(c client.Context) bool {
	creds, err := c.Credentials()
	if err != nil || time.Now().Before(creds.RenewAfter()) || creds.CheckTime(time.Now()) != nil {
		return false // what is wrong, the call itself says
	}
	if err = renewContext(c, creds); err == nil {
		return true
	}
	if _, end := creds.Validity(); time.Until(end) < ownWarning {
		a.note("The certificate of context %s ends at %s and could not be renewed (%v).", c.Name, end.UTC().Format(time.RFC3339), err)
	}
	return false
}

func renewContext(c client.Context, creds *pki.Credentials) error {
	r, err := remoteOf(c, nil, nil)
	if err != nil {
		return err
	}
	defer r.close()
	ctx, cancel := context.WithTimeout(context.Background(), ownRenewTimeout)
	defer cancel()
	key, request, err := pki.NewRequest()
	if err != nil {
		return err
	}
	resp, err := r.access.RenewCertificate(ctx, &holdfastv1.RenewCertificateRequest{Request: request})
	if err != nil {
		return err
	}
	if err := creds.Set(key, resp.GetChain(), resp.GetCa()); err != nil {
		return err
	}
	next, err := client.NewContext(c.Name, c.Peers, creds)
	if err != nil {
		return err
	}
	return client.UpdateConfig("", func(config *client.ConfigFile) error {
		for i := range config.Contexts {
			if kept := &config.Contexts[i]; kept.Name == c.Name && kept.Cluster == c.Cluster && kept.Cert == c.Cert {
				kept.CA, kept.Cert, kept.Key = next.CA, next.Cert, next.Key
				return nil
			}
		}
		return fmt.Errorf("context %s has changed meanwhile", c.Name)
	})
}
