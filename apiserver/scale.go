package apiserver

import (
	"context"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// A Scale (autoscaling/v1) is the number of replicas of an object and nothing
// else of it: the same for every kind that has one. It is made of the object when
// it is read, and put back when it is written; nothing is stored of it.

var scaleKind = &holdfastv1.Kind{Group: "autoscaling", Version: "v1", Kind: "Scale"}

// scaleCodecs reads Scales, which are no kind of package object's.
var scaleCodecs = func() serializer.CodecFactory {
	scheme := runtime.NewScheme()
	if err := autoscalingv1.AddToScheme(scheme); err != nil {
		panic(err) // a constant list of types
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict)
}()

// updateScale is Update of an object's number of replicas.
func (s objectService) updateScale(ctx context.Context, req *holdfastv1.UpdateRequest) (*holdfastv1.UpdateResponse, error) {
	in := req.GetObject()
	wish, err := decodeScale(in.GetData())
	if err != nil {
		return nil, err
	}
	namespace, name := in.GetNamespace(), in.GetName()
	if namespace == "" {
		namespace = wish.Namespace
	}
	if name == "" {
		name = wish.Name
	}
	r, namespace, err := s.target(ctx, req.GetKind(), namespace, name)
	if err != nil {
		return nil, err
	}
	if err := s.Authorize(ctx, attributes("update", r, scaleSubresource, namespace, name)); err != nil {
		return nil, err
	}
	if !r.Scale {
		return nil, badRequest("subresource", "a %s has no scale", r.Kind)
	}
	if in.GetRevision() > 0 {
		wish.ResourceVersion = fmt.Sprint(in.GetRevision())
	}
	w := writing{what: "scale " + r.Kind + " " + joinName(namespace, name), reason: "scale", manager: managerOf(ctx, req.GetFieldManager()), dryRun: req.GetDryRun()}
	var made written
	revision, p, err := s.commit(ctx, w, func(p *plan) error {
		was, err := p.load(r, namespace, name)
		if err != nil {
			return err
		}
		made, err = p.scale(was, wish)
		return err
	})
	if err != nil {
		return nil, err
	}
	out, err := p.outAs(made, revision, in.GetEncoding(), scaleSubresource)
	if err != nil {
		return nil, err
	}
	return &holdfastv1.UpdateResponse{Object: out, Answer: p.answerTo(revision)}, nil
}

// applyScale is patchApply for an object's number of replicas.
func (s objectService) applyScale(ctx context.Context, req *holdfastv1.PatchRequest, r object.Resource, namespace string) (*holdfastv1.PatchResponse, error) {
	w := writing{what: "scale " + r.Kind + " " + joinName(namespace, req.GetName()), reason: "scale by " + req.GetFieldManager(), manager: req.GetFieldManager(), dryRun: req.GetDryRun()}
	var made written
	revision, p, err := s.commit(ctx, w, func(p *plan) error {
		was, err := p.load(r, namespace, req.GetName())
		if err != nil {
			return err
		}
		next, err := p.merged(was.obj, req.GetPatch(), scaleSubresource, req.GetForce(), 0)
		if err != nil || next == nil {
			return err
		}
		setGeneration(next, was.obj)
		made, err = p.succeed(next, was, 0, scaleSubresource)
		return err
	})
	if err != nil {
		return nil, err
	}
	out, err := p.outAs(made, revision, req.GetEncoding(), scaleSubresource)
	return &holdfastv1.PatchResponse{Object: out, Answer: p.answerTo(revision)}, err
}

// patchScale is Patch of an object's number of replicas.
func (p *plan) patchScale(was stored, req *holdfastv1.PatchRequest) (written, error) {
	scale, err := scaleOf(was.obj)
	if err != nil {
		return written{}, err
	}
	before, err := marshalScale(scale, holdfastv1.Encoding_ENCODING_JSON)
	if err != nil {
		return written{}, err
	}
	after, err := patchedText(was.obj, before, req.GetType(), req.GetPatch(), scale)
	if err != nil {
		return written{}, err
	}
	wish, err := decodeScale(after)
	if err != nil {
		return written{}, err
	}
	return p.scale(was, wish)
}

// scale sets the number of replicas of was. A resourceVersion or uid of wish must
// be the object's.
func (p *plan) scale(was stored, wish *autoscalingv1.Scale) (written, error) {
	if wish.Spec.Replicas < 0 {
		return written{}, invalid(object.Faults{{Object: object.Title(was.obj), Field: "spec.replicas", Message: fmt.Sprintf("is %d: it cannot be negative", wish.Spec.Replicas)}})
	}
	if err := sameVersion(wish, was); err != nil {
		return written{}, err
	}
	next := was.obj.DeepCopyObject().(object.Object)
	if err := object.SetScale(next, wish); err != nil {
		return written{}, badRequest("subresource", "%v", err)
	}
	setGeneration(next, was.obj)
	if err := p.track(next, was.obj, scaleSubresource); err != nil {
		return written{}, err
	}
	return p.succeed(next, was, 0, scaleSubresource)
}

func decodeScale(data []byte) (*autoscalingv1.Scale, error) {
	obj, _, err := scaleCodecs.UniversalDeserializer().Decode(data, nil, &autoscalingv1.Scale{})
	if err != nil {
		return nil, badRequest("object", "is not a Scale (autoscaling/v1): %v", err)
	}
	scale, ok := obj.(*autoscalingv1.Scale)
	if !ok {
		return nil, badRequest("object", "is a %T, not a Scale (autoscaling/v1)", obj)
	}
	return scale, nil
}

// encodeScale returns the scale of obj as it goes out.
func encodeScale(obj object.Object, encoding holdfastv1.Encoding) (*holdfastv1.Object, error) {
	scale, err := scaleOf(obj)
	if err != nil {
		return nil, err
	}
	out := &holdfastv1.Object{
		Kind: scaleKind, Namespace: scale.Namespace, Name: scale.Name, Revision: revisionOf(obj),
		Encoding: holdfastv1.Encoding_ENCODING_PROTOBUF,
	}
	if encoding == holdfastv1.Encoding_ENCODING_JSON {
		out.Encoding = encoding
	}
	out.Data, err = marshalScale(scale, out.Encoding)
	return out, err
}

func marshalScale(scale *autoscalingv1.Scale, encoding holdfastv1.Encoding) ([]byte, error) {
	media := runtime.ContentTypeProtobuf
	if encoding == holdfastv1.Encoding_ENCODING_JSON {
		media = runtime.ContentTypeJSON
	}
	info, ok := runtime.SerializerInfoForMediaType(scaleCodecs.SupportedMediaTypes(), media)
	if !ok {
		return nil, fmt.Errorf("no codec for %s", media)
	}
	return runtime.Encode(scaleCodecs.EncoderForVersion(info.Serializer, autoscalingv1.SchemeGroupVersion), scale)
}

// scaleOf returns the scale of an object that has one.
func scaleOf(obj object.Object) (*autoscalingv1.Scale, error) {
	scale, err := object.ScaleOf(obj)
	if err != nil {
		return nil, badRequest("subresource", "%v", err)
	}
	return scale, nil
}
