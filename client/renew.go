package client

import (
	"context"
	"fmt"

	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// Renew has a peer sign another certificate for the client's credentials, with a new key
// that is made here, and puts both into them: connections that are made from then on
// use them, those that are open stay. Nothing is written: see [pki.Credentials.Save]. What
// the cluster says of its CAs is taken over.
func (c *Client) Renew(ctx context.Context, creds *pki.Credentials) error {
	key, csr, err := pki.NewRequest()
	if err != nil {
		return err
	}
	resp, err := c.Access().RenewCertificate(ctx, &holdfastv1.RenewCertificateRequest{Request: csr})
	if err != nil {
		return fmt.Errorf("renew the certificate of %s: %w", creds.Identity(), err)
	}
	return creds.Set(key, resp.GetChain(), resp.GetCa())
}
