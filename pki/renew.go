package pki

import (
	"context"
	"time"
)

const (
	// renewLook is the longest time between two looks at the clock: the wall's may be
	// set, and a machine that slept wakes up later than its timers think.
	renewLook = time.Hour
	// renewRetry is the pause after an attempt that failed.
	renewRetry = time.Minute
)

// KeepRenewed calls renew whenever the credentials are due, until ctx ends: renew
// replaces them (see [Credentials.Set]) and saves them. After an error it is called
// again a minute later; failed is told, and may be nil. Handshakes use the new ones from
// then on, and no connection is dropped. It blocks.
func (c *Credentials) KeepRenewed(ctx context.Context, renew func(context.Context) error, failed func(error)) {
	for {
		wait := min(time.Until(c.RenewAfter()), renewLook)
		if wait <= 0 {
			wait = renewRetry
			err := renew(ctx)
			if err == nil && time.Now().Before(c.RenewAfter()) {
				continue
			}
			if err != nil && failed != nil && ctx.Err() == nil {
				failed(err)
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// LateAfter returns the moment from which a certificate that was not renewed is a
// reason for alarm: an eighth of its life is left.
func (c *Credentials) LateAfter() time.Time {
	leaf := c.current.Load().leaf
	return leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 8)
}
