package object

import (
	"fmt"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"k8s.io/apimachinery/pkg/api/validate/content"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindIngressClass = define(Resource{Group: "networking.k8s.io", Version: "v1", Kind: "IngressClass", Plural: "ingressclasses", Singular: "ingressclass"},
	func() *networkingv1.IngressClass { return new(networkingv1.IngressClass) },
	rules[*networkingv1.IngressClass]{
		supported: `
			spec
		`,
		defaults: func(class *networkingv1.IngressClass) {
			if p := class.Spec.Parameters; p != nil {
				setIfNil(&p.Scope, networkingv1.IngressClassParametersReferenceScopeCluster)
			}
		},
		validate: validateIngressClass,
		validateUpdate: func(class, old *networkingv1.IngressClass) field.ErrorList {
			if class.Spec.Controller == old.Spec.Controller {
				return nil
			}
			return field.ErrorList{immutable(field.NewPath("spec", "controller"), class.Spec.Controller)}
		},
		columns: columns("NAME", "CONTROLLER", "PARAMETERS", "AGE"),
		row: func(class *networkingv1.IngressClass, now time.Time) []string {
			parameters := "<none>"
			if p := class.Spec.Parameters; p != nil {
				parameters = p.Kind
				if deref(p.APIGroup) != "" {
					parameters += "." + *p.APIGroup
				}
				parameters += "/" + p.Name
			}
			return []string{class.Name, class.Spec.Controller, parameters, ageOf(class, now)}
		},
		describe: func(d *describer, class *networkingv1.IngressClass, _ []Object) {
			d.meta(class)
			d.line(0, "Controller:", class.Spec.Controller)
			p := class.Spec.Parameters
			if p == nil {
				return
			}
			d.line(0, "Parameters:")
			if deref(p.APIGroup) != "" {
				d.line(1, "APIGroup:", *p.APIGroup)
			}
			d.line(1, "Kind:", p.Kind)
			d.line(1, "Name:", p.Name)
			if p.Namespace != nil {
				d.line(1, "Namespace:", *p.Namespace)
			}
		},
	})

func validateIngressClass(class *networkingv1.IngressClass) field.ErrorList {
	const longest = 250
	var errs field.ErrorList
	at := field.NewPath("spec", "controller")
	switch controller := class.Spec.Controller; {
	case controller == "":
		errs = append(errs, field.Required(at, `name the controller, for example "example.com/ingress-controller"`))
	case len(controller) > longest:
		errs = append(errs, field.TooLong(at, controller, longest))
	default:
		errs = append(errs, validation.IsDomainPrefixedPath(at, controller)...)
	}
	p, at := class.Spec.Parameters, field.NewPath("spec", "parameters")
	if p == nil {
		return errs
	}
	if class.Spec.Controller == IngressController {
		errs = append(errs, field.Forbidden(at, "the controller "+IngressController+" takes none"))
	}
	errs = append(errs, validateReference(p.APIGroup, p.Kind, p.Name, at)...)
	scopes := []string{networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace}
	errs = append(errs, oneOf(deref(p.Scope), scopes, at.Child("scope"))...)
	inNamespace := deref(p.Scope) == networkingv1.IngressClassParametersReferenceScopeNamespace
	switch {
	case inNamespace && p.Namespace == nil:
		errs = append(errs, field.Required(at.Child("namespace"), "`parameters.scope` is set to 'Namespace'"))
	case inNamespace:
		errs = append(errs, invalid(at.Child("namespace"), *p.Namespace, apivalidation.ValidateNamespaceName(*p.Namespace, false))...)
	case p.Namespace != nil && deref(p.Scope) == networkingv1.IngressClassParametersReferenceScopeCluster:
		errs = append(errs, field.Forbidden(at.Child("namespace"), "`parameters.scope` is set to 'Cluster'"))
	}
	return errs
}

// validateReference checks a reference to an object of any kind.
func validateReference(group *string, kindName, name string, at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if group != nil {
		errs = append(errs, invalid(at.Child("apiGroup"), *group, validation.IsDNS1123Subdomain(*group))...)
	}
	for _, part := range [][2]string{{"kind", kindName}, {"name", name}} {
		if part[1] == "" {
			errs = append(errs, field.Required(at.Child(part[0]), fmt.Sprintf("give the %s of the object", part[0])))
		}
		errs = append(errs, invalid(at.Child(part[0]), part[1], content.IsPathSegmentName(part[1]))...)
	}
	return errs
}
