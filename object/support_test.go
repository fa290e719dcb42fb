package object

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestSupported: what Supported says of a field is what validation does to an
// object in which that field alone is set, for every field of every kind.
func TestSupported(t *testing.T) {
	for _, k := range kinds {
		fields := 0
		eachField(k.goType.Elem(), nil, func(path []int) {
			obj := k.make()
			place := Supported(k.resource)
			limited := setField(reflect.ValueOf(obj).Elem(), path, &place)
			refused := len(unsupported(obj)) > 0
			if fields++; refused != place.None() && !limited {
				t.Errorf("%s: %v: refused is %v, Supported says %v", k.resource.Kind, path, refused, place.None())
			}
		})
		if fields < 10 {
			t.Errorf("%s: only %d fields were tried", k.resource.Kind, fields)
		}
	}
}

// eachField calls fn with the way, as indexes of fields, to each field that is
// not a struct, lists and maps passed through.
func eachField(t reflect.Type, path []int, fn func([]int)) {
	t = elementOf(t)
	if t.Kind() != reflect.Struct || isSpecial(t) || len(path) > 8 {
		fn(slices.Clone(path))
		return
	}
	for f := range t.Fields() {
		if f.IsExported() && f.Tag.Get("json") != "-" {
			eachField(f.Type, append(path, f.Index[0]), fn)
		}
	}
}

func elementOf(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Map || t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8 {
		t = t.Elem()
	}
	return t
}

func isSpecial(t reflect.Type) bool {
	_, special := reflect.New(t).Interface().(json.Unmarshaler)
	return special
}

// setField sets the field at the end of path to something, and moves place
// along. limited is true where only some values are supported.
func setField(v reflect.Value, path []int, place *Support) (limited bool) {
	limited = len(place.Only()) > 0 && place.Only()[0] != "{}"
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return setField(v.Elem(), path, place) || limited
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() != reflect.Uint8:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		*place = place.Item()
		return setField(v.Index(0), path, place) || limited
	case v.Kind() == reflect.Map:
		value := reflect.New(v.Type().Elem()).Elem()
		*place = place.Value("key")
		limited = setField(value, path, place) || limited
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf("key").Convert(v.Type().Key()), value)
		return limited
	case len(path) > 0:
		f := v.Type().Field(path[0])
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" { // else it is inline
			*place = place.Field(name)
		}
		return setField(v.Field(path[0]), path[1:], place) || limited
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64, reflect.Int:
		v.SetInt(7)
	case reflect.Slice:
		v.SetBytes([]byte("x"))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[intstr.IntOrString]() {
			v.Set(reflect.ValueOf(intstr.FromInt32(7)))
		} else if err := json.Unmarshal([]byte(`"2026-01-01T00:00:00Z"`), v.Addr().Interface()); err != nil {
			if err := json.Unmarshal([]byte(`"1"`), v.Addr().Interface()); err != nil {
				limited = true // something special that is empty; nothing to say
			}
		}
	}
	return limited || v.IsZero()
}
