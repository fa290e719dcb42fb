package agent

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	corev1 "k8s.io/api/core/v1"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

const (
	// tokenTimeout is longer than a peer waits for a leader (10 s).
	tokenTimeout = 15 * time.Second
	// tokenAgeMax is when a token is replaced at the latest, however long it is good.
	tokenAgeMax = 24 * time.Hour
	// tokenSeconds is how long a token is to be good if its volume does not say.
	tokenSeconds = 3600
)

// errOldToken: a token that is due could not be replaced. The pod has the old one.
var errOldToken = errors.New("it is due to be replaced")

// tokenKind is what tells the tokens of one pod apart.
type tokenKind struct {
	audience string
	seconds  int64
}

func kindOfToken(p *corev1.ServiceAccountTokenProjection) tokenKind {
	k := tokenKind{audience: p.Audience, seconds: tokenSeconds}
	if p.ExpirationSeconds != nil {
		k.seconds = *p.ExpirationSeconds
	}
	return k
}

// podToken is a token of a pod's service account.
type podToken struct {
	text            string
	issued, expires time.Time
}

// readToken reads when a token was made and when it ends. It checks nothing: that is for
// those to whom the token is shown.
func readToken(text string) (podToken, error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return podToken{}, fmt.Errorf("a token has three parts, this has %d", len(parts))
	}
	data, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return podToken{}, fmt.Errorf("read a token: %w", err)
	}
	var claims struct{ Iat, Exp int64 }
	if err := json.Unmarshal(data, &claims); err != nil {
		return podToken{}, fmt.Errorf("read a token: %w", err)
	}
	if claims.Exp <= claims.Iat {
		return podToken{}, fmt.Errorf("the token ends %d s after it begins", claims.Exp-claims.Iat)
	}
	return podToken{text: text, issued: time.Unix(claims.Iat, 0), expires: time.Unix(claims.Exp, 0)}, nil
}

// due is when the token is to be replaced: as in Kubernetes after four fifths of its life, or
// a day.
func (t podToken) due() time.Time {
	return t.issued.Add(min(t.expires.Sub(t.issued)*4/5, tokenAgeMax))
}

// tokensOf returns the tokens that a pod's volumes show, each with the volume.
func tokensOf(pod *corev1.Pod) map[*corev1.ServiceAccountTokenProjection]string {
	found := map[*corev1.ServiceAccountTokenProjection]string{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Projected == nil {
			continue
		}
		for j := range v.Projected.Sources {
			if p := v.Projected.Sources[j].ServiceAccountToken; p != nil {
				found[p] = v.Name
			}
		}
	}
	return found
}

// heldTokens are the tokens that a worker has for its pod.
type heldTokens map[tokenKind]podToken

// version tells one token from the next; "due": there is to be another.
func (h heldTokens) version(p *corev1.ServiceAccountTokenProjection, now time.Time) string {
	t, ok := h[kindOfToken(p)]
	if !ok || !now.Before(t.due()) {
		return "due"
	}
	return t.expires.UTC().Format(time.RFC3339)
}

// nextDue returns when the first of a pod's tokens is to be replaced; zero: it has none.
func (h heldTokens) nextDue() time.Time {
	var first time.Time
	for _, t := range h {
		if due := t.due(); first.IsZero() || due.Before(first) {
			first = due
		}
	}
	return first
}

// renewTokens gets the tokens that the pod's volumes are to show and that the worker does not
// have, or that are due. What a life before of this agent has left in the volume is taken up
// without asking a peer. An error leaves those that the worker has, and matches errOldToken if it has
// one to show.
func (w *worker) renewTokens(ctx context.Context, pod *corev1.Pod) error {
	for p, volumeName := range tokensOf(pod) {
		kind, now := kindOfToken(p), time.Now()
		if w.heldTokens().version(p, now) != "due" {
			continue
		}
		if _, held := w.heldTokens()[kind]; !held {
			if data, err := w.p.volumes.Shown(pod, volumeName, p.Path); err == nil {
				if t, err := readToken(string(data)); err == nil {
					w.holdToken(kind, t)
				}
			}
			if w.heldTokens().version(p, now) != "due" {
				continue
			}
		}
		ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
		t, err := w.p.issue(ctx, pod, kind)
		cancel()
		if _, held := w.heldTokens()[kind]; held && err != nil {
			err = fmt.Errorf("%w: %w", errOldToken, err)
		}
		if err != nil {
			return fmt.Errorf("token of service account %s for %s: %w", accountOf(pod), cmp.Or(kind.audience, "the cluster's API"), err)
		}
		w.holdToken(kind, t)
	}
	return nil
}

func accountOf(pod *corev1.Pod) string {
	return cmp.Or(pod.Spec.ServiceAccountName, "default")
}

// issueToken asks a peer for a token that is bound to the pod.
func (a *Agent) issueToken(ctx context.Context, pod *corev1.Pod, kind tokenKind) (podToken, error) {
	req := &holdfastv1.IssueTokenRequest{
		Namespace: pod.Namespace, ServiceAccount: accountOf(pod), Lifetime: durationpb.New(time.Duration(kind.seconds) * time.Second),
		Binding: &holdfastv1.TokenBinding{Kind: "Pod", Name: pod.Name, Uid: string(pod.UID)},
	}
	if kind.audience != "" {
		req.Audiences = []string{kind.audience}
	}
	asked := time.Now()
	res, err := a.cfg.Client.Access().IssueToken(ctx, req)
	if err != nil {
		return podToken{}, err
	}
	t, err := readToken(res.GetToken())
	if err != nil {
		return podToken{}, err
	}
	// By this node's clock, whatever the peer's says.
	t.expires, t.issued = asked.Add(t.expires.Sub(t.issued)), asked
	return t, nil
}

func (w *worker) heldTokens() heldTokens {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tokens
}

func (w *worker) holdToken(kind tokenKind, t podToken) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := heldTokens{kind: t}
	for k, held := range w.tokens {
		if k != kind {
			next[k] = held
		}
	}
	w.tokens = next
}
