package kube

import (
	"slices"
	"time"

	"github.com/holdfast-io/holdfast/object"
)

// Catalog is the kinds that are served at a moment. It does not change.
type Catalog interface {
	Versions() []object.Resource
	ForPlural(group, version, plural string) (object.Resource, bool)
	Decode(data []byte, revision int64) (object.Object, error)
	New(object.Resource) object.Object
}

// Builtin returns the kinds that need no definition.
func Builtin() Catalog { return builtin{} }

type builtin struct{}

func (builtin) Versions() []object.Resource         { return object.Resources() }
func (builtin) New(r object.Resource) object.Object { return object.New(r) }

func (builtin) Decode(data []byte, revision int64) (object.Object, error) {
	return object.Decode(data, revision)
}

func (builtin) ForPlural(group, version, plural string) (object.Resource, bool) {
	all := object.Resources()
	i := slices.IndexFunc(all, func(r object.Resource) bool { return r.Group == group && r.Version == version && r.Plural == plural })
	if i < 0 {
		return object.Resource{}, false
	}
	return all[i], true
}

func isCustom(object.Resource) bool { return false }

func printColumns(r object.Resource) []object.Column {
	return object.Print([]object.Object{object.New(r)}, time.Time{}).Columns
}
