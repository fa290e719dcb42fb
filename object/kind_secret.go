package object

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Nothing here ever writes a value of a Secret: neither faults nor descriptions
// have one in them.
var kindSecret = define(Resource{Version: "v1", Kind: "Secret", Plural: "secrets", Singular: "secret", Namespaced: true},
	func() *corev1.Secret { return new(corev1.Secret) },
	rules[*corev1.Secret]{
		supported: `
			immutable
			data
			stringData
			type
		`,
		defaults:       defaultSecret,
		validate:       validateSecret,
		validateUpdate: validateSecretUpdate,
		selectable:     func(s *corev1.Secret, set fields.Set) { set["type"] = string(s.Type) },
		columns:        columns("NAME", "TYPE", "DATA", "AGE"),
		row: func(s *corev1.Secret, now time.Time) []string {
			return []string{s.Name, string(s.Type), strconv.Itoa(len(s.Data)), ageOf(s, now)}
		},
		describe: func(d *describer, s *corev1.Secret, _ []Object) { d.secret(s) },
	})

// defaultSecret moves stringData, which is for writing only, into data.
func defaultSecret(s *corev1.Secret) {
	if s.Data == nil && len(s.StringData) > 0 {
		s.Data = make(map[string][]byte, len(s.StringData))
	}
	for key, value := range s.StringData {
		s.Data[key] = []byte(value)
	}
	s.StringData = nil
	setIfZero(&s.Type, corev1.SecretTypeOpaque)
}

func validateSecret(s *corev1.Secret) field.ErrorList {
	var errs field.ErrorList
	data := field.NewPath("data")
	size := 0
	for _, key := range sortedNames(s.Data) {
		errs = append(errs, invalid(data.Key(key), key, validation.IsConfigMapKey(key))...)
		size += len(s.Data[key])
	}
	if size > corev1.MaxSecretSize {
		errs = append(errs, &field.Error{
			Type: field.ErrorTypeTooLong, Field: "data",
			Detail: fmt.Sprintf("values have %d bytes, may have %d: split the Secret", size, corev1.MaxSecretSize),
		})
	}
	required := func(key string) bool {
		_, ok := s.Data[key]
		if !ok {
			errs = append(errs, field.Required(data.Key(key), fmt.Sprintf("a Secret of type %s has it", s.Type)))
		}
		return ok
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			errs = append(errs, field.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), "say which service account the token is for"))
		}
	case corev1.SecretTypeDockercfg:
		if required(corev1.DockerConfigKey) {
			errs = append(errs, secretJSON(s.Data[corev1.DockerConfigKey], data.Key(corev1.DockerConfigKey))...)
		}
	case corev1.SecretTypeDockerConfigJson:
		if required(corev1.DockerConfigJsonKey) {
			errs = append(errs, secretJSON(s.Data[corev1.DockerConfigJsonKey], data.Key(corev1.DockerConfigJsonKey))...)
		}
	case corev1.SecretTypeBasicAuth:
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		_, password := s.Data[corev1.BasicAuthPasswordKey]
		if !user && !password {
			errs = append(errs, field.Required(data.Key(corev1.BasicAuthUsernameKey), fmt.Sprintf("a Secret of type %s has it, or %s, or both", s.Type, corev1.BasicAuthPasswordKey)))
		}
	case corev1.SecretTypeSSHAuth:
		if required(corev1.SSHAuthPrivateKey) && len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			errs = append(errs, field.Required(data.Key(corev1.SSHAuthPrivateKey), "must not be empty"))
		}
	case corev1.SecretTypeTLS:
		required(corev1.TLSCertKey)
		required(corev1.TLSPrivateKeyKey)
	}
	return errs
}

// secretJSON checks that a value is a JSON object. Where it is not, the error
// says so without the parser's words, which quote from the value.
func secretJSON(value []byte, path *field.Path) field.ErrorList {
	var config map[string]json.RawMessage
	if json.Unmarshal(value, &config) == nil {
		return nil
	}
	return field.ErrorList{field.Invalid(path, field.OmitValueType{}, `must be a JSON object, such as {"auths":{…}} (the value is not shown)`)}
}

// secretField returns where the manifest of a Secret has what validation knows as
// a field of data: it may be in stringData. Fields of other objects are where they are.
func (d Document) secretField(field string) string {
	_, secret := d.Object.(*corev1.Secret)
	rest, ok := strings.CutPrefix(field, "data")
	if !secret || !ok || d.lines[field] > 0 {
		return field
	}
	if written := "stringData" + rest; d.lines[written] > 0 || d.lines["data"] == 0 {
		return written
	}
	return field
}

// secret reports whether what stands at path is a value of a Secret, which is not
// to be written anywhere.
func (d *decoder) secret(path string) bool {
	return len(d.within) > 0 && d.within[0].info == infoOf(reflect.TypeFor[corev1.Secret]()) && (within(path, "data") || within(path, "stringData"))
}

// withoutValues takes out of a fault's arguments what quotes the value, and leaves
// what it is.
func withoutValues(args []any) []any {
	args = slices.Clone(args)
	for i, arg := range args {
		switch arg := arg.(type) {
		case *node:
			args[i] = map[nodeKind]string{nullNode: "empty", boolNode: "a boolean", numberNode: "a number", stringNode: "a string", listNode: "a list", mapNode: "a map"}[arg.kind]
		case string: // a hint how to write it
			if arg != "" {
				args[i] = ": write it in quotes"
			}
		}
	}
	return args
}

func validateSecretUpdate(s, old *corev1.Secret) field.ErrorList {
	var errs field.ErrorList
	if s.Type != old.Type {
		errs = append(errs, immutable(field.NewPath("type"), s.Type))
	}
	if old.Immutable == nil || !*old.Immutable {
		return errs
	}
	const why = "field is immutable when `immutable` is set: delete the Secret and create it again"
	if s.Immutable == nil || !*s.Immutable {
		errs = append(errs, field.Forbidden(field.NewPath("immutable"), why))
	}
	if !sameValue(s.Data, old.Data) {
		errs = append(errs, field.Forbidden(field.NewPath("data"), why))
	}
	return errs
}

func (d *describer) secret(s *corev1.Secret) {
	d.meta(s)
	if s.Immutable != nil && *s.Immutable {
		d.line(0, "Immutable:", "true")
	}
	d.line(0, "")
	d.line(0, "Type:", string(s.Type))
	d.line(0, "")
	d.line(0, "Data")
	d.line(0, "====")
	for _, key := range sortedNames(s.Data) {
		d.line(0, key+":", fmt.Sprintf("%d bytes", len(s.Data[key])))
	}
	d.line(0, "")
}
