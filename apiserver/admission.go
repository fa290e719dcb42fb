package apiserver

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strings"

	"connectrpc.com/connect/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/holdfast-io/holdfast/object"
	raftv1 "github.com/holdfast-io/holdfast/proto/holdfast/raft/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
	"github.com/holdfast-io/holdfast/raftstore"
)

// admit holds next, an object as it will be, against the rest of the cluster, and
// fills in what the cluster decides about it. was is nil for a new object. What is
// wrong becomes faults, what the caller should know warnings; what it was decided
// on becomes conditions, so that two writes at once decide one after the other.
func (p *plan) admit(next, was object.Object, index int) error {
	if was == nil {
		if err := p.mayCreate(next); err != nil {
			return err
		}
		p.needNamespace(next, index)
		p.needDefinition(next, index)
	}
	if err := p.mayGrant(next, was); err != nil {
		return err
	}
	p.secure(next, was, index)
	switch next := next.(type) {
	case *corev1.Service:
		before, _ := was.(*corev1.Service)
		if err := p.claimAddresses(next, before, index); err != nil {
			return err
		}
	case *corev1.Pod:
		if was == nil {
			p.blame(object.ValidateNewPod(next), index)
			p.limit(next, index)
			p.rank(next, index)
			p.account(next, index)
		}
	case *corev1.ServiceAccount:
		if p.accounts == nil {
			p.accounts = make(map[object.Key]*corev1.ServiceAccount)
		}
		p.accounts[object.KeyOf(next)] = next
	case *corev1.PersistentVolumeClaim:
		p.limit(next, index)
	case *apiextensionsv1.CustomResourceDefinition:
		prefix := object.ResourceOf(next).Prefix("")
		object.EstablishCRD(next, object.List[*apiextensionsv1.CustomResourceDefinition](p.view, ""), p.now)
		p.noneSince(prefix)
	case *schedulingv1.PriorityClass:
		p.onlyDefault(next, next.GlobalDefault, func(obj object.Object) bool { return obj.(*schedulingv1.PriorityClass).GlobalDefault })
	case *storagev1.StorageClass:
		p.onlyDefault(next, isDefaultClass(next), isDefaultClass)
	case *networkingv1.IngressClass:
		p.onlyDefault(next, isDefaultClass(next), isDefaultClass)
	}
	if warning := object.Inert(next); warning != "" && (was == nil || !sameObject(next, was)) {
		p.warnings = append(p.warnings, warning)
	}
	return p.take(next, was)
}

// noneSince makes the plan conditional on no key of a prefix having been written
// since its view.
func (p *plan) noneSince(prefix string) {
	if p.ranges[prefix] {
		return
	}
	if p.ranges == nil {
		p.ranges = make(map[string]bool)
	}
	p.ranges[prefix] = true
	p.conditions = append(p.conditions, &raftv1.Compare{
		Key: prefix, RangeEnd: prefixEnd(prefix), Number: p.view.Revision() + 1,
		Target: raftv1.CompareTarget_COMPARE_TARGET_MOD_REVISION,
		Result: raftv1.CompareResult_COMPARE_RESULT_LESS,
	})
}

// limit holds a pod or a claim against the LimitRanges of its namespace, and fills
// in what they have as defaults.
func (p *plan) limit(obj object.Object, index int) {
	p.blame(object.ApplyLimitRanges(obj, object.List[*corev1.LimitRange](p.view, obj.GetNamespace())), index)
	p.noneSince(object.ResourceOf(&corev1.LimitRange{}).Prefix(obj.GetNamespace()))
}

// rank gives a new pod the priority of its class.
func (p *plan) rank(pod *corev1.Pod, index int) {
	p.blame(object.ApplyPriority(pod, object.List[*schedulingv1.PriorityClass](p.view, "")), index)
	if pod.Spec.PriorityClassName != "" {
		p.noneSince(object.ResourceOf(&schedulingv1.PriorityClass{}).Prefix(""))
	}
}

// account gives a new pod what it has of its service account.
func (p *plan) account(pod *corev1.Pod, index int) {
	r := object.ResourceOf(&corev1.ServiceAccount{})
	key := r.Key(pod.Namespace, cmp.Or(pod.Spec.ServiceAccountName, object.DefaultServiceAccount))
	account := p.accounts[key]
	if account == nil {
		account, _ = object.Get[*corev1.ServiceAccount](p.view, key)
	}
	p.blame(object.UseServiceAccount(pod, account), index)
	p.noneSince(r.Prefix(pod.Namespace))
}

