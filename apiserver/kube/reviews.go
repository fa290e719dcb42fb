package kube

import (
	"errors"
	"net/http"

	"connectrpc.com/connect/v2"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/apiserver"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// reviews are the questions that are asked by creating something which is not
// kept, by group and plural. All are of version v1.
var reviews = map[string]func(*call) error{
	"authentication.k8s.io/selfsubjectreviews":       (*call).whoAmI,
	"authentication.k8s.io/tokenreviews":             (*call).tokenReview,
	"authorization.k8s.io/selfsubjectaccessreviews":  (*call).selfAccessReview,
	"authorization.k8s.io/selfsubjectrulesreviews":   (*call).selfRulesReview,
	"authorization.k8s.io/subjectaccessreviews":      (*call).accessReview,
	"authorization.k8s.io/localsubjectaccessreviews": (*call).localAccessReview,
}

func (c *call) whoAmI() error {
	review := &authenticationv1.SelfSubjectReview{}
	if err := c.decodeInto(review, "SelfSubjectReview"); err != nil {
		return err
	}
	caller, _ := apiserver.CallerFrom(c.r.Context())
	review.TypeMeta = metav1.TypeMeta{Kind: "SelfSubjectReview", APIVersion: authenticationv1.SchemeGroupVersion.String()}
	review.CreationTimestamp = metav1.NewTime(c.now())
	review.Status.UserInfo = userInfo(caller)
	return c.structure(http.StatusCreated, review)
}

// tokenReview says whose a token is.
func (c *call) tokenReview() error {
	review := &authenticationv1.TokenReview{}
	if err := c.decodeInto(review, "TokenReview"); err != nil {
		return err
	}
	resp, err := c.cfg.Tokens.ReviewToken(c.r.Context(), &holdfastv1.ReviewTokenRequest{Token: review.Spec.Token, Audiences: review.Spec.Audiences})
	if err != nil {
		return c.failed(err)
	}
	review.TypeMeta = metav1.TypeMeta{Kind: "TokenReview", APIVersion: authenticationv1.SchemeGroupVersion.String()}
	review.Status = authenticationv1.TokenReviewStatus{Authenticated: resp.GetAuthenticated(), Error: resp.GetReason(), Audiences: resp.GetAudiences()}
	if resp.GetAuthenticated() {
		extra := make(map[string][]string, len(resp.GetExtra()))
		for name, values := range resp.GetExtra() {
			extra[name] = values.GetValues()
		}
		review.Status.User = userInfo(apiserver.Caller{Name: resp.GetName(), UID: resp.GetUid(), Groups: resp.GetGroups(), Extra: extra})
	}
	return c.structure(http.StatusCreated, review)
}

// userInfo is somebody in Kubernetes' words.
func userInfo(caller apiserver.Caller) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: caller.Name, UID: caller.UID, Groups: caller.Groups}
	for name, values := range caller.Extra {
		if info.Extra == nil {
			info.Extra = make(map[string]authenticationv1.ExtraValue)
		}
		info.Extra[name] = values
	}
	return info
}

// mayReview asks whether the caller may ask about others.
func (c *call) mayReview() error {
	return c.failed(c.cfg.Authorize(c.r.Context(), apiserver.Attributes{Verb: "create", Group: c.at.group, Resource: c.at.plural, Namespace: c.at.namespace}))
}

func (c *call) selfAccessReview() error {
	review := &authorizationv1.SelfSubjectAccessReview{}
	if err := c.decodeInto(review, "SelfSubjectAccessReview"); err != nil {
		return err
	}
	wish, err := attributesOf(review.Spec.ResourceAttributes, review.Spec.NonResourceAttributes)
	if err != nil {
		return err
	}
	review.TypeMeta = metav1.TypeMeta{Kind: "SelfSubjectAccessReview", APIVersion: authorizationv1.SchemeGroupVersion.String()}
	review.Status = c.mayCaller(wish)
	return c.structure(http.StatusCreated, review)
}

// mayCaller asks whether the caller may do what wish says.
func (c *call) mayCaller(wish apiserver.Attributes) authorizationv1.SubjectAccessReviewStatus {
	err := c.cfg.Authorize(c.r.Context(), wish)
	if err == nil {
		return authorizationv1.SubjectAccessReviewStatus{Allowed: true}
	}
	status := authorizationv1.SubjectAccessReviewStatus{Reason: err.Error()}
	if rpcErr, ok := errors.AsType[*connect.Error](err); ok {
		status.Reason = rpcErr.Message()
	}
	return status
}

