package peer

import (
	"context"
	"fmt"
	"time"
)

// caWarning is how long before the end of the cluster's CA its peers begin to say so.
const caWarning = 90 * 24 * time.Hour

// keepCertificate renews the peer's own certificate: it has the CA's key, and needs
// nobody for it.
func (p *Peer) keepCertificate(ctx context.Context) error {
	p.creds.KeepRenewed(ctx, func(context.Context) error {
		if err := p.creds.Renew(p.ca); err != nil {
			return err
		}
		_, until := p.creds.Validity()
		p.log.Info("certificate renewed", "expires", until)
		return p.creds.Save(p.pkiDir())
	}, func(err error) { p.log.Error("certificate not renewed, trying again", "err", err) })
	return nil
}

// certificateAlarms says which certificates come to their end without anything being
// done about it, as alarms of the store are written: "name: what, and what to do".
func (p *Peer) certificateAlarms(now time.Time) (alarms []string) {
	if end := p.ca.Expires(); now.After(end.Add(-caWarning)) {
		alarms = append(alarms, fmt.Sprintf("ca-expires: the cluster's CA ends at %s, %s from now, and all certificates with it: every machine must have joined a cluster with a new one by then",
			end.UTC().Format(time.DateOnly), days(end.Sub(now))))
	}
	if _, end := p.creds.Validity(); now.After(p.creds.LateAfter()) {
		alarms = append(alarms, fmt.Sprintf("certificate-expires: the certificate of peer %s ends at %s and was not renewed: its log says why; a full or read-only disk is likely",
			p.rec.ID, end.UTC().Format(time.RFC3339)))
	}
	return alarms
}

func days(d time.Duration) string { return fmt.Sprintf("%d days", int(d.Hours()/24)) }
