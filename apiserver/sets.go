package apiserver

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/types"

	"github.com/holdfast-io/holdfast/object"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// setKeyspace is where the cluster remembers what was applied under a name:
// "holdfast/sets/<namespace>/<name>". No object's key begins so.
const setKeyspace = "holdfast/sets/"

// applySet is a set as an Apply names it.
type applySet struct {
	namespace, name string
	prune           bool
}

func newSet(req *holdfastv1.ApplyRequest) (applySet, error) {
	set := applySet{req.GetSetNamespace(), req.GetSet(), req.GetPrune()}
	if set.name == "" {
		switch {
		case set.prune:
			return set, badRequest("set", "is empty: without the name of a set nobody knows what to prune")
		case set.namespace != "":
			return set, badRequest("set_namespace", "is %q, but there is no name of a set", set.namespace)
		}
		return set, nil
	}
	for _, msg := range apivalidation.NameIsDNSSubdomain(set.name, false) {
		return set, badRequest("set", "%q: %s", set.name, msg)
	}
	if set.namespace != "" {
		for _, msg := range apivalidation.ValidateNamespaceName(set.namespace, false) {
			return set, badRequest("set_namespace", "%q: %s", set.namespace, msg)
		}
	}
	return set, nil
}

func (s applySet) named() bool { return s.name != "" }
func (s applySet) key() string { return setKeyspace + s.namespace + "/" + s.name }

// String names the set for people.
func (s applySet) String() string { return strings.TrimPrefix(s.namespace+"/"+s.name, "/") }

// setRecord is what the store keeps of a set.
type setRecord struct {
	Members []setMember `json:"members"` // in order
}

// setMember is an object that was applied as part of a set. An object of its name
// with another uid is another object, and none of the set's business.
type setMember struct {
	Group     string    `json:"group,omitempty"`
	Version   string    `json:"version"`
	Kind      string    `json:"kind"`
	Namespace string    `json:"namespace,omitempty"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
}

func (m setMember) title() string { return m.Kind + " " + joinName(m.Namespace, m.Name) }

// id is what tells members apart: versions of a kind are one.
func (m setMember) id() string {
	return strings.Join([]string{m.Group, m.Kind, m.Namespace, m.Name}, "/")
}

func memberOf(obj object.Object) setMember {
	r := object.ResourceOf(obj)
	return setMember{r.Group, r.Version, r.Kind, obj.GetNamespace(), obj.GetName(), obj.GetUID()}
}

// updateSet makes the record of a set what steps have applied: its new members,
// and those of before that are still there, or, with prune, none of these: they
// are deleted in the same transaction, unless they have been replaced by others of
// their name or belong to another set as well. The steps of what is deleted are
// returned.
func (p *plan) updateSet(ctx context.Context, set applySet, steps []applyStep) (pruned []applyStep, err error) {
	var before setRecord
	kv, found := p.view.Get(set.key())
	if found {
		if err := json.Unmarshal(kv.Value, &before); err != nil {
			return nil, fmt.Errorf("record of set %s: %w", set, err)
		}
	}
	others, err := p.otherSets(set)
	if err != nil {
		return nil, err
	}
	now := setRecord{}
	applied := make(map[string]bool)
	for _, step := range steps {
		m := memberOf(step.obj)
		applied[m.id()] = true
		now.Members = append(now.Members, m)
		if other, ok := others[m.id()]; ok && other.uid == m.UID {
			p.warn("%s belongs to the set %s as well: each of both would overwrite the other's changes", m.title(), other.set)
		}
	}
	for _, m := range before.Members {
		if applied[m.id()] {
			continue
		}
		if !set.prune {
			now.Members = append(now.Members, m)
			continue
		}
		r, err := p.kinds.ForKind(m.Group, m.Version, m.Kind)
		if err != nil {
			p.warn("%s is not pruned: %v", m.title(), err)
			now.Members = append(now.Members, m)
			continue
		}
		kv, ok := p.view.Get(string(r.Key(m.Namespace, m.Name)))
		if !ok {
			continue
		}
		was, err := p.decode(kv, r)
		if err != nil {
			return nil, err
		}
		if was.obj.GetUID() != m.UID {
			p.warn("%s is not pruned: it was replaced by another of the same name", m.title())
			continue
		}
		if other, ok := others[m.id()]; ok && other.uid == m.UID {
			p.warn("%s is not pruned: it belongs to the set %s as well", m.title(), other.set)
			continue
		}
		if err := p.Authorize(ctx, attributes("delete", r, "", m.Namespace, m.Name)); err != nil {
			return nil, err
		}
		end, err := p.remove(was, deletion{})
		if err != nil {
			return nil, err
		}
		pruned = append(pruned, applyStep{written: end.written, action: holdfastv1.ApplyAction_APPLY_ACTION_PRUNED, before: was.obj})
	}
	slices.SortFunc(now.Members, func(a, b setMember) int { return cmp.Compare(a.id(), b.id()) })
	switch {
	case slices.Equal(now.Members, before.Members):
		if len(p.ops) > 0 { // who prunes by the record must not see an older one
			p.unchanged(set.key(), kv.Mod)
		}
	case len(now.Members) == 0:
		p.change.remove(set.key(), kv.Mod)
	default:
		data, err := json.Marshal(now)
		if err != nil {
			return nil, err
		}
		p.putRaw(set.key(), data, kv.Mod)
	}
	return pruned, nil
}

// otherSet says to which set, but for one's own, a member belongs.
type otherSet struct {
	set string
	uid types.UID
}

// otherSets returns the members of all sets but set.
func (p *plan) otherSets(set applySet) (map[string]otherSet, error) {
	others := make(map[string]otherSet)
	for kv := range p.view.Prefix(setKeyspace) {
		if kv.Key == set.key() {
			continue
		}
		var record setRecord
		name := strings.TrimPrefix(strings.TrimPrefix(kv.Key, setKeyspace), "/")
		if err := json.Unmarshal(kv.Value, &record); err != nil {
			return nil, fmt.Errorf("record of set %s: %w", name, err)
		}
		for _, m := range record.Members {
			others[m.id()] = otherSet{name, m.UID}
		}
	}
	return others, nil
}
