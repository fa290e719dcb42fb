package apiserver

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	rbacv1 "k8s.io/api/rbac/v1"

	"github.com/holdfast-io/holdfast/apiserver/rbac"
	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/pki"
	"github.com/holdfast-io/holdfast/raftstore"
)

const (
	// rightsCutOff is how long a peer that is cut off from the quorum goes by the roles
	// and bindings that it knows: a right that was taken away meanwhile must not be used
	// for longer. Administrators' certificates need no role.
	rightsCutOff = time.Minute
	// recheckPeriod is how often a token is looked at again while a stream of its holder
	// is open.
	recheckPeriod = 10 * time.Second
)

// rights follows the roles and bindings of this peer's state, and makes them a policy.
// An answer goes by all that this peer has applied, never by less.
type rights struct {
	store *raftstore.Store
	now   sync.Mutex

	kinds   [4]followedKind
	policy  *rbac.Policy
	upTo    raftstore.Revision
	changed chan struct{} // closed when policy is replaced
}

// followedKind is the objects of a kind, decoded, by key.
type followedKind struct {
	prefix  string
	watcher *raftstore.Watcher // nil: to be read anew
	objects map[string]object.Object
}

func newRights(store *raftstore.Store) *rights {
	r := &rights{store: store, changed: make(chan struct{})}
	for i, kind := range []object.Object{&rbacv1.ClusterRole{}, &rbacv1.Role{}, &rbacv1.ClusterRoleBinding{}, &rbacv1.RoleBinding{}} {
		r.kinds[i].prefix = object.ResourceOf(kind).Prefix("")
	}
	return r
}

// current returns the policy of this peer's state as it is, and a channel that is
// closed once there is another one that somebody has asked for.
func (r *rights) current() (*rbac.Policy, <-chan struct{}) {
	r.now.Lock()
	defer r.now.Unlock()
	view := r.store.View()
	if r.policy != nil && view.Revision() == r.upTo {
		return r.policy, r.changed
	}
	changed := r.policy == nil
	for i := range r.kinds {
		if r.kinds[i].follow(r.store, view) {
			changed = true
		}
	}
	r.upTo = view.Revision()
	if changed {
		r.policy = rbac.New(
			all[*rbacv1.ClusterRole](r.kinds[0]), all[*rbacv1.Role](r.kinds[1]),
			all[*rbacv1.ClusterRoleBinding](r.kinds[2]), all[*rbacv1.RoleBinding](r.kinds[3]))
		close(r.changed)
		r.changed = make(chan struct{})
	}
	return r.policy, r.changed
}

// follow brings the objects up to view at least, and reports whether any changed.
func (f *followedKind) follow(store *raftstore.Store, view raftstore.View) (changed bool) {
	for f.watcher != nil {
		events, upTo, ok, err := f.watcher.Poll()
		if err != nil {
			f.watcher = nil // its history is discarded: read anew
			break
		}
		for _, e := range events {
			changed = true
			f.set(e.Key, e.KV.Value, e.KV.Mod, e.Type == raftstore.EventDelete)
		}
		if !ok || upTo >= view.Revision() {
			return changed
		}
	}
	f.objects = make(map[string]object.Object)
	for kv := range view.Prefix(f.prefix) {
		f.set(kv.Key, kv.Value, kv.Mod, false)
	}
	f.watcher = store.Watch(f.prefix, view.Revision())
	return true
}

func (f *followedKind) set(key string, value []byte, revision int64, deleted bool) {
	delete(f.objects, key)
	if deleted {
		return
	}
	// What cannot be read gives no rights. Stored objects were valid when written.
	if obj, err := object.Decode(value, revision); err == nil {
		f.objects[key] = obj
	}
}

// all returns the objects, by key: so that nothing depends on a map's order.
func all[T object.Object](f followedKind) (list []T) {
	for _, key := range slices.Sorted(maps.Keys(f.objects)) {
		list = append(list, f.objects[key].(T))
	}
	return list
}

// run looks at the policy whenever a role or binding changes, for the streams that end
// with a right.
func (r *rights) run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	for i := range r.kinds {
		prefix := r.kinds[i].prefix // the rest is current's, under its lock
		all.Go(func() {
			for ctx.Err() == nil {
				w := r.store.Watch(prefix, r.store.View().Revision())
				for err := error(nil); err == nil; _, _, err = w.Next(ctx) {
					r.current()
				}
				select { // its history was discarded, or the store has ended, and ctx will
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	return nil
}

// Allowed says whether somebody may do what a says, by which binding, or, if not, what
// would allow it. Unavailable if this peer has been cut off for too long to tell.
func (s *Server) Allowed(who Caller, a Attributes) (by, remedy string, ok bool, err error) {
	wish := a.wish()
	if slices.Contains(who.Groups, rbac.Masters) {
		return "group " + rbac.Masters, "", true, nil
	}
	if cut := s.store.CutOff(); cut > rightsCutOff {
		return "", "", false, connect.Errorf(connect.CodeUnavailable,
			"this peer has been cut off from the quorum for %v: whether %s may still %s cannot be told; ask another peer", cut.Round(time.Second), who.Name, a)
	}
	policy, _ := s.rights.current()
	subject := rbac.Who{Name: who.Name, Groups: who.Groups}
	if by, ok = policy.Allows(subject, wish); ok {
		return by, "", true, nil
	}
	return "", policy.Remedy(subject, wish), false, nil
}

// Rules returns all that somebody may do in a namespace.
func (s *Server) Rules(who Caller, namespace string) []rbacv1.PolicyRule {
	policy, _ := s.rights.current()
	return policy.Rules(rbac.Who{Name: who.Name, Groups: who.Groups}, namespace)
}

// Can returns who may do what a says, but for administrators.
func (s *Server) Can(a Attributes) []rbac.Grant {
	policy, _ := s.rights.current()
	return policy.Can(a.wish())
}

func (a Attributes) wish() rbac.Wish {
	return rbac.Wish{AccessAttributes: object.AccessAttributes{
		Verb: a.Verb, Group: a.Group, Resource: a.Resource, Subresource: a.Subresource, Name: a.Name, Path: a.Path,
	}, Namespace: a.Namespace}
}

// whileAllowed ends a stream, by end, as soon as its caller may no more do what check
// says, or the token that he came with counts no more. Changes of rights are seen at
// once, those of tokens within recheckPeriod. It returns when ctx ends.
func (s *Server) whileAllowed(ctx context.Context, end context.CancelCauseFunc, check func() error) {
	tick := time.NewTicker(recheckPeriod)
	defer tick.Stop()
	recheck, _ := ctx.Value(recheckKey{}).(func(context.Context) error)
	id, _ := identityFrom(ctx)
	for {
		_, changed := s.rights.current()
		if id.Role == pki.RoleNode { // its rights follow from its pods
			changed = s.desired.woken(id.Name)
		}
		err := check()
		if err == nil && recheck != nil {
			err = recheck(ctx)
		}
		if denied(err) && ctx.Err() == nil {
			end(err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-tick.C:
		}
	}
}

// denied reports whether err says that its caller may not, rather than that this
// cannot be told now.
func denied(err error) bool {
	code := connect.CodeOf(err)
	return err != nil && (code == connect.CodePermissionDenied || code == connect.CodeUnauthenticated)
}

// recheckKey is for a func(context.Context) error that says whether a bearer token
// still counts.
type recheckKey struct{}
