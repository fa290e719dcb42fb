package apiserver

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// writing is how a write is made, whatever it writes.
type writing struct {
	what    string // for errors: "create Pod default/web"
	reason  string // for the audit: "create"
	manager string // who owns the fields that it sets
	dryRun  bool
	deletes bool // so that it needs no values: what cannot be opened can be deleted
}

// plan is a write as it comes to be on one view: the operations of one
// transaction under the conditions that they rest on, and what is to be said
// about it. The methods that add objects are those of the verbs: create, replace,
// remove.
type plan struct {
	*Server
	writing
	view  raftstore.View
	kinds catalog
	now   time.Time
	// caller is who writes, if roles say what he may; nil for others.
	caller *Caller
	// node is the node that writes, if it is one. judged: judge has seen what.
	node   string
	judged bool

	change
	faults object.Faults
	// conflicts are fields that other managers own.
	conflicts object.Faults
	warnings  []string
	coming    map[string]bool                       // namespaces that this transaction makes
	checked   map[string]object.Fault               // namespace, or key of a definition -> what is wrong with it
	claims    *object.ServiceClaims                 // of the view's Services and those of the plan
	quotas    map[string]*quotaUse                  // by key, of those that the plan takes from
	accounts  map[object.Key]*corev1.ServiceAccount // that this transaction makes or changes
	ranges    map[string]bool                       // prefixes that must be as they are in the view
	securing  []object.Object                       // pods and what makes them, for secured
	policies  map[string]object.PodSecurity         // by namespace, as it will be
	// notes are annotations of the audit's record.
	notes map[string]string
}

// stored is an object as it stands in the plan's view.
type stored struct {
	key string
	mod int64
	obj object.Object // resourceVersion included; not to be changed
}

// written is what a plan makes of one object.
type written struct {
	obj     object.Object
	data    []byte // as it is stored; nil when it is not written
	changed bool   // it becomes what it is by this transaction
}

// load returns an object of the view, NotFound if there is none.
func (p *plan) load(r object.Resource, namespace, name string) (stored, error) {
	key := string(r.Key(namespace, name))
	kv, ok := p.view.Get(key)
	if !ok {
		return stored{}, notFound(r, namespace, name)
	}
	return p.decode(kv, r)
}

// decode returns an object of the view as one of r, which is a version of its kind.
func (p *plan) decode(kv raftstore.KeyValue, r object.Resource) (stored, error) {
	obj, err := p.kinds.Decode(kv.Value, kv.Mod)
	if err == nil {
		obj, err = object.Convert(obj, r)
	}
	if err != nil {
		return stored{}, fmt.Errorf("stored object %s: %w", kv.Key, err)
	}
	if opened, err := p.secrets.open(obj); err == nil {
		obj = opened
	} else if !p.deletes {
		return stored{}, err
	}
	return stored{kv.Key, kv.Mod, obj}, nil
}

// blame notes faults of the object of that index of the request.
func (p *plan) blame(faults object.Faults, index int) {
	for _, fault := range faults {
		fault.Index = index
		p.faults = append(p.faults, fault)
	}
}

func (p *plan) warn(format string, args ...any) {
	p.warnings = append(p.warnings, fmt.Sprintf(format, args...))
}

// add puts an object that nothing may stand in the place of.
func (p *plan) add(obj object.Object) (written, error) {
	data, err := p.put(obj, 0)
	return written{obj: obj, data: data, changed: true}, err
}

