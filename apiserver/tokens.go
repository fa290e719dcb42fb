package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/proto/holdfast/v1/holdfastv1connect"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// How long a token of a service account is good.
	tokenLifeDefault = time.Hour
	tokenLifeMin     = 10 * time.Minute
	tokenLifeMax     = 90 * 24 * time.Hour

	// deletedLeeway is how long a token outlives the end that the deletion of what it is
	// bound to has set: a pod that is stopped may still say goodbye.
	deletedLeeway = time.Minute
	// tokenCutOff is how long a peer that is cut off from the quorum goes by what it
	// knows of service accounts: one that was deleted meanwhile must not act for longer.
	tokenCutOff = time.Minute
	// tokenCheckTimeout bounds the wait for a quorum in which a token is checked.
	tokenCheckTimeout = 5 * time.Second
)

// roleServiceAccount is the role of who comes with a token of a service account. No
// certificate has it.
const roleServiceAccount pki.Role = "serviceaccount"

// What Kubernetes says of a token's holder besides.
const (
	extraCredential = "authentication.kubernetes.io/credential-id"
	extraPodName    = "authentication.kubernetes.io/pod-name"
	extraPodUID     = "authentication.kubernetes.io/pod-uid"
	extraNodeName   = "authentication.kubernetes.io/node-name"
	extraNodeUID    = "authentication.kubernetes.io/node-uid"
)

// TokenAPI is the part of AccessService that makes and checks tokens, for callers in
// this process, as ObjectAPI is.
type TokenAPI interface {
	IssueToken(context.Context, *holdfastv1.IssueTokenRequest) (*holdfastv1.IssueTokenResponse, error)
	ReviewToken(context.Context, *holdfastv1.ReviewTokenRequest) (*holdfastv1.ReviewTokenResponse, error)
}

// Tokens returns TokenAPI.
func (s *Server) Tokens() TokenAPI { return inProcess{s} }

func (p inProcess) IssueToken(ctx context.Context, req *holdfastv1.IssueTokenRequest) (*holdfastv1.IssueTokenResponse, error) {
	return callInProcess[*holdfastv1.IssueTokenResponse](ctx, p.s, holdfastv1connect.AccessServiceIssueTokenProcedure, req)
}

func (p inProcess) ReviewToken(ctx context.Context, req *holdfastv1.ReviewTokenRequest) (*holdfastv1.ReviewTokenResponse, error) {
	return callInProcess[*holdfastv1.ReviewTokenResponse](ctx, p.s, holdfastv1connect.AccessServiceReviewTokenProcedure, req)
}

func errNoTokenKey() error {
	return connect.NewError(connect.CodeFailedPrecondition, "this peer has no key of the cluster's CA, with which tokens are signed: ask another one")
}

// IssueToken makes a token. Nothing of it is kept.
func (s accessService) IssueToken(ctx context.Context, req *holdfastv1.IssueTokenRequest) (*holdfastv1.IssueTokenResponse, error) {
	if req.GetNamespace() == "" {
		req.Namespace = metav1.NamespaceDefault
	}
	if err := s.mayIssue(ctx, req); err != nil {
		return nil, err
	}
	if s.tokens == nil {
		return nil, errNoTokenKey()
	}
	if req.GetServiceAccount() == "" {
		return nil, badRequest("service_account", "is empty: say whose token it will be")
	}
	life := tokenLifeDefault
	if req.GetLifetime() != nil {
		life = req.GetLifetime().AsDuration()
	}
	if life < tokenLifeMin {
		return nil, badRequest("lifetime", "is %v: a token is good for %v at least", life, tokenLifeMin)
	}
	shortened := life > tokenLifeMax
	life = min(life, tokenLifeMax)
	audiences := req.GetAudiences()
	if slices.Contains(audiences, "") {
		return nil, badRequest("audiences", "one of them is empty")
	}
	if len(audiences) == 0 {
		audiences = []string{pki.ServiceAccountIssuer}
	}
	view, err := s.sync(ctx)
	if err != nil {
		return nil, err
	}
	account, err := living[*corev1.ServiceAccount](view, req.GetNamespace(), req.GetServiceAccount(), "")
	if err != nil {
		return nil, err
	}
	now := s.cfg.Now().Truncate(time.Second)
	token := pki.ServiceAccountToken{
		ID: s.cfg.NewUID(), Namespace: account.Namespace, ServiceAccount: pki.TokenObject{Name: account.Name, UID: string(account.UID)},
		Audiences: audiences, Issued: now, Expires: now.Add(life),
	}
	if err := bind(view, req.GetBinding(), &token); err != nil {
		return nil, err
	}
	if err := ownPod(ctx, token); err != nil {
		return nil, err
	}
	text, err := s.tokens.Sign(token)
	if err != nil {
		return nil, err
	}
	answer := s.answerAt(view.Revision())
	if shortened {
		answer.Warnings = append(answer.Warnings, fmt.Sprintf("the token is good for %v, no longer", tokenLifeMax))
	}
	return &holdfastv1.IssueTokenResponse{Token: text, Expires: timestamppb.New(token.Expires), Answer: answer}, nil
}

