package controllers

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/holdfast-io/holdfast/object"
)

// Annotations that people and kubectl read.
const (
	// RevisionAnnotation is the number of a Deployment's template, on the
	// Deployment for the current one and on each ReplicaSet for its own.
	RevisionAnnotation = "deployment.kubernetes.io/revision"

	desiredAnnotation = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation     = "deployment.kubernetes.io/max-replicas"
	// rollbackAnnotation on a Deployment asks for the way back to the template before
	// when a rollout's progress deadline passes; rolledBackAnnotation marks the
	// ReplicaSet that this happened to.
	rollbackAnnotation   = "holdfast.dev/rollback-on-failure"
	rolledBackAnnotation = "holdfast.dev/rolled-back"

	lastAppliedAnnotation = "kubectl.kubernetes.io/last-applied-configuration"
)

// Reasons of the condition Progressing, as in Kubernetes.
const (
	reasonNewReplicaSet    = "NewReplicaSetCreated"
	reasonFoundReplicaSet  = "FoundNewReplicaSet"
	reasonUpdated          = "ReplicaSetUpdated"
	reasonComplete         = "NewReplicaSetAvailable"
	reasonDeadlineExceeded = "ProgressDeadlineExceeded"
	reasonPaused           = "DeploymentPaused"
	reasonResumed          = "DeploymentResumed"
)

var (
	deploymentResource = object.ResourceOf(&appsv1.Deployment{})
	deploymentKind     = appsv1.SchemeGroupVersion.WithKind("Deployment")
)

// deploymentPlan is the outcome of one pass over a Deployment. Its objects are
// the caller's, changed to what they should become.
type deploymentPlan struct {
	deployment *appsv1.Deployment
	changed    bool                 // the Deployment itself is to be written
	create     *appsv1.ReplicaSet   // for the current template; nil: exists
	update     []*appsv1.ReplicaSet // scaled, annotated, adopted or released
	remove     []*appsv1.ReplicaSet // beyond the history limit
	keep       []*appsv1.ReplicaSet // read, and to be unchanged when the plan is committed
	notes      []string             // what was scaled, for events
	failure    string               // why the Deployment was rolled back
	again      time.Duration        // the progress deadline passes; 0: never
}

// rollout is the work of planDeployment: the Deployment, its ReplicaSets, and
// what has been decided about them so far.
type rollout struct {
	d       *appsv1.Deployment
	current *appsv1.ReplicaSet   // with the current template; nil: none
	old     []*appsv1.ReplicaSet // the others, oldest first
	now     time.Time
	touched map[*appsv1.ReplicaSet]bool
	created bool // current is new
	notes   []string
	failure string // why the Deployment was rolled back
}

// planDeployment moves d one step toward its spec: it makes a ReplicaSet for
// the template, shifts replicas from old ones as the strategy allows, and
// reports. owned are the ReplicaSets that d controls, orphans those in its
// namespace that nobody controls and that its selector selects; taken reports
// whether any ReplicaSet there has a name. It is pure: testdata/deployment
// states its whole behavior. Its arguments are changed.
//
// All arithmetic is on what the ReplicaSets may have: the larger of
// spec.replicas, which they will get to, and status.replicas, which they may
// still have. So pods never exceed replicas + maxSurge even between this plan
// and the ReplicaSets' own.
func planDeployment(d *appsv1.Deployment, owned, orphans []*appsv1.ReplicaSet, taken func(name string) bool, newUID func() types.UID, now time.Time) deploymentPlan {
	if object.Deleting(d) {
		return deploymentPlan{deployment: d}
	}
	before := d.DeepCopy()
	r := &rollout{d: d, now: now, touched: map[*appsv1.ReplicaSet]bool{}}
	sets, released := r.claim(owned, orphans)
	r.sort(sets)
	r.rollBack()

	switch {
	case d.Spec.Paused:
		r.scaleAll()
	case r.current != nil && r.scaledByUser():
		r.syncRevision()
		r.scaleAll()
	default:
		r.ensureCurrent(taken, newUID)
		if r.current == nil {
			break // the name is taken: status.collisionCount has changed, and the next pass finds another
		}
		r.syncRevision()
		if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
			r.recreate()
		} else {
			r.rollingUpdate()
		}
	}

	plan := deploymentPlan{deployment: d, notes: r.notes, failure: r.failure}
	plan.again = r.setStatus()
	if r.created {
		plan.create = r.current
	}
	for _, rs := range append(r.all(), released...) {
		switch {
		case rs == plan.create:
		case r.expired(rs):
			plan.remove = append(plan.remove, rs)
		case r.touched[rs]:
			plan.update = append(plan.update, rs)
		default:
			plan.keep = append(plan.keep, rs)
		}
	}
	plan.changed = !equality.Semantic.DeepEqual(before, d)
	return plan
}

