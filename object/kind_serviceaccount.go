package object

import (
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

var kindServiceAccount = define(Resource{Version: "v1", Kind: "ServiceAccount", Plural: "serviceaccounts", Singular: "serviceaccount", ShortNames: []string{"sa"}, Namespaced: true},
	func() *corev1.ServiceAccount { return new(corev1.ServiceAccount) },
	rules[*corev1.ServiceAccount]{
		supported: `
			secrets
			imagePullSecrets
			automountServiceAccountToken
		`,
		validate: func(sa *corev1.ServiceAccount) field.ErrorList {
			var errs field.ErrorList
			for i, s := range sa.Secrets { // Kubernetes lets anything pass, and nothing comes of it
				errs = append(errs, requiredSubdomain(s.Name, "name the Secret", field.NewPath("secrets").Index(i).Child("name"))...)
			}
			for i, s := range sa.ImagePullSecrets {
				errs = append(errs, requiredSubdomain(s.Name, "name the Secret", field.NewPath("imagePullSecrets").Index(i).Child("name"))...)
			}
			return errs
		},
		columns: columns("NAME", "SECRETS", "AGE"),
		row: func(sa *corev1.ServiceAccount, now time.Time) []string {
			return []string{sa.Name, strconv.Itoa(len(sa.Secrets)), ageOf(sa, now)}
		},
		describe: func(d *describer, sa *corev1.ServiceAccount, _ []Object) { d.serviceAccount(sa) },
	})

func (d *describer) serviceAccount(sa *corev1.ServiceAccount) {
	d.meta(sa)
	var pull []string
	for _, s := range sa.ImagePullSecrets {
		pull = append(pull, s.Name)
	}
	d.list(0, "Image pull secrets:", pull)
	if auto := sa.AutomountServiceAccountToken; auto != nil {
		d.line(0, "Automount Token:", strconv.FormatBool(*auto))
	}
}