// fits returns InvalidArgument if the transaction is larger than one can be.
func (p *plan) fits() error {
	count, size := len(p.conditions)+len(p.ops), 0
	for _, op := range p.ops {
		size += proto.Size(op)
	}
	if count <= raftstore.MaxTxnOps && size < raftstore.MaxTxnBytes {
		return nil
	}
	objects := len(p.ops)
	parts := max((count+raftstore.MaxTxnOps-1)/raftstore.MaxTxnOps, (size+raftstore.MaxTxnBytes-1)/raftstore.MaxTxnBytes, 2)
	return withInfo(connect.Errorf(connect.CodeInvalidArgument,
		"%s: one transaction holds about %d objects and %d KiB, this one would write %d objects and %d KiB: split it into %d or more; "+
			"what is stored as it should be counts for nothing, so an apply of everything, with prune, can follow the parts",
		p.what, raftstore.MaxTxnOps/2-8, raftstore.MaxTxnBytes>>10, objects, size>>10, parts),
		&holdfastv1.ErrorInfo{Reason: "RequestEntityTooLarge"})
}

// commit calls build with a plan and commits what it wants, or would commit in a
// dry run. The revision returned is the change's own, or that of the plan's view when
// there was nothing to do.
func (s *Server) commit(ctx context.Context, w writing, build func(p *plan) error) (revision int64, p *plan, err error) {
	revision, err = s.transact(ctx, w.what, w.reason, !w.dryRun, func(view raftstore.View) (change, error) {
		p = s.newPlan(view, w)
		if id, ok := identityFrom(ctx); ok && byRoles(id.Role) {
			caller, _ := CallerFrom(ctx)
			p.caller = &caller
		} else if ok && id.Role == pki.RoleNode {
			p.node = id.Name
		}
		if err := build(p); err != nil {
			return change{}, err
		}
		if p.node != "" && !p.judged && len(p.ops) > 0 {
			panic("apiserver: a node writes by a way on which nobody asks whether it may")
		}
		if err := p.refusal(); err != nil {
			return change{}, err
		}
		if err := p.secured(); err != nil {
			return change{}, err
		}
		if err := p.settle(); err != nil {
			return change{}, err
		}
		if err := p.fits(); err != nil || w.dryRun {
			return change{}, err
		}
		return p.change, nil
	})
	if p != nil {
		auditingOf(ctx).noted(p)
	}
	return revision, p, err
}

func (s *Server) newPlan(view raftstore.View, w writing) *plan {
	return &plan{Server: s, writing: w, view: view, kinds: s.catalog(view), now: s.cfg.Now()}
}

// refusal returns why the plan cannot be carried out, nil if it can.
func (p *plan) refusal() error {
	switch {
	case len(p.faults) > 0:
		return invalid(p.faults)
	case len(p.conflicts) > 0:
		return conflicted(p.conflicts)
	}
	return nil
}

// out returns what was written at revision, in an encoding. Its revision is 0 in
// a dry run.
func (p *plan) out(w written, revision int64, encoding holdfastv1.Encoding) (*holdfastv1.Object, error) {
	switch {
	case w.changed && p.dryRun:
		w.obj.SetResourceVersion("")
	case w.changed:
		w.obj.SetResourceVersion(revisionText(revision))
	}
	return encodeObject(w.obj, w.data, encoding)
}

// outAs is out for what the caller asked for as a subresource.
func (p *plan) outAs(w written, revision int64, encoding holdfastv1.Encoding, sub string) (*holdfastv1.Object, error) {
	if sub != scaleSubresource {
		return p.out(w, revision, encoding)
	}
	if w.changed {
		w.obj.SetResourceVersion(revisionText(revision))
	}
	return encodeScale(w.obj, encoding)
}

// answerTo is the answer of a write that is part of the state from revision on.
func (p *plan) answerTo(revision int64) *holdfastv1.Answer {
	a := p.answerAt(revision)
	a.Warnings = p.warnings
	return a
}

// namespaceOf returns the name of obj if it is a namespace.
func namespaceOf(obj object.Object) (string, bool) {
	ns, ok := obj.(*corev1.Namespace)
	if !ok {
		return "", false
	}
	return ns.Name, true
}

// revisionText is a revision as a resourceVersion.
func revisionText(revision int64) string { return strconv.FormatInt(revision, 10) }
