package object

import (
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindControllerRevision = define(Resource{Group: "apps", Version: "v1", Kind: "ControllerRevision", Plural: "controllerrevisions", Singular: "controllerrevision", Namespaced: true},
	func() *appsv1.ControllerRevision { return new(appsv1.ControllerRevision) },
	rules[*appsv1.ControllerRevision]{
		supported: `
			data
			revision
		`,
		validate: func(r *appsv1.ControllerRevision) field.ErrorList {
			errs := apivalidation.ValidateNonnegativeField(r.Revision, field.NewPath("revision"))
			if len(r.Data.Raw) == 0 && r.Data.Object == nil {
				errs = append(errs, field.Required(field.NewPath("data"), "data is mandatory: the state that the revision keeps"))
			}
			return errs
		},
		validateUpdate: func(r, old *appsv1.ControllerRevision) field.ErrorList {
			if sameValue(r.Data, old.Data) {
				return nil
			}
			return field.ErrorList{immutable(field.NewPath("data"), field.OmitValueType{})}
		},
		columns: columns("NAME", "CONTROLLER", "REVISION", "AGE"),
		row: func(r *appsv1.ControllerRevision, now time.Time) []string {
			owner := "<none>"
			if c := ControllerOf(r); c != nil {
				owner = ownerText(c)
			}
			return []string{r.Name, owner, strconv.FormatInt(r.Revision, 10), ageOf(r, now)}
		},
		describe: func(d *describer, r *appsv1.ControllerRevision, _ []Object) {
			d.meta(r)
			d.controlledBy(r)
			d.line(0, "Revision:", strconv.FormatInt(r.Revision, 10))
		},
	})
