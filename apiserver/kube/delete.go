package kube

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// delete begins the deletion of an object, and answers with it while it
// terminates, or with a Status once it is gone.
func (c *call) delete() error {
	options, err := c.deleteOptions()
	if err != nil {
		return err
	}
	propagation, err := propagationOf(options)
	if err != nil {
		return err
	}
	req := &holdfastv1.DeleteRequest{
		Kind: c.kind(), Namespace: c.at.namespace, Name: c.at.name, GracePeriod: graceOf(options),
		DryRun: slices.Contains(options.DryRun, metav1.DryRunAll), Propagation: propagation, Encoding: c.wants(),
	}
	if req.Uid, req.Revision, err = preconditionsOf(options); err != nil {
		return err
	}
	resp, err := c.cfg.Objects.Delete(c.r.Context(), req)
	if err != nil {
		return c.failed(err)
	}
	c.answered(resp.GetAnswer())
	if !resp.GetGone() {
		return c.object(http.StatusOK, resp.GetObject())
	}
	obj, err := c.decode(resp.GetObject())
	if err != nil {
		return err
	}
	return c.success(http.StatusOK, &metav1.StatusDetails{Group: c.at.group, Kind: c.at.plural, Name: c.at.name, UID: obj.GetUID()})
}

// success answers with a Status.
func (c *call) success(code int, details *metav1.StatusDetails) error {
	c.accept = media{typ: negotiateType(c.r.Header.Values("Accept"))}
	status := &metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess, Details: details}
	if details == nil {
		status.Code = int32(code)
	}
	return c.structure(code, status)
}

// deleteCollection deletes what the selectors select.
func (c *call) deleteCollection() error {
	options, err := c.deleteOptions()
	if err != nil {
		return err
	}
	propagation, err := propagationOf(options)
	if err != nil {
		return err
	}
	if options.Preconditions != nil {
		return apierrors.NewBadRequest("preconditions are for one object")
	}
	resp, err := c.cfg.Objects.DeleteCollection(c.r.Context(), &holdfastv1.DeleteCollectionRequest{
		Kind: c.kind(), Namespace: c.at.namespace,
		LabelSelector: c.query.labelSelector, FieldSelector: c.query.fieldSelector,
		GracePeriod: graceOf(options), DryRun: slices.Contains(options.DryRun, metav1.DryRunAll), Propagation: propagation, Encoding: c.wants(),
	})
	if err != nil {
		return c.failed(err)
	}
	c.answered(resp.GetAnswer())
	meta := metav1.ListMeta{ResourceVersion: strconv.FormatInt(resp.GetAnswer().GetRevision(), 10)}
	return c.objects(meta, resp.GetObjects())
}

func graceOf(options metav1.DeleteOptions) *durationpb.Duration {
	if options.GracePeriodSeconds == nil {
		return nil
	}
	return durationpb.New(time.Duration(*options.GracePeriodSeconds) * time.Second)
}

func propagationOf(options metav1.DeleteOptions) (holdfastv1.Propagation, error) {
	orphan := options.OrphanDependents //lint:ignore SA1019 older clients send it
	if options.PropagationPolicy != nil && orphan != nil {
		return 0, apierrors.NewBadRequest("orphanDependents and propagationPolicy may not both be set")
	}
	switch {
	case orphan != nil && *orphan:
		return holdfastv1.Propagation_PROPAGATION_ORPHAN, nil
	case options.PropagationPolicy == nil:
		return holdfastv1.Propagation_PROPAGATION_UNSPECIFIED, nil
	}
	switch *options.PropagationPolicy {
	case metav1.DeletePropagationBackground:
		return holdfastv1.Propagation_PROPAGATION_BACKGROUND, nil
	case metav1.DeletePropagationForeground:
		return holdfastv1.Propagation_PROPAGATION_FOREGROUND, nil
	case metav1.DeletePropagationOrphan:
		return holdfastv1.Propagation_PROPAGATION_ORPHAN, nil
	}
	return 0, apierrors.NewBadRequest("propagationPolicy is " + strconv.Quote(string(*options.PropagationPolicy)) + ": want Background, Foreground or Orphan")
}

func preconditionsOf(options metav1.DeleteOptions) (uid string, revision int64, err error) {
	if options.Preconditions == nil {
		return "", 0, nil
	}
	if options.Preconditions.UID != nil {
		uid = string(*options.Preconditions.UID)
	}
	if version := options.Preconditions.ResourceVersion; version != nil {
		if revision, err = strconv.ParseInt(*version, 10, 64); err != nil || revision <= 0 {
			return "", 0, apierrors.NewBadRequest("preconditions.resourceVersion is " + strconv.Quote(*version) + ": want one that this server gave, a number")
		}
	}
	return uid, revision, nil
}