// claim returns d's ReplicaSets: the owned ones that its selector still selects,
// and the orphans, which become its own. Those it lets go are released.
func (r *rollout) claim(owned, orphans []*appsv1.ReplicaSet) (sets, released []*appsv1.ReplicaSet) {
	selector := usable(r.d.Spec.Selector)
	for _, rs := range owned {
		if selector != nil && !selector.Matches(labels.Set(rs.Labels)) && !object.Deleting(rs) {
			rs.OwnerReferences = withoutOwner(rs.OwnerReferences, r.d.UID)
			r.touched[rs] = true
			released = append(released, rs)
			continue
		}
		sets = append(sets, rs)
	}
	for _, rs := range orphans {
		if object.Deleting(rs) {
			continue
		}
		rs.OwnerReferences = append(rs.OwnerReferences, *metav1.NewControllerRef(r.d, deploymentKind))
		r.touched[rs] = true
		sets = append(sets, rs)
	}
	return sets, released
}

// sort tells the ReplicaSet of the current template from the old ones. If several
// have that template, the oldest is it.
func (r *rollout) sort(sets []*appsv1.ReplicaSet) {
	slices.SortFunc(sets, oldestFirst)
	for _, rs := range sets {
		if r.current == nil && !object.Deleting(rs) && sameTemplate(&rs.Spec.Template, &r.d.Spec.Template) {
			r.current = rs
		} else {
			r.old = append(r.old, rs)
		}
	}
}

