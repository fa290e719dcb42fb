package kube

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/apiserver"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// subresource answers what hangs below an object.
func (c *call) subresource() error {
	var err error
	if c.accept, err = negotiate(c.r.Header.Values("Accept"), c.resource.Custom); err != nil && c.at.subresource != "log" {
		return err
	}
	method := c.r.Method
	switch c.at.subresource {
	case "status":
		if !c.resource.Status {
			return errNoPath
		}
		switch method {
		case http.MethodGet:
			return c.get("status")
		case http.MethodPut:
			return c.update("status")
		case http.MethodPatch:
			return c.patch("status")
		}
		return c.notAllowed()
	case "scale":
		if !c.resource.Scale {
			return errNoPath
		}
		return c.scale()
	}
	switch c.at.group + "/" + c.at.plural + "/" + c.at.subresource {
	case "/namespaces/finalize":
		if method == http.MethodPut {
			return c.update("")
		}
	case "/serviceaccounts/token":
		if method == http.MethodPost {
			return c.issueToken()
		}
	case "/pods/log":
		if method == http.MethodGet {
			return c.logs()
		}
	case "/pods/eviction":
		if method == http.MethodPost {
			return c.evict()
		}
	case "/pods/binding":
		if method == http.MethodPost {
			return c.bind(c.at.name)
		}
	case "/pods/ephemeralcontainers", "/pods/resize":
		switch method {
		case http.MethodGet:
			return c.get(c.at.subresource)
		case http.MethodPut:
			return c.update(c.at.subresource)
		case http.MethodPatch:
			return c.patch(c.at.subresource)
		}
	default:
		stream, ok := c.streams[c.at.subresource]
		if !ok || c.at.group != "" || c.at.plural != "pods" {
			return errNoPath
		}
		if method != http.MethodGet && method != http.MethodPost {
			break
		}
		// Not "get" for those that begin with a GET: what runs in a pod is changed.
		if err := c.cfg.Authorize(c.r.Context(), apiserver.Attributes{Verb: "create", Resource: "pods", Subresource: c.at.subresource, Namespace: c.at.namespace, Name: c.at.name}); err != nil {
			return c.failed(err)
		}
		stream(c.w, c.r, c.at.namespace, c.at.name)
		return nil
	}
	return c.notAllowed()
}

// scale answers the subresource scale, which is a Scale whatever it is of. It
// comes from the handlers in JSON.
func (c *call) scale() error {
	want := c.accept
	c.accept = media{typ: typeJSON}
	request := &holdfastv1.Object{Encoding: holdfastv1.Encoding_ENCODING_JSON, Namespace: c.at.namespace, Name: c.at.name}
	var obj *holdfastv1.Object
	switch c.r.Method {
	case http.MethodGet:
		resp, err := c.cfg.Objects.Get(c.r.Context(), &holdfastv1.GetRequest{
			Kind: c.kind(), Namespace: c.at.namespace, Name: c.at.name, Subresource: "scale",
			Read: c.query.readOptions(), Encoding: holdfastv1.Encoding_ENCODING_JSON,
		})
		if err != nil {
			return c.failed(err)
		}
		c.answered(resp.GetAnswer())
		obj = resp.GetObject()
	case http.MethodPut:
		scale := &autoscalingv1.Scale{}
		if err := c.decodeInto(scale, "Scale"); err != nil {
			return err
		}
		scale.TypeMeta = metav1.TypeMeta{Kind: "Scale", APIVersion: autoscalingv1.SchemeGroupVersion.String()}
		scale.Namespace, scale.Name = c.at.namespace, c.at.name
		var err error
		if request.Data, err = json.Marshal(scale); err != nil {
			return err
		}
		resp, err := c.cfg.Objects.Update(c.r.Context(), &holdfastv1.UpdateRequest{
			Object: request, Kind: c.kind(), Subresource: "scale", DryRun: c.query.dryRun, FieldManager: c.manager(),
		})
		if err != nil {
			return c.failed(err)
		}
		c.answered(resp.GetAnswer())
		obj = resp.GetObject()
	case http.MethodPatch:
		return c.patch("scale") // JSON: every client takes that, too
	default:
		return c.notAllowed()
	}
	scale := &autoscalingv1.Scale{}
	if err := json.Unmarshal(obj.GetData(), scale); err != nil {
		return err
	}
	if want.protobuf() && want.form == formWhole {
		c.accept = want
	}
	return c.structure(http.StatusOK, scale)
}

// evict deletes a pod if its disruption budgets allow that.
func (c *call) evict() error {
	eviction := &policyv1.Eviction{}
	if err := c.decodeInto(eviction, "Eviction"); err != nil {
		return err
	}
	if eviction.Name != "" && eviction.Name != c.at.name {
		return apierrors.NewBadRequest(fmt.Sprintf("name in URL does not match name in Eviction object: %q and %q", c.at.name, eviction.Name))
	}
	req := &holdfastv1.EvictRequest{Namespace: c.at.namespace, Name: c.at.name, DryRun: c.query.dryRun}
	if options := eviction.DeleteOptions; options != nil {
		if err := checkDryRun(options.DryRun); err != nil {
			return err
		}
		req.DryRun = req.DryRun || slices.Contains(options.DryRun, metav1.DryRunAll)
		req.GracePeriod = graceOf(*options)
		var err error
		if req.Uid, _, err = preconditionsOf(*options); err != nil {
			return err
		}
	}
	resp, err := c.cfg.Objects.Evict(c.r.Context(), req)
	if err != nil {
		return c.failed(err)
	}
	c.answered(resp.GetAnswer())
	return c.success(http.StatusCreated, nil)
}

// bind puts a pod onto a node. The pod is the URL's, or else the body's.
func (c *call) bind(name string) error {
	binding := &corev1.Binding{}
	if err := c.decodeInto(binding, "Binding"); err != nil {
		return err
	}
	switch target := binding.Target; {
	case name != "" && binding.Name != "" && binding.Name != name:
		return apierrors.NewBadRequest(fmt.Sprintf("name in URL does not match name in Binding object: %q and %q", name, binding.Name))
	case binding.Namespace != "" && binding.Namespace != c.at.namespace:
		return apierrors.NewBadRequest(fmt.Sprintf("the namespace of the provided object does not match the namespace sent on the request: %s and %s", binding.Namespace, c.at.namespace))
	case target.Kind != "" && target.Kind != "Node":
		return apierrors.NewBadRequest(fmt.Sprintf("target.kind is %q: a pod is bound to a Node", target.Kind))
	case target.Name == "":
		return apierrors.NewBadRequest("target.name: Required value: name the node")
	}
	c.at.name = cmp.Or(name, binding.Name)
	if c.at.name == "" {
		return apierrors.NewBadRequest("metadata.name: Required value: name the pod")
	}
	resp, err := c.cfg.Objects.Bind(c.r.Context(), &holdfastv1.BindRequest{
		Namespace: c.at.namespace, Name: c.at.name, Uid: string(binding.UID), Node: binding.Target.Name, Annotations: binding.Annotations, DryRun: c.query.dryRun,
	})
	if err != nil {
		return c.failed(err)
	}
	c.answered(resp.GetAnswer())
	return c.success(http.StatusCreated, nil)
}
