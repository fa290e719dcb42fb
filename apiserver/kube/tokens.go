package kube

import (
	"net/http"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"google.golang.org/protobuf/types/known/durationpb"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// issueToken answers the subresource token of a service account.
func (c *call) issueToken() error {
	wish := &authenticationv1.TokenRequest{}
	if err := c.decodeInto(wish, "TokenRequest"); err != nil {
		return err
	}
	switch {
	case wish.Name != "" && wish.Name != c.at.name:
		return apierrors.NewBadRequest("metadata.name is " + wish.Name + ", and the URL names " + c.at.name)
	case wish.Namespace != "" && wish.Namespace != c.at.namespace:
		return apierrors.NewBadRequest("metadata.namespace is " + wish.Namespace + ", and the URL names " + c.at.namespace)
	}
	req := &holdfastv1.IssueTokenRequest{Namespace: c.at.namespace, ServiceAccount: c.at.name, Audiences: wish.Spec.Audiences}
	if seconds := wish.Spec.ExpirationSeconds; seconds != nil {
		if *seconds > 1<<32 {
			return apierrors.NewBadRequest("spec.expirationSeconds: may not specify a duration larger than 2^32 seconds")
		}
		req.Lifetime = durationpb.New(time.Duration(*seconds) * time.Second)
	}
	if ref := wish.Spec.BoundObjectRef; ref != nil {
		if ref.APIVersion != "" && ref.APIVersion != "v1" {
			return apierrors.NewBadRequest("spec.boundObjectRef.apiVersion is " + ref.APIVersion + ": a token can be bound to a Pod, a Secret or a Node of v1")
		}
		req.Binding = &holdfastv1.TokenBinding{Kind: ref.Kind, Name: ref.Name, Uid: string(ref.UID)}
	}
	resp, err := c.cfg.Tokens.IssueToken(c.r.Context(), req)
	if err != nil {
		return c.failed(err)
	}
	c.answered(resp.GetAnswer())
	wish.TypeMeta = metav1.TypeMeta{Kind: "TokenRequest", APIVersion: authenticationv1.SchemeGroupVersion.String()}
	wish.Name, wish.Namespace, wish.CreationTimestamp = c.at.name, c.at.namespace, metav1.NewTime(c.now())
	wish.Status = authenticationv1.TokenRequestStatus{Token: resp.GetToken(), ExpirationTimestamp: metav1.NewTime(resp.GetExpires().AsTime())}
	c.accept.form = formWhole
	return c.structure(http.StatusCreated, wish)
}
