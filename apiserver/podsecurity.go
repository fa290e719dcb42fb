package apiserver

import (
	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// secure notes that next, a pod or what makes pods, is to be held against the Pod
// Security Standards that its namespace demands: by secured, when all of the plan is
// there, since the namespace may be in it as well, and behind it. A namespace's own
// labels must be right, and who tightens them is told of the pods that could not be
// made again.
func (p *plan) secure(next, was object.Object, index int) {
	switch next := next.(type) {
	case *corev1.Namespace:
		before, _ := was.(*corev1.Namespace)
		p.blame(object.PodSecurityFaults(next, before), index)
		if before != nil {
			p.warnings = append(p.warnings, object.PodSecurityWarnings(next, before, object.List[*corev1.Pod](p.view, next.Name))...)
		}
		if p.policies == nil {
			p.policies = make(map[string]object.PodSecurity)
		}
		p.policies[next.Name] = object.PodSecurityOf(next)
	case *corev1.Pod:
		if was == nil || object.PodSecurityMatters(next, was.(*corev1.Pod)) {
			p.securing = append(p.securing, next)
		}
	default:
		if object.PodTemplateOf(next) != nil {
			p.securing = append(p.securing, next)
		}
	}
}

// secured holds the plan's pods and templates against what their namespaces demand: a
// pod may be refused, who makes pods is warned, and both may be noted in the audit. The
// plan is conditional on the namespaces as they are.
func (p *plan) secured() error {
	for _, obj := range p.securing {
		policy, err := p.policyOf(obj.GetNamespace())
		if err != nil {
			return err
		}
		if policy.All() {
			continue
		}
		var verdict object.PodSecurityVerdict
		if pod, ok := obj.(*corev1.Pod); ok {
			verdict = policy.Pod(pod)
			p.note(object.PodSecurityPolicy, policy.Enforced())
		} else {
			verdict = policy.Template(obj)
		}
		p.note(object.PodSecurityViolations, verdict.Audit)
		if verdict.Refusal != "" {
			return withInfo(connect.Errorf(connect.CodePermissionDenied, "%s %s; the label pod-security.kubernetes.io/enforce of namespace %s demands it",
				object.Title(obj), verdict.Refusal, obj.GetNamespace()), &holdfastv1.ErrorInfo{Reason: "Forbidden"})
		}
		if verdict.Warning != "" {
			p.warnings = append(p.warnings, verdict.Warning)
		}
	}
	return nil
}

// policyOf returns what a namespace demands of pods as it will be after the plan. One
// that is not there demands nothing: it is refused for that.
func (p *plan) policyOf(namespace string) (object.PodSecurity, error) {
	if policy, ok := p.policies[namespace]; ok {
		return policy, nil
	}
	key := string(namespaceResource.Key("", namespace))
	kv, ok := p.view.Get(key)
	if !ok {
		return object.PodSecurityOf(new(corev1.Namespace)), nil
	}
	known, err := p.knowNamespace(kv)
	if err != nil {
		return object.PodSecurity{}, err
	}
	p.unchanged(key, kv.Mod)
	if p.policies == nil {
		p.policies = make(map[string]object.PodSecurity)
	}
	p.policies[namespace] = known.policy
	return known.policy, nil
}

// note adds an annotation to the plan's audit record. The last one of a key counts,
// as in Kubernetes.
func (p *plan) note(key, value string) {
	if value == "" {
		return
	}
	if p.notes == nil {
		p.notes = make(map[string]string)
	}
	p.notes[key] = value
}
