package object

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// A Lease is what programs elect a leader with; all of it is in reading and
// writing it. strategy and preferredHolder ask the control plane to elect by
// LeaseCandidates, which are not served.
var kindLease = define(Resource{Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Plural: "leases", Singular: "lease", Namespaced: true},
	func() *coordinationv1.Lease { return new(coordinationv1.Lease) },
	rules[*coordinationv1.Lease]{
		supported: `
			spec.holderIdentity
			spec.leaseDurationSeconds
			spec.acquireTime
			spec.renewTime
			spec.leaseTransitions
		`,
		validate: func(lease *coordinationv1.Lease) field.ErrorList {
			var errs field.ErrorList
			at := field.NewPath("spec")
			if s := lease.Spec.LeaseDurationSeconds; s != nil && *s <= 0 {
				errs = append(errs, field.Invalid(at.Child("leaseDurationSeconds"), *s, "must be greater than 0"))
			}
			return append(errs, notNegative(lease.Spec.LeaseTransitions, at.Child("leaseTransitions"))...)
		},
		columns: columns("NAME", "HOLDER", "AGE"),
		row: func(lease *coordinationv1.Lease, now time.Time) []string {
			return []string{lease.Name, deref(lease.Spec.HolderIdentity), ageOf(lease, now)}
		},
		describe: func(d *describer, lease *coordinationv1.Lease, _ []Object) {
			d.meta(lease)
			spec := &lease.Spec
			d.line(0, "Holder:", orNone(deref(spec.HolderIdentity)))
			if s := spec.LeaseDurationSeconds; s != nil {
				d.line(0, "Duration:", itoa(*s)+"s")
			}
			if t := spec.AcquireTime; t != nil {
				d.line(0, "Acquired:", since(t.Time, d.now)+" ago")
			}
			if t := spec.RenewTime; t != nil {
				d.line(0, "Renewed:", since(t.Time, d.now)+" ago")
			}
			if n := spec.LeaseTransitions; n != nil {
				d.line(0, "Transitions:", itoa(*n))
			}
		},
	})