// mayIssue returns nil if the caller may have a token of the service account. An agent
// may, of the pods on its node; which these are, ownPod sees.
func (s *Server) mayIssue(ctx context.Context, req *holdfastv1.IssueTokenRequest) error {
	if id, ok := identityFrom(ctx); ok && id.Role == pki.RoleNode {
		if req.GetBinding().GetKind() == "Pod" {
			return nil
		}
		return connect.NewError(connect.CodePermissionDenied, "a node gets only tokens that are bound to its pods")
	}
	return s.Authorize(ctx, Attributes{
		Verb: "create", Resource: "serviceaccounts", Subresource: "token", Namespace: req.GetNamespace(), Name: req.GetServiceAccount(),
	})
}

// ownPod returns PermissionDenied when a node asks for a token of another's pod.
func ownPod(ctx context.Context, token pki.ServiceAccountToken) error {
	id, ok := identityFrom(ctx)
	if !ok || id.Role != pki.RoleNode || token.Pod != nil && token.Node != nil && token.Node.Name == id.Name {
		return nil
	}
	return connect.Errorf(connect.CodePermissionDenied, "pod %s/%s does not run on node %s", token.Namespace, token.Pod.Name, id.Name)
}

// bind binds a token to an object of view.
func bind(view raftstore.View, to *holdfastv1.TokenBinding, token *pki.ServiceAccountToken) error {
	if to == nil {
		return nil
	}
	if to.GetName() == "" {
		return badRequest("binding.name", "is empty: name the %s", to.GetKind())
	}
	switch to.GetKind() {
	case "Pod":
		pod, err := living[*corev1.Pod](view, token.Namespace, to.GetName(), to.GetUid())
		if err != nil {
			return err
		}
		// A pod that names none runs as the namespace's default one.
		if name := pod.Spec.ServiceAccountName; name != token.ServiceAccount.Name && (name != "" || token.ServiceAccount.Name != "default") {
			return badRequest("binding", "pod %s/%s runs as service account %q, not as %q", pod.Namespace, pod.Name, name, token.ServiceAccount.Name)
		}
		token.Pod = tokenObject(pod)
		if pod.Spec.NodeName != "" {
			token.Node = &pki.TokenObject{Name: pod.Spec.NodeName}
			if node, ok := object.Get[*corev1.Node](view, objectKey[*corev1.Node]("", pod.Spec.NodeName)); ok {
				token.Node.UID = string(node.UID)
			}
		}
	case "Secret":
		secret, err := living[*corev1.Secret](view, token.Namespace, to.GetName(), to.GetUid())
		if err != nil {
			return err
		}
		token.Secret = tokenObject(secret)
	case "Node":
		node, err := living[*corev1.Node](view, "", to.GetName(), to.GetUid())
		if err != nil {
			return err
		}
		token.Node = tokenObject(node)
	default:
		return badRequest("binding.kind", "is %q: a token can be bound to a Pod, a Secret or a Node", to.GetKind())
	}
	return nil
}

