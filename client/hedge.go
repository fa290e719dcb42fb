package client

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-io/holdfast/proto/holdfast/store/v1/storev1connect"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
)

// hedged are the reads that a second peer is asked as well when the first does
// not answer soon: those that change nothing and cost little.
var hedged = map[string]bool{
	holdfastv1connect.ObjectServiceGetProcedure:    true,
	holdfastv1connect.ObjectServiceListProcedure:   true,
	holdfastv1connect.ObjectServiceKindsProcedure:  true,
	holdfastv1connect.ObjectServiceSchemaProcedure: true,
	storev1connect.StoreServiceRangeProcedure:      true,
}

// hedge makes an attempt and, when that has no answer after ReadHedge, another
// one at another peer; the first good answer counts, and the other attempt ends.
// Known from "The Tail at Scale" (Dean, Barroso 2013). What it returns of two
// failures is the first attempt's.
func (u *unaryCall) hedge(res any) (*attemptInfo, error) {
	message, ok := res.(proto.Message)
	if !ok {
		info := new(attemptInfo)
		return info, u.attempt(u.ctx, info, res)
	}
	ctx, cancel := context.WithCancel(u.ctx)
	defer cancel() // the slower one
	type outcome struct {
		info *attemptInfo
		res  proto.Message
		err  error
	}
	outcomes := make(chan outcome, 2)
	start := func(info *attemptInfo) {
		// Made here: message is filled in when one attempt has its answer, and the other
		// may not have begun by then.
		res := message.ProtoReflect().New().Interface()
		go func() {
			// A call's headers and sizes are kept in its context: each attempt needs its own.
			own, _ := connect.NewClientContext(ctx)
			err := u.attempt(own, info, res)
			outcomes <- outcome{info, res, err}
		}()
	}
	first := new(attemptInfo)
	start(first)
	pending := 1
	timer := time.NewTimer(u.c.cfg.ReadHedge)
	defer timer.Stop()
	var failed *outcome // of the first attempt, while the second goes on
	for {
		select {
		case <-timer.C:
			slow := first.conn.Load()
			if slow == nil || !u.c.anyBut(map[string]bool{slow.address: true}) {
				continue // it is still being dialed, which is hedged too; or there is nobody else
			}
			start(&attemptInfo{avoid: slow.address})
			pending++
		case o := <-outcomes:
			pending--
			if o.err == nil {
				proto.Reset(message)
				proto.Merge(message, o.res)
				return o.info, nil
			}
			if o.info == first || failed == nil {
				failed = &o
			}
			// A verdict, such as "not found", is an answer too; a failure to reach the
			// peer is not, while another attempt is under way.
			if _, transport := errors.AsType[*transportError](o.err); pending == 0 || !transport && o.info == first {
				return failed.info, failed.err
			}
		}
	}
}