// rollBack goes back to the newest template before when the rollout of the current
// one has passed its deadline, if the Deployment asks for that. The failure was
// committed first, for people to see. A template that failed so is never gone back
// to.
func (r *rollout) rollBack() {
	c := progressing(&r.d.Status)
	if r.d.Annotations[rollbackAnnotation] != "true" || r.d.Spec.Paused || r.current == nil || c == nil ||
		c.Reason != reasonDeadlineExceeded || c.Message != timedOut(r.current) {
		return
	}
	var target *appsv1.ReplicaSet
	for _, rs := range r.old {
		if !object.Deleting(rs) && rs.Annotations[rolledBackAnnotation] == "" && (target == nil || revisionOf(rs) > revisionOf(target)) {
			target = rs
		}
	}
	if target == nil {
		return
	}
	r.current.Annotations = with(r.current.Annotations, rolledBackAnnotation, r.now.UTC().Format(time.RFC3339))
	r.touched[r.current] = true
	r.failure = fmt.Sprintf("rolled back to revision %d: ReplicaSet %s has not progressed within %d s", revisionOf(target), r.current.Name, *r.d.Spec.ProgressDeadlineSeconds)
	r.d.Spec.Template = *target.Spec.Template.DeepCopy()
	delete(r.d.Spec.Template.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	r.d.Generation++
	r.old = append(slices.DeleteFunc(r.old, func(rs *appsv1.ReplicaSet) bool { return rs == target }), r.current)
	r.current = target
	r.progress(reasonUpdated, fmt.Sprintf("ReplicaSet %s is progressing: %s", target.Name, r.failure))
}

// all returns d's ReplicaSets, oldest first, the current one last.
func (r *rollout) all() []*appsv1.ReplicaSet {
	if r.current == nil {
		return slices.Clone(r.old)
	}
	return append(slices.Clone(r.old), r.current)
}

// sameTemplate compares templates but for the label that tells them apart.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	a, b = a.DeepCopy(), b.DeepCopy()
	delete(a.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	delete(b.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	return equality.Semantic.DeepEqual(a, b)
}

// ensureCurrent makes the ReplicaSet of the current template if there is none.
// Its name follows from the template, so two plans for one template cannot both
// succeed. If something else has the name, it counts a collision instead.
func (r *rollout) ensureCurrent(taken func(string) bool, newUID func() types.UID) {
	if r.current != nil {
		return
	}
	hash := templateHash(&r.d.Spec.Template, r.d.Status.CollisionCount)
	name := r.d.Name + "-" + hash
	if taken(name) {
		r.collide()
		return
	}
	template := r.d.Spec.Template.DeepCopy()
	template.Labels = with(template.Labels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	selector := r.d.Spec.Selector.DeepCopy()
	selector.MatchLabels = with(selector.MatchLabels, appsv1.DefaultDeploymentUniqueLabelKey, hash)
	rs := &appsv1.ReplicaSet{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ReplicaSet"},
		ObjectMeta: metav1.ObjectMeta{
			Name:              name,
			Namespace:         r.d.Namespace,
			UID:               newUID(),
			Generation:        1,
			CreationTimestamp: metav1.NewTime(r.now.Truncate(time.Second)),
			Labels:            maps.Clone(template.Labels),
			Annotations:       map[string]string{},
			OwnerReferences:   []metav1.OwnerReference{*metav1.NewControllerRef(r.d, deploymentKind)},
		},
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        new(int32(0)),
			MinReadySeconds: r.d.Spec.MinReadySeconds,
			Selector:        selector,
			Template:        *template,
		},
	}
	object.Default(rs)
	r.current, r.created = rs, true
	r.progress(reasonNewReplicaSet, fmt.Sprintf("created ReplicaSet %s", name))
}

func (r *rollout) collide() {
	n := int32(0)
	if r.d.Status.CollisionCount != nil {
		n = *r.d.Status.CollisionCount
	}
	r.d.Status.CollisionCount = new(n + 1)
}

// templateHash names a template. A different hash for an equal template, from
// another version of Kubernetes' types, does no harm: ReplicaSets are found by
// their template.
func templateHash(template *corev1.PodTemplateSpec, collisions *int32) string {
	data, err := template.Marshal()
	if err != nil {
		panic(fmt.Sprintf("controllers: encode pod template: %v", err)) // generated code, no I/O
	}
	h := fnv.New32a()
	h.Write(data)
	if collisions != nil {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(*collisions)))
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

// syncRevision numbers the current ReplicaSet after all old ones, so that a
// rollback to an old template makes it the newest again, and brings d's
// annotations and minReadySeconds over to it.
func (r *rollout) syncRevision() {
	newest := int64(0)
	for _, rs := range r.old {
		newest = max(newest, revisionOf(rs))
	}
	rs := r.current
	annotations := maps.Clone(rs.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	for k, v := range r.d.Annotations {
		switch k {
		case RevisionAnnotation, desiredAnnotation, maxAnnotation, lastAppliedAnnotation, rolledBackAnnotation:
		default:
			annotations[k] = v
		}
	}
	if revisionOf(rs) <= newest {
		annotations[RevisionAnnotation] = strconv.FormatInt(newest+1, 10)
	}
	if !maps.Equal(annotations, rs.Annotations) {
		rs.Annotations = annotations
		r.touched[rs] = true
	}
	if rs.Spec.MinReadySeconds != r.d.Spec.MinReadySeconds {
		rs.Spec.MinReadySeconds = r.d.Spec.MinReadySeconds
		rs.Generation++
		r.touched[rs] = true
	}
	if revision := rs.Annotations[RevisionAnnotation]; r.d.Annotations[RevisionAnnotation] != revision {
		r.d.Annotations = with(r.d.Annotations, RevisionAnnotation, revision)
	}
	if progressing(&r.d.Status) == nil {
		r.progress(reasonFoundReplicaSet, fmt.Sprintf("found ReplicaSet %s", rs.Name))
	}
}

func revisionOf(rs *appsv1.ReplicaSet) int64 {
	n, err := strconv.ParseInt(rs.Annotations[RevisionAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// scaledByUser reports whether d.spec.replicas has changed since the ReplicaSets
// were scaled last. They are then scaled in proportion, and the rollout goes on
// in the next pass.
func (r *rollout) scaledByUser() bool {
	for _, rs := range r.all() {
		if replicasOf(rs.Spec.Replicas) == 0 {
			continue
		}
		if desired, ok := annotatedInt(rs, desiredAnnotation); ok && desired != replicasOf(r.d.Spec.Replicas) {
			return true
		}
	}
	return false
}

// scaleAll brings the ReplicaSets to d's size without moving replicas from one
// to the other: when d is paused, or was scaled in the middle of a rollout.
func (r *rollout) scaleAll() {
	var active []*appsv1.ReplicaSet
	for _, rs := range r.all() {
		if replicasOf(rs.Spec.Replicas) > 0 {
			active = append(active, rs)
		}
	}
	desired := replicasOf(r.d.Spec.Replicas)
	switch {
	case len(active) == 0 && r.current != nil:
		if r.d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType || r.oldHaveEnded() {
			r.scale(r.current, r.fit(r.current, desired))
		}
	case len(active) == 0 && len(r.old) > 0: // paused before the template was rolled out
		newest := r.old[len(r.old)-1]
		r.scale(newest, r.fit(newest, desired))
	case len(active) == 1:
		r.scale(active[0], r.fit(active[0], desired))
	case r.current != nil && replicasOf(r.current.Spec.Replicas) == desired && r.current.Status.AvailableReplicas == desired:
		for _, rs := range r.old {
			r.scale(rs, 0)
		}
	case len(active) > 1 && r.d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType:
		r.scaleInProportion(active)
	}
	for _, rs := range active {
		r.annotateSize(rs) // what did not change has seen the new size as well
	}
}

// scaleInProportion shares d's size, surge included, among the active ReplicaSets
// as it was shared before, so that scaling in the middle of a rollout neither
// hastens nor undoes it. What rounding leaves over goes to the largest.
func (r *rollout) scaleInProportion(active []*appsv1.ReplicaSet) {
	desired, total := replicasOf(r.d.Spec.Replicas), int32(0)
	for _, rs := range active {
		total += replicasOf(rs.Spec.Replicas)
	}
	allowed := int32(0)
	if desired > 0 {
		allowed = desired + maxSurge(r.d)
	}
	add := allowed - total
	slices.SortStableFunc(active, func(a, b *appsv1.ReplicaSet) int {
		if add > 0 { // of equals, the newest grows and the oldest shrinks
			return cmp.Or(cmp.Compare(*b.Spec.Replicas, *a.Spec.Replicas), oldestFirst(b, a))
		}
		return cmp.Or(cmp.Compare(*b.Spec.Replicas, *a.Spec.Replicas), oldestFirst(a, b))
	})
	left := add
	sizes := make([]int32, len(active))
	for i, rs := range active {
		size := replicasOf(rs.Spec.Replicas)
		before, ok := annotatedInt(rs, maxAnnotation)
		if !ok || before <= 0 {
			before = max(r.d.Status.Replicas, 1)
		}
		share := int32(math.Round(float64(size)*float64(allowed)/float64(before))) - size
		if add > 0 {
			share = min(max(share, 0), left)
		} else {
			share = max(min(share, 0), left)
		}
		sizes[i] = size + share
		left -= share
	}
	sizes[0] = max(sizes[0]+left, 0)
	for i, rs := range active {
		r.scale(rs, r.fit(rs, sizes[i]))
	}
}

// rollingUpdate grows the current ReplicaSet into the room that the surge leaves
// and shrinks the old ones by what is available beyond the minimum.
func (r *rollout) rollingUpdate() {
	desired := replicasOf(r.d.Spec.Replicas)
	r.scale(r.current, r.fit(r.current, desired))

	minimum := desired - maxUnavailable(r.d)
	available := serving(r.current)
	total := available // pods of the current template count only once they serve
	for _, rs := range r.old {
		available += serving(rs)
		total += replicasOf(rs.Spec.Replicas)
	}
	// First what serves nobody, but no more than if all that is left did.
	budget := total - minimum
	for _, rs := range r.old {
		size := replicasOf(rs.Spec.Replicas)
		if broken := min(size-serving(rs), budget); broken > 0 {
			r.scale(rs, size-broken)
			budget -= broken
		}
	}
	// Then what the minimum can spare. A set that still has broken pods would
	// lose those instead, and they are counted above.
	budget = available - minimum
	for _, rs := range r.old {
		size := replicasOf(rs.Spec.Replicas)
		if spare := min(size, budget); spare > 0 && serving(rs) == size {
			r.scale(rs, size-spare)
			budget -= spare
		}
	}
}

// serving returns how many available pods rs has that it is going to keep: those
// beyond its size are as good as gone.
func serving(rs *appsv1.ReplicaSet) int32 {
	return min(rs.Status.AvailableReplicas, replicasOf(rs.Spec.Replicas))
}

// recreate takes all old pods away, and starts the new ones only once the last
// has ended. Pods on a lost node end when it returns or is removed.
func (r *rollout) recreate() {
	for _, rs := range r.old {
		r.scale(rs, 0)
	}
	if r.oldHaveEnded() {
		r.scale(r.current, r.fit(r.current, replicasOf(r.d.Spec.Replicas)))
	}
}

// oldHaveEnded reports whether no pod of an old template is left, as far as the
// newest word of its ReplicaSet goes.
func (r *rollout) oldHaveEnded() bool {
	return !slices.ContainsFunc(r.old, func(rs *appsv1.ReplicaSet) bool {
		s := rs.Status
		return s.Replicas > 0 || s.ObservedGeneration < rs.Generation || s.TerminatingReplicas != nil && *s.TerminatingReplicas > 0
	})
}

// fit returns size, or as much of the growth to it as keeps all pods together
// within replicas + maxSurge.
func (r *rollout) fit(rs *appsv1.ReplicaSet, size int32) int32 {
	now := replicasOf(rs.Spec.Replicas)
	if size <= now {
		return size
	}
	room := replicasOf(r.d.Spec.Replicas) + maxSurge(r.d)
	for _, other := range r.all() {
		if other != rs {
			room -= max(replicasOf(other.Spec.Replicas), other.Status.Replicas)
		}
	}
	return max(min(size, room), now)
}

// scale sets the size of rs and notes for whom it was.
func (r *rollout) scale(rs *appsv1.ReplicaSet, size int32) {
	from := replicasOf(rs.Spec.Replicas)
	if from != size {
		rs.Spec.Replicas = &size
		if rs != r.current || !r.created {
			rs.Generation++
		}
		r.touched[rs] = true
		direction := "up"
		if size < from {
			direction = "down"
		}
		r.notes = append(r.notes, fmt.Sprintf("scaled %s ReplicaSet %s from %d to %d", direction, rs.Name, from, size))
	}
	if size > 0 {
		r.annotateSize(rs)
	}
}

// annotateSize notes on rs for which size of d it was scaled.
func (r *rollout) annotateSize(rs *appsv1.ReplicaSet) {
	desired := strconv.Itoa(int(replicasOf(r.d.Spec.Replicas)))
	most := strconv.Itoa(int(replicasOf(r.d.Spec.Replicas) + maxSurge(r.d)))
	if rs.Annotations[desiredAnnotation] != desired || rs.Annotations[maxAnnotation] != most {
		rs.Annotations = with(with(rs.Annotations, desiredAnnotation, desired), maxAnnotation, most)
		r.touched[rs] = true
	}
}

func annotatedInt(rs *appsv1.ReplicaSet, name string) (int32, bool) {
	n, err := strconv.ParseInt(rs.Annotations[name], 10, 32)
	return int32(n), err == nil
}

// maxSurge returns how many pods d may have beyond its replicas.
func maxSurge(d *appsv1.Deployment) int32 {
	surge, _ := rollingBounds(d)
	return surge
}

// maxUnavailable returns how many of d's replicas may be unavailable while it
// rolls.
func maxUnavailable(d *appsv1.Deployment) int32 {
	_, unavailable := rollingBounds(d)
	return unavailable
}

// rollingBounds resolves percentages: surge rounds up, unavailable down. If both
// come to 0, one may be unavailable, or the rollout could not move.
func rollingBounds(d *appsv1.Deployment) (surge, unavailable int32) {
	desired := replicasOf(d.Spec.Replicas)
	if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
		return 0, 0
	}
	quarter := intstr.FromString("25%")
	resolve := func(v *intstr.IntOrString, up bool) int32 {
		if v == nil {
			v = &quarter
		}
		n, err := intstr.GetScaledValueFromIntOrPercent(v, int(desired), up)
		if err != nil {
			return 0 // refused by validation
		}
		return int32(max(n, 0))
	}
	var rolling appsv1.RollingUpdateDeployment
	if d.Spec.Strategy.RollingUpdate != nil {
		rolling = *d.Spec.Strategy.RollingUpdate
	}
	surge = resolve(rolling.MaxSurge, true)
	unavailable = min(resolve(rolling.MaxUnavailable, false), desired)
	if surge == 0 && unavailable == 0 && desired > 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// expired reports whether rs is an old template beyond the history limit. Only
// what has no pods goes, and only once the rollout is complete: until then one
// may want to go back.
func (r *rollout) expired(rs *appsv1.ReplicaSet) bool {
	limit := int32(10)
	if r.d.Spec.RevisionHistoryLimit != nil {
		limit = *r.d.Spec.RevisionHistoryLimit
	}
	if rs == r.current || !slices.Contains(r.old, rs) || r.current == nil || !complete(r.d, &r.d.Status) || !unused(rs) {
		return false
	}
	newer := int32(0)
	for _, other := range r.old {
		if other != rs && cmp.Or(cmp.Compare(revisionOf(other), revisionOf(rs)), oldestFirst(other, rs)) > 0 {
			newer++
		}
	}
	return newer >= limit
}

func unused(rs *appsv1.ReplicaSet) bool {
	return replicasOf(rs.Spec.Replicas) == 0 && rs.Status.Replicas == 0 &&
		rs.Status.ObservedGeneration >= rs.Generation && !object.Deleting(rs)
}

// outcome turns the plan into writes. Everything that was read is a condition:
// the arithmetic holds for all ReplicaSets together or not at all.
func (p deploymentPlan) outcome() outcome {
	o := outcome{again: p.again}
	for _, rs := range p.update {
		o.update(rs)
	}
	for _, rs := range p.remove {
		o.delete(rs)
		o.tell(p.deployment, "RevisionPruned", "deleted ReplicaSet %s: beyond revisionHistoryLimit", rs.Name)
	}
	if p.create != nil {
		o.create(p.create)
	}
	if p.failure != "" {
		o.warn(p.deployment, "DeploymentRollback", "%s", p.failure)
	}
	for _, note := range p.notes {
		o.tell(p.deployment, "ScalingReplicaSet", "%s", note)
	}
	if p.changed {
		o.update(p.deployment)
	} else if len(o.txn.Then) > 0 {
		o.unchanged(p.deployment)
	}
	if len(o.txn.Then) > 0 {
		for _, rs := range p.keep {
			o.unchanged(rs)
		}
	}
	if len(p.notes) > 0 {
		o.txn.Reason = p.notes[0]
	}
	return o
}

func with(m map[string]string, k, v string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}

// countAvailable brings the number of available pods in rs's status up to date: pods
// become available by time alone, and a rollout that went by an older count could
// take them for broken, all at once.
func countAvailable(rs *appsv1.ReplicaSet, pods []*corev1.Pod, now time.Time) {
	available := int32(0)
	for _, pod := range pods {
		if object.Deleting(pod) || object.PodPhaseFinal(pod) {
			continue
		}
		if ok, _ := object.PodAvailable(pod, rs.Spec.MinReadySeconds, now); ok {
			available++
		}
	}
	rs.Status.AvailableReplicas = min(available, rs.Status.Replicas)
}

// newDeployments returns the controller that rolls Deployments out.
func newDeployments(newUID func() string) *controller {
	return &controller{
		name: "deployment",
		all:  func(s state) []object.Key { return keysOf(s.index, deploymentResource) },
		affected: func(x *index, c change) []object.Key {
			return append(affectsItself(deploymentResource, c), affectsOwners(x, deploymentResource, replicaSetResource, c)...)
		},
		plan: func(s state, key object.Key, now time.Time) outcome {
			d, ok := object.Get[*appsv1.Deployment](s, key)
			if !ok {
				return outcome{} // deleted: the collector takes its ReplicaSets
			}
			var orphans []*appsv1.ReplicaSet
			if selector := usable(d.Spec.Selector); selector != nil {
				orphans = orphansFor[*appsv1.ReplicaSet](s, replicaSetResource.Prefix(d.Namespace), selector)
			}
			taken := func(name string) bool {
				_, _, ok := s.Value(string(replicaSetResource.Key(d.Namespace, name)))
				return ok
			}
			uid := func() types.UID { return types.UID(newUID()) }
			owned := ownedBy[*appsv1.ReplicaSet](s, d)
			for _, rs := range owned {
				countAvailable(rs, ownedBy[*corev1.Pod](s, rs), now)
			}
			return planDeployment(d, owned, orphans, taken, uid, now).outcome()
		},
	}
}