func (c *call) accessReview() error {
	review := &authorizationv1.SubjectAccessReview{}
	if err := c.decodeInto(review, "SubjectAccessReview"); err != nil {
		return err
	}
	status, err := c.reviewAccess(review.Spec)
	if err != nil {
		return err
	}
	review.TypeMeta = metav1.TypeMeta{Kind: "SubjectAccessReview", APIVersion: authorizationv1.SchemeGroupVersion.String()}
	review.Status = status
	return c.structure(http.StatusCreated, review)
}

func (c *call) localAccessReview() error {
	review := &authorizationv1.LocalSubjectAccessReview{}
	if err := c.decodeInto(review, "LocalSubjectAccessReview"); err != nil {
		return err
	}
	switch attributes := review.Spec.ResourceAttributes; {
	case attributes == nil:
		return apierrors.NewBadRequest("spec.resourceAttributes: must be given: a local review is about objects of its namespace")
	case attributes.Namespace == "":
		attributes.Namespace = c.at.namespace
	case attributes.Namespace != c.at.namespace:
		return apierrors.NewBadRequest("spec.resourceAttributes.namespace: must be the namespace of the URL, " + c.at.namespace)
	}
	status, err := c.reviewAccess(review.Spec)
	if err != nil {
		return err
	}
	review.TypeMeta = metav1.TypeMeta{Kind: "LocalSubjectAccessReview", APIVersion: authorizationv1.SchemeGroupVersion.String()}
	review.Status = status
	return c.structure(http.StatusCreated, review)
}

// reviewAccess answers whether somebody may do something.
func (c *call) reviewAccess(spec authorizationv1.SubjectAccessReviewSpec) (authorizationv1.SubjectAccessReviewStatus, error) {
	var none authorizationv1.SubjectAccessReviewStatus
	wish, err := attributesOf(spec.ResourceAttributes, spec.NonResourceAttributes)
	if err != nil {
		return none, err
	}
	if spec.User == "" && len(spec.Groups) == 0 {
		return none, apierrors.NewBadRequest("spec.user: at least one of user or groups must be given")
	}
	if err := c.mayReview(); err != nil {
		return none, err
	}
	by, remedy, ok, err := c.cfg.Allowed(apiserver.Caller{Name: spec.User, Groups: spec.Groups}, wish)
	switch {
	case err != nil:
		return none, c.failed(err)
	case ok:
		return authorizationv1.SubjectAccessReviewStatus{Allowed: true, Reason: "allowed by " + by}, nil
	}
	return authorizationv1.SubjectAccessReviewStatus{Reason: "no role allows it; to allow it: " + remedy}, nil
}

// attributesOf is what a review asks about.
func attributesOf(of *authorizationv1.ResourceAttributes, path *authorizationv1.NonResourceAttributes) (apiserver.Attributes, error) {
	switch {
	case (of == nil) == (path == nil):
		return apiserver.Attributes{}, apierrors.NewBadRequest("spec: exactly one of resourceAttributes and nonResourceAttributes must be given")
	case path != nil:
		return apiserver.Attributes{Verb: path.Verb, Path: path.Path}, nil
	}
	return apiserver.Attributes{
		Verb: of.Verb, Group: of.Group, Resource: of.Resource, Subresource: of.Subresource, Namespace: of.Namespace, Name: of.Name,
	}, nil
}

// selfRulesReview lists the caller's rights in a namespace.
func (c *call) selfRulesReview() error {
	review := &authorizationv1.SelfSubjectRulesReview{}
	if err := c.decodeInto(review, "SelfSubjectRulesReview"); err != nil {
		return err
	}
	review.TypeMeta = metav1.TypeMeta{Kind: "SelfSubjectRulesReview", APIVersion: authorizationv1.SchemeGroupVersion.String()}
	review.Status = authorizationv1.SubjectRulesReviewStatus{ // what everybody may whom the cluster knows
		ResourceRules: []authorizationv1.ResourceRule{
			{Verbs: []string{"create"}, APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"selfsubjectaccessreviews", "selfsubjectrulesreviews"}},
			{Verbs: []string{"create"}, APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"selfsubjectreviews"}},
		},
		NonResourceRules: []authorizationv1.NonResourceRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version"}}},
	}
	caller, _ := apiserver.CallerFrom(c.r.Context())
	for _, rule := range c.cfg.Rules(caller, review.Spec.Namespace) {
		if len(rule.NonResourceURLs) > 0 {
			review.Status.NonResourceRules = append(review.Status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: rule.Verbs, NonResourceURLs: rule.NonResourceURLs})
			continue
		}
		review.Status.ResourceRules = append(review.Status.ResourceRules, authorizationv1.ResourceRule{
			Verbs: rule.Verbs, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames,
		})
	}
	return c.structure(http.StatusCreated, review)
}
