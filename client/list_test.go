package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// TestListAllReadsEveryPage: however large a list is, it comes whole, in pages that
// peers take, and with the first page's word on how true it is. One whose revision
// is compacted on the way begins anew, but not for ever.
func TestListAllReadsEveryPage(t *testing.T) {
	for _, tc := range []struct {
		name      string
		limit     int32
		compacted int // how many second pages come too late
		want      string
		asked     string
	}{
		{name: "pages of our size", want: "a b c at 7", asked: "0/5000 1/5000 2/5000"},
		{name: "pages of the caller's size", limit: 2, want: "a b c at 7", asked: "0/2 1/2 2/2"},
		{name: "compacted on the way", compacted: 1, want: "a b c at 7", asked: "0/5000 1/5000 0/5000 1/5000 2/5000"},
		{name: "compacted every time", compacted: 9, want: "out_of_range: compacted", asked: "0/5000 1/5000 0/5000 1/5000 0/5000 1/5000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked []string
			req := &holdfastv1.ListRequest{Limit: tc.limit}
			answer, err := ListAll(t.Context(), req, func(_ context.Context, req *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
				at := len(req.GetContinue())
				asked = append(asked, fmt.Sprintf("%d/%d", at, req.GetLimit()))
				if at == 1 && tc.compacted > 0 {
					tc.compacted--
					return nil, connect.NewError(connect.CodeOutOfRange, "compacted")
				}
				res := &holdfastv1.ListResponse{
					Objects:   []*holdfastv1.Object{{Name: "abc"[at : at+1]}},
					Answer:    &holdfastv1.Answer{Revision: int64(7 + 100*at)},
					Continue:  strings.Repeat("x", at+1),
					Remaining: int64(2 - at),
				}
				if at == 2 {
					res.Continue = ""
				}
				return res, nil
			})
			got := fmt.Sprint(err)
			if err == nil {
				got = ""
				for _, o := range answer.GetObjects() {
					got += o.GetName() + " "
				}
				got += fmt.Sprintf("at %d", answer.GetAnswer().GetRevision())
				if answer.GetContinue() != "" || answer.GetRemaining() != 0 {
					t.Errorf("continue %q, remaining %d: want none, all is there", answer.GetContinue(), answer.GetRemaining())
				}
			}
			if got != tc.want || strings.Join(asked, " ") != tc.asked {
				t.Errorf("got %q by asking %q, want %q by %q", got, strings.Join(asked, " "), tc.want, tc.asked)
			}
			if req.GetLimit() != tc.limit || req.GetContinue() != "" {
				t.Errorf("the caller's request was changed: %v", req)
			}
		})
	}

	refused := errors.New("refused")
	calls := 0
	_, err := ListAll(t.Context(), &holdfastv1.ListRequest{}, func(context.Context, *holdfastv1.ListRequest) (*holdfastv1.ListResponse, error) {
		calls++
		return nil, refused
	})
	if !errors.Is(err, refused) || calls != 1 {
		t.Errorf("%d calls, %v: want the error of the first", calls, err)
	}
}