// claimAddresses gives a Service the addresses and ports that it needs.
func (p *plan) claimAddresses(svc, was *corev1.Service, index int) error {
	if p.claims == nil {
		p.claims = new(object.ServiceClaims)
		for _, other := range object.List[*corev1.Service](p.view, "") {
			p.claims.Add(other)
		}
		p.noneSince(object.ResourceOf(svc).Prefix(""))
	}
	if was != nil {
		p.claims.Remove(was)
	}
	for _, err := range []error{
		object.AllocateServiceIPs(svc, p.claims.AddressOwner, p.cfg.ServiceCIDRs),
		object.AllocateNodePorts(svc, p.claims.PortOwner),
	} {
		if faults, ok := errors.AsType[object.Faults](err); ok {
			p.blame(faults, index)
		} else if errors.Is(err, object.ErrExhausted) {
			return connect.NewError(connect.CodeResourceExhausted, err.Error())
		} else if err != nil {
			return err
		}
	}
	p.claims.Add(svc)
	return nil
}

// onlyDefault warns when there would be two defaults of a kind.
func (p *plan) onlyDefault(obj object.Object, is bool, others func(object.Object) bool) {
	if !is {
		return
	}
	r := object.ResourceOf(obj)
	for other := range p.kinds.List(p.view, r, "") {
		if other.GetName() != obj.GetName() && others(other) {
			p.warn("%s and %s both are the default: which one counts is not defined", object.Title(other), object.Title(obj))
			return
		}
	}
}

// isDefaultClass reports whether a class says that it is the default of its kind.
func isDefaultClass(obj object.Object) bool {
	for _, key := range []string{"storageclass.kubernetes.io/is-default-class", networkingv1.AnnotationIsDefaultIngressClass} {
		if obj.GetAnnotations()[key] == "true" {
			return true
		}
	}
	return false
}

// quotaUse is a ResourceQuota and what is taken of it in a plan.
type quotaUse struct {
	quota *corev1.ResourceQuota
	mod   int64
	used  map[string]corev1.ResourceList // by kind: objects of the view and the plan
}

// take holds what next takes beyond was against the quotas of its namespace.
func (p *plan) take(next, was object.Object) error {
	if next.GetNamespace() == "" || object.Deleting(next) {
		return nil
	}
	if _, is := next.(*corev1.ResourceQuota); is && was != nil {
		return nil
	}
	r := object.ResourceOf(next)
	for _, quota := range object.List[*corev1.ResourceQuota](p.view, next.GetNamespace()) {
		added := object.QuotaUsage(quota, next)
		if was != nil {
			added = less(added, object.QuotaUsage(quota, was))
		}
		if was == nil {
			if err := object.QuotaNeeds(quota, next); err != nil {
				return overQuota(next, err)
			}
		}
		if !takes(added) {
			continue
		}
		use := p.quotas[string(object.KeyOf(quota))]
		if use == nil {
			if p.quotas == nil {
				p.quotas = make(map[string]*quotaUse)
			}
			use = &quotaUse{quota: quota, mod: revisionOf(quota), used: make(map[string]corev1.ResourceList)}
			p.quotas[string(object.KeyOf(quota))] = use
		}
		used, ok := use.used[r.String()]
		if !ok {
			used = object.QuotaUsage(quota)
			for other := range p.kinds.List(p.view, r, next.GetNamespace()) {
				used = plus(used, object.QuotaUsage(quota, other))
			}
		}
		if err := object.ExceedsQuota(quota, used, added); err != nil {
			return overQuota(next, err)
		}
		use.used[r.String()] = plus(used, added)
	}
	return nil
}

// settle writes the quotas that the plan takes from: so that of two plans that take
// from one, the second is made anew, and to show what is taken.
func (p *plan) settle() error {
	for _, key := range slices.Sorted(maps.Keys(p.quotas)) {
		use := p.quotas[key]
		quota := use.quota.DeepCopy()
		quota.Status.Hard = quota.Spec.Hard.DeepCopy()
		if quota.Status.Used == nil {
			quota.Status.Used = object.QuotaUsage(quota)
		}
		for _, used := range use.used {
			for name, amount := range used {
				if !amount.IsZero() { // of those that other kinds take it knows nothing
					quota.Status.Used[name] = amount
				}
			}
		}
		if _, err := p.put(quota, use.mod); err != nil {
			return err
		}
	}
	return nil
}

// overQuota is PermissionDenied in Kubernetes; here the same call may succeed later.
func overQuota(obj object.Object, err error) error {
	return withInfo(connect.Errorf(connect.CodeResourceExhausted, "%s: %v", object.Title(obj), err), &holdfastv1.ErrorInfo{Reason: "Forbidden"})
}

func plus(a, b corev1.ResourceList) corev1.ResourceList {
	sum := a.DeepCopy()
	for name, amount := range b {
		total := sum[name]
		total.Add(amount)
		sum[name] = total
	}
	return sum
}

func less(a, b corev1.ResourceList) corev1.ResourceList {
	rest := a.DeepCopy()
	for name, amount := range b {
		total := rest[name]
		total.Sub(amount)
		rest[name] = total
	}
	return rest
}

func takes(list corev1.ResourceList) bool {
	for _, amount := range list {
		if amount.Sign() > 0 {
			return true
		}
	}
	return false
}