func tokenObject(obj object.Object) *pki.TokenObject {
	return &pki.TokenObject{Name: obj.GetName(), UID: string(obj.GetUID())}
}

func objectKey[T object.Object](namespace, name string) object.Key {
	var none T
	return object.ResourceOf(none).Key(namespace, name)
}

// living returns an object that is there to stay, and has the uid if one is given.
func living[T object.Object](view raftstore.View, namespace, name, uid string) (T, error) {
	var none T
	r := object.ResourceOf(none)
	obj, ok := object.Get[T](view, r.Key(namespace, name))
	switch {
	case !ok:
		return none, notFound(r, namespace, name)
	case uid != "" && uid != string(obj.GetUID()):
		return none, replacedSince(obj, uid)
	case object.Deleting(obj):
		return none, connect.Errorf(connect.CodeFailedPrecondition, "%s is being deleted", object.Title(obj))
	}
	return obj, nil
}

// ReviewToken says whose a token is.
func (s accessService) ReviewToken(ctx context.Context, req *holdfastv1.ReviewTokenRequest) (*holdfastv1.ReviewTokenResponse, error) {
	if err := s.Authorize(ctx, Attributes{Verb: "create", Group: "authentication.k8s.io", Resource: "tokenreviews"}); err != nil {
		return nil, err
	}
	if s.tokens == nil {
		return nil, errNoTokenKey()
	}
	asked := req.GetAudiences()
	if len(asked) == 0 {
		asked = []string{pki.ServiceAccountIssuer}
	}
	token, err := s.checkServiceToken(ctx, req.GetToken(), asked)
	if connect.CodeOf(err) == connect.CodeUnauthenticated && err != nil {
		return &holdfastv1.ReviewTokenResponse{Reason: messageOf(err)}, nil
	}
	if err != nil {
		return nil, err
	}
	caller := callerOf(token)
	resp := &holdfastv1.ReviewTokenResponse{
		Authenticated: true, Name: caller.Name, Uid: caller.UID, Groups: caller.Groups, Audiences: both(asked, token.Audiences),
		Extra: make(map[string]*holdfastv1.ReviewTokenResponse_Values),
	}
	for name, values := range caller.Extra {
		resp.Extra[name] = &holdfastv1.ReviewTokenResponse_Values{Values: values}
	}
	return resp, nil
}

// both returns what is in a and in b.
func both(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(word string) bool { return !slices.Contains(b, word) })
}

// checkServiceToken reads a token and sees whether it is good now, for one of the
// audiences: Unauthenticated with the reason if not, Unavailable if this peer cannot
// tell. What this peer has of the state is good enough for a yes, as long as it hears
// from the quorum: no more than a moment passes until it hears of a deletion. A no is
// only believed of the newest state, since the token may be newer than what is here.
func (s *Server) checkServiceToken(ctx context.Context, text string, audiences []string) (pki.ServiceAccountToken, error) {
	token, err := s.tokens.Verify(text, s.cfg.Now())
	if err != nil {
		return token, connect.NewError(connect.CodeUnauthenticated, err.Error()).WithCause(err)
	}
	if len(both(audiences, token.Audiences)) == 0 {
		return token, connect.Errorf(connect.CodeUnauthenticated, "the token is not for %s: it is for %s", strings.Join(audiences, " or "), strings.Join(token.Audiences, " and "))
	}
	if s.store.CutOff() < tokenCutOff && s.revoked(s.store.View(), token) == "" {
		return token, nil
	}
	ctx, cancel := context.WithTimeout(ctx, tokenCheckTimeout)
	defer cancel()
	view, err := s.sync(ctx)
	if err != nil {
		return token, connect.NewError(connect.CodeUnavailable, "whether the token still counts cannot be told: "+messageOf(err)).WithCause(err)
	}
	if why := s.revoked(view, token); why != "" {
		return token, connect.NewError(connect.CodeUnauthenticated, "the token counts no more: "+why)
	}
	return token, nil
}

