package apiserver

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	tokenPrefix = "holdfast/tokens/"
	// keepTokens is how long a token that is good no more is kept, so that who comes with
	// it is told why.
	keepTokens = 30 * time.Minute
	// maxTokenUses bounds how many machines may join with one token that says how many.
	maxTokenUses = 10_000
	// leastTokenID is how much of a token's id names it.
	leastTokenID = 6
)

// tokenRecord is what the store keeps of a token, under tokenPrefix and its id.
type tokenRecord struct {
	Hash    []byte    `json:"hash"` // of the secret
	Role    pki.Role  `json:"role"`
	Expires time.Time `json:"expires"`
	Creator string    `json:"creator"`
	Uses    uint32    `json:"uses,omitempty"` // how many machines may join; 0: any number
	Used    uint32    `json:"used,omitempty"` // how many have
	// Revoked says by whom it was revoked, "" if it was not, and when.
	Revoked   string    `json:"revoked,omitempty"`
	RevokedAt time.Time `json:"revokedAt,omitzero"`
}

// state returns in a word why the token is good no more, "" if it is good.
func (t tokenRecord) state(now time.Time) string {
	switch {
	case t.Revoked != "":
		return "revoked"
	case !now.Before(t.Expires):
		return "expired"
	case t.Uses > 0 && t.Used >= t.Uses:
		return "used up"
	}
	return ""
}

// kept reports whether the token's record is of use yet.
func (t tokenRecord) kept(now time.Time) bool { return now.Before(t.Expires.Add(keepTokens)) }

// refusal returns why who holds the token may not join as role with it, nil if he may.
// He has shown its secret, so he may know; strangers are told nothing, see errToken.
func (t tokenRecord) refusal(role pki.Role, now time.Time) error {
	advice := "; make a new one with `holdfast token create --role " + string(role) + "`"
	switch t.state(now) {
	case "revoked":
		return connect.Errorf(connect.CodeUnauthenticated, "the token was revoked by %s at %s%s", t.Revoked, stamp(t.RevokedAt), advice)
	case "expired":
		return connect.Errorf(connect.CodeUnauthenticated, "the token has expired at %s%s", stamp(t.Expires), advice)
	case "used up":
		return connect.Errorf(connect.CodeUnauthenticated, "the token is used up: %d of %d machines have joined with it%s", t.Used, t.Uses, advice)
	}
	if t.Role != role {
		return connect.Errorf(connect.CodeUnauthenticated, "the token is for a %s, not for a %s%s", t.Role, role, advice)
	}
	return nil
}

// tokenIn returns the token that a credential, "id.secret", is of: errToken if there is
// none, or the secret is another's.
func tokenIn(view raftstore.View, credential string) (id string, token tokenRecord, revision int64, err error) {
	id, secret, err := pki.ParseTokenCredential(credential)
	if err != nil {
		return "", token, 0, errToken()
	}
	kv, ok := view.Get(tokenPrefix + id)
	if ok {
		if err := json.Unmarshal(kv.Value, &token); err != nil {
			return "", token, 0, err
		}
	}
	// Looked at in any case, in constant time: whether there is such a token takes no
	// time to tell.
	if right := pki.CheckHash(secret, token.Hash); !right || !ok {
		return "", token, 0, errToken()
	}
	return id, token, kv.Mod, nil
}

// ListTokens shows the tokens that are kept.
func (s clusterService) ListTokens(ctx context.Context, _ *holdfastv1.ListTokensRequest) (*holdfastv1.ListTokensResponse, error) {
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	resp := &holdfastv1.ListTokensResponse{}
	for kv := range view.Prefix(tokenPrefix) {
		var t tokenRecord
		if err := json.Unmarshal(kv.Value, &t); err != nil {
			return nil, err
		}
		role := holdfastv1.Role_ROLE_NODE
		if t.Role == pki.RolePeer {
			role = holdfastv1.Role_ROLE_PEER
		}
		resp.Tokens = append(resp.Tokens, &holdfastv1.TokenInfo{
			Id: strings.TrimPrefix(kv.Key, tokenPrefix), Role: role, ExpiresAt: timestamppb.New(t.Expires), Used: t.Used, Uses: t.Uses,
			Creator: t.Creator, State: t.state(s.cfg.Now()),
		})
	}
	slices.SortStableFunc(resp.Tokens, func(a, b *holdfastv1.TokenInfo) int {
		return cmp.Or(a.GetExpiresAt().AsTime().Compare(b.GetExpiresAt().AsTime()), strings.Compare(a.GetId(), b.GetId()))
	})
	return resp, nil
}

// RevokeToken makes a token good for nothing.
func (s clusterService) RevokeToken(ctx context.Context, req *holdfastv1.RevokeTokenRequest) (*holdfastv1.RevokeTokenResponse, error) {
	if len(req.GetId()) < leastTokenID || strings.ContainsAny(req.GetId(), "./") {
		return nil, badRequest("id", "want the token's id, or its first characters, %d at least: `holdfast token list` shows them", leastTokenID)
	}
	var id string
	_, err := s.transact(ctx, "revoke token", "revoke token", false, func(view raftstore.View) (change, error) {
		var c change
		var found []raftstore.KeyValue
		for kv := range view.Prefix(tokenPrefix + req.GetId()) {
			found = append(found, kv)
		}
		switch {
		case len(found) == 0:
			return c, connect.Errorf(connect.CodeNotFound, "no token has an id that begins with %s", req.GetId())
		case len(found) > 1:
			return c, connect.Errorf(connect.CodeFailedPrecondition, "%d tokens have an id that begins with %s: give more of it", len(found), req.GetId())
		}
		var t tokenRecord
		if err := json.Unmarshal(found[0].Value, &t); err != nil {
			return c, err
		}
		id = strings.TrimPrefix(found[0].Key, tokenPrefix)
		if t.Revoked != "" {
			return c, nil
		}
		t.Revoked, t.RevokedAt = actor(ctx), s.cfg.Now().UTC()
		data, err := json.Marshal(t)
		c.putRaw(found[0].Key, data, found[0].Mod)
		return c, err
	})
	if err != nil {
		return nil, err
	}
	s.log.Info("token revoked", "token", id, "caller", actor(ctx))
	return &holdfastv1.RevokeTokenResponse{Id: id}, nil
}