// needNamespace holds a new object against its namespace, which must be there and
// stay; the default one is made when it is first needed.
func (p *plan) needNamespace(obj object.Object, index int) {
	name := obj.GetNamespace()
	if name == "" || p.coming[name] {
		return
	}
	wrong, ok := p.checked[name]
	if !ok {
		wrong = p.checkNamespace(name)
		if p.checked == nil {
			p.checked = make(map[string]object.Fault)
		}
		p.checked[name] = wrong
	}
	if wrong.Message != "" {
		wrong.Object, wrong.Field, wrong.Index = object.Title(obj), "metadata.namespace", index
		p.faults = append(p.faults, wrong)
	}
}

// needDefinition holds a new object of a custom kind against the kind's definition,
// which must stay: one that is being deleted goes with the last object that it has, so
// that there may be none after it.
func (p *plan) needDefinition(obj object.Object, index int) {
	r := object.ResourceOf(obj)
	if !r.Custom {
		return
	}
	key := string(definitionResource.Key("", r.String()))
	wrong, ok := p.checked[key]
	if !ok {
		wrong = p.checkDefinition(key, r)
		if p.checked == nil {
			p.checked = make(map[string]object.Fault)
		}
		p.checked[key] = wrong
	}
	if wrong.Message != "" {
		wrong.Object, wrong.Field, wrong.Index = object.Title(obj), "kind", index
		p.faults = append(p.faults, wrong)
	}
}

func (p *plan) checkDefinition(key string, r object.Resource) (wrong object.Fault) {
	kv, ok := p.view.Get(key)
	if !ok {
		return object.Fault{} // it is made in the same transaction
	}
	crd, err := p.decode(kv, definitionResource)
	if err != nil {
		return object.Fault{Message: err.Error()}
	}
	if object.Deleting(crd.obj) {
		return object.Fault{Message: fmt.Sprintf("the definition of %s, %s is being deleted; wait until it is gone", r.Kind, r)}
	}
	p.unchanged(key, kv.Mod)
	return object.Fault{}
}

var definitionResource = object.ResourceOf(&apiextensionsv1.CustomResourceDefinition{})

var namespaceResource = object.ResourceOf(&corev1.Namespace{})

func (p *plan) checkNamespace(name string) (wrong object.Fault) {
	key := string(namespaceResource.Key("", name))
	kv, ok := p.view.Get(key)
	if !ok && name == metav1.NamespaceDefault {
		if _, err := p.add(p.newNamespace(name)); err != nil {
			return object.Fault{Message: err.Error()}
		}
		return object.Fault{}
	}
	if !ok {
		return object.Fault{Message: fmt.Sprintf("namespace %q does not exist; create it, or apply it together with the object", name)}
	}
	known, err := p.knowNamespace(kv)
	if err != nil {
		return object.Fault{Message: err.Error()}
	}
	if !known.stays {
		return object.Fault{Message: fmt.Sprintf("namespace %q is being deleted; wait until it is gone", name)}
	}
	p.unchanged(key, kv.Mod)
	return object.Fault{}
}

// knowNamespace returns what new objects ask of their namespace. What was found is
// remembered: every one asks.
func (p *plan) knowNamespace(kv raftstore.KeyValue) (*knownNamespace, error) {
	slot := &p.namespaces[maphash.String(namespaceSeed, kv.Key)%uint64(len(p.namespaces))]
	if known := slot.Load(); known != nil && known.key == kv.Key && known.mod == kv.Mod {
		return known, nil
	}
	ns, err := p.decode(kv, namespaceResource)
	if err != nil {
		return nil, err
	}
	known := &knownNamespace{kv.Key, kv.Mod, !object.Deleting(ns.obj), object.PodSecurityOf(ns.obj.(*corev1.Namespace))}
	slot.Store(known)
	return known, nil
}

// knownNamespace is what is remembered of a namespace as it was written at mod.
type knownNamespace struct {
	key    string
	mod    int64
	stays  bool // it is not being deleted
	policy object.PodSecurity
}

var namespaceSeed = maphash.MakeSeed()

func (s *Server) newNamespace(name string) *corev1.Namespace {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	object.Default(ns)
	s.stampNew(ns)
	return ns
}

// emptyNamespace returns FailedPrecondition if obj is a namespace with objects
// in it, which would lose their home.
func (s *Server) emptyNamespace(view raftstore.View, obj object.Object) error {
	ns, ok := obj.(*corev1.Namespace)
	if !ok {
		return nil
	}
	var left []string
	for _, r := range s.catalog(view).Resources() {
		if !r.Namespaced {
			continue
		}
		count := 0
		for range view.Prefix(r.Prefix(ns.Name)) {
			count++
		}
		if count > 0 {
			left = append(left, fmt.Sprintf("%d %s", count, r.Plural))
		}
	}
	if len(left) == 0 {
		return nil
	}
	return connect.Errorf(connect.CodeFailedPrecondition, "namespace %s is not empty: it has %s; delete them first", ns.Name, strings.Join(left, ", "))
}