// revoked returns why a token counts no more, "" if it does.
func (s *Server) revoked(view raftstore.View, token pki.ServiceAccountToken) string {
	if why := gone[*corev1.ServiceAccount](s, view, token.Namespace, token.ServiceAccount); why != "" {
		return why
	}
	switch {
	case token.Pod != nil: // its node goes with it
		return gone[*corev1.Pod](s, view, token.Namespace, *token.Pod)
	case token.Secret != nil:
		return gone[*corev1.Secret](s, view, token.Namespace, *token.Secret)
	case token.Node != nil:
		return gone[*corev1.Node](s, view, "", *token.Node)
	}
	return ""
}

// gone returns what has become of an object, "" if it is there.
func gone[T object.Object](s *Server, view raftstore.View, namespace string, want pki.TokenObject) string {
	obj, ok := object.Get[T](view, objectKey[T](namespace, want.Name))
	if ok && string(obj.GetUID()) == want.UID {
		if at := obj.GetDeletionTimestamp(); at == nil || !at.Add(deletedLeeway).Before(s.cfg.Now()) {
			return ""
		}
	}
	var none T
	return object.ResourceOf(none).Kind + " " + joinName(namespace, want.Name) + " has been deleted"
}

// callerOf is who comes with a token.
func callerOf(token pki.ServiceAccountToken) Caller {
	c := Caller{
		Name: token.Subject(), UID: token.ServiceAccount.UID,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + token.Namespace, "system:authenticated"},
		Extra:  map[string][]string{extraCredential: {"JTI=" + token.ID}},
	}
	if token.Pod != nil {
		c.Extra[extraPodName], c.Extra[extraPodUID] = []string{token.Pod.Name}, []string{token.Pod.UID}
	}
	if token.Node != nil {
		c.Extra[extraNodeName] = []string{token.Node.Name}
		if token.Node.UID != "" {
			c.Extra[extraNodeUID] = []string{token.Node.UID}
		}
	}
	return c
}

type (
	callerKey  struct{} // Caller: whoever has no certificate
	refusedKey struct{} // error: why a token is not good
)

// identifyBearer returns ctx with the identity of the token that a request brings, or
// with why it is none.
func (s *Server) identifyBearer(ctx context.Context, header http.Header) context.Context {
	scheme, text, _ := strings.Cut(header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || s.tokens == nil {
		return ctx
	}
	token, err := s.checkServiceToken(ctx, strings.TrimSpace(text), []string{pki.ServiceAccountIssuer})
	if err != nil {
		return context.WithValue(ctx, refusedKey{}, err)
	}
	caller := callerOf(token)
	id := pki.Identity{Cluster: s.cfg.ClusterID, Role: roleServiceAccount, Name: token.Namespace + ":" + token.ServiceAccount.Name}
	ctx = context.WithValue(ctx, recheckKey{}, func(ctx context.Context) error {
		_, err := s.checkServiceToken(ctx, strings.TrimSpace(text), []string{pki.ServiceAccountIssuer})
		return err
	})
	return context.WithValue(withIdentity(ctx, id), callerKey{}, caller)
}

// Stranger returns the error for a caller of ctx who is nobody that this cluster knows:
// Unauthenticated with what he lacks, or Unavailable if that cannot be told now. Nil
// for others.
func Stranger(ctx context.Context) error {
	if _, ok := identityFrom(ctx); ok {
		return nil
	}
	if err, ok := ctx.Value(refusedKey{}).(error); ok {
		return err
	}
	return connect.NewError(connect.CodeUnauthenticated,
		"this call needs a client certificate of this cluster: use a context that `holdfast` made, or join with a token")
}

// messageOf returns an error's words, without its code.
func messageOf(err error) string {
	if coded, ok := err.(*connect.Error); ok {
		return coded.Message()
	}
	return err.Error()
}
