package scheduler

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/holdfast-io/holdfast/object"
)

const (
	// annSelectedNode on a claim is the node for which its volume is to be made: the
	// one on which its first pod will run.
	annSelectedNode = "volume.kubernetes.io/selected-node"
	// noProvisioner is the provisioner of classes whose volumes people make.
	noProvisioner = "kubernetes.io/no-provisioner"
)

// volumes is what pods' claims lead to.
type volumes struct {
	claims  map[object.Key]*corev1.PersistentVolumeClaim
	volumes map[string]*corev1.PersistentVolume
	classes map[string]*storagev1.StorageClass
}

func newVolumes() volumes {
	return volumes{map[object.Key]*corev1.PersistentVolumeClaim{}, map[string]*corev1.PersistentVolume{}, map[string]*storagev1.StorageClass{}}
}

var claimResource = object.ResourceOf(&corev1.PersistentVolumeClaim{})

func claimKey(namespace, name string) object.Key { return claimResource.Key(namespace, name) }

func (c *cluster) setClaim(claim *corev1.PersistentVolumeClaim) {
	key := object.KeyOf(claim)
	c.volumes.claims[key] = claim
	c.retryClaims(key)
}

func (c *cluster) removeClaim(key object.Key) {
	delete(c.volumes.claims, key)
	c.retryClaims(key)
}

func (c *cluster) setVolume(pv *corev1.PersistentVolume) {
	c.volumes.volumes[pv.Name] = pv
	c.retryClaims("")
}

func (c *cluster) removeVolume(name string) {
	delete(c.volumes.volumes, name)
	c.retryClaims("")
}

func (c *cluster) setStorageClass(class *storagev1.StorageClass) {
	c.volumes.classes[class.Name] = class
	c.retryClaims("")
}

func (c *cluster) removeStorageClass(name string) {
	delete(c.volumes.classes, name)
	c.retryClaims("")
}

// retryClaims makes the pods be tried again that wait and have the claim under key,
// or any, if key is empty.
func (c *cluster) retryClaims(key object.Key) {
	for _, p := range c.pending {
		if len(p.needs.claims) == 0 {
			continue
		}
		if key == "" || slices.ContainsFunc(p.needs.claims, func(name string) bool { return claimKey(p.needs.namespace, name) == key }) {
			c.reclass(p)
		}
	}
}

// reclass makes p, which waits, be tried again in another class: what its claims need
// may be something else now. One whose commit has failed keeps its time.
func (c *cluster) reclass(p *pendingPod) {
	due := p.due
	c.settleDown(p)
	p.class = nil
	if p.failures == 0 || due.IsZero() {
		c.queue.push(p)
		return
	}
	c.wait(p)
	c.delay(p, due)
}

// forOnePod reports whether the claim under key is for one pod at a time.
func (c *cluster) forOnePod(key object.Key) bool {
	claim := c.volumes.claims[key]
	return claim != nil && slices.Contains(claim.Spec.AccessModes, corev1.ReadWriteOncePod)
}

// useClaims counts the claims of a pod that is bound (1), or no longer is (-1). Who waits
// for a claim that is for one pod is tried again.
func (c *cluster) useClaims(n *needs, by int) {
	for _, name := range n.claims {
		key := claimKey(n.namespace, name)
		before := c.claimUsers[key]
		if c.claimUsers[key] += by; c.claimUsers[key] == 0 {
			delete(c.claimUsers, key)
		}
		if (before == 0) != (before+by == 0) && c.forOnePod(key) {
			c.retryClaims(key)
		}
	}
}

// uses reports whether pod uses one of the claims under keys.
func (pod *boundPod) uses(keys ...object.Key) bool {
	return slices.ContainsFunc(pod.needs.claims, func(name string) bool {
		return slices.Contains(keys, claimKey(pod.needs.namespace, name))
	})
}

// claimNeeds is what the claims of a pod ask of its node.
type claimNeeds struct {
	id      string       // equal for claims that ask for the same
	missing []string     // why no node will do yet
	held    []object.Key // claims for one pod that another uses
	terms   [][]nodeTerm // of each of these one
	texts   []string     // of terms
	node    string       // the node that is selected already, if one is
	choose  []object.Key // claims that wait for a node to be selected
	waiting []string     // claims that wait for a volume on the selected node
}

// claimNeeds finds out what the claims of n ask for now.
func (c *cluster) claimNeeds(n *needs) claimNeeds {
	var out claimNeeds
	var id strings.Builder
	for _, name := range n.claims {
		key := claimKey(n.namespace, name)
		c.claimNeed(&out, key, name)
		if c.forOnePod(key) && c.claimUsers[key] > 0 {
			out.held = append(out.held, key)
		}
	}
	fmt.Fprintf(&id, "%q %q %q %q %q %q", out.missing, out.held, out.texts, out.node, out.choose, out.waiting)
	out.id = id.String()
	return out
}

func (c *cluster) claimNeed(out *claimNeeds, key object.Key, name string) {
	miss := func(format string, args ...any) {
		out.missing = append(out.missing, fmt.Sprintf("claim %s ", name)+fmt.Sprintf(format, args...))
	}
	need := func(selector *corev1.NodeSelector, text string) {
		terms := nodeTermsOf(selector)
		out.terms = append(out.terms, terms)
		out.texts = append(out.texts, fmt.Sprintf("%s %s", text, termsText(terms)))
	}
	claim := c.volumes.claims[key]
	switch {
	case claim == nil:
		miss("does not exist")
		return
	case object.Deleting(claim):
		miss("is being deleted")
		return
	case claim.Status.Phase == corev1.ClaimLost:
		miss("has lost its volume")
		return
	case claim.Spec.VolumeName != "" && claim.Status.Phase == corev1.ClaimBound:
		pv := c.volumes.volumes[claim.Spec.VolumeName]
		if pv == nil {
			miss("is bound to volume %s, which does not exist", claim.Spec.VolumeName)
		} else if pv.Spec.NodeAffinity != nil && pv.Spec.NodeAffinity.Required != nil {
			need(pv.Spec.NodeAffinity.Required, "the volume of claim "+name+" is on")
		}
		return
	}
	var class *storagev1.StorageClass
	if claim.Spec.StorageClassName != nil {
		class = c.volumes.classes[*claim.Spec.StorageClassName]
	}
	if class == nil || class.VolumeBindingMode == nil || *class.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer || claim.Spec.VolumeName != "" {
		miss("has no volume yet")
		return
	}
	if node := claim.Annotations[annSelectedNode]; node != "" {
		if out.node != "" && out.node != node {
			miss("is to be on %s, another claim on %s", node, out.node)
		}
		out.node = node
		out.waiting = append(out.waiting, name)
		return
	}
	out.choose = append(out.choose, key)
	if class.Provisioner == noProvisioner {
		any := &corev1.NodeSelector{}
		for _, pvName := range slices.Sorted(maps.Keys(c.volumes.volumes)) {
			pv := c.volumes.volumes[pvName]
			if !object.VolumeServes(pv, claim) {
				continue
			}
			if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
				return
			}
			any.NodeSelectorTerms = append(any.NodeSelectorTerms, pv.Spec.NodeAffinity.Required.NodeSelectorTerms...)
		}
		if len(any.NodeSelectorTerms) == 0 {
			miss("has no volume that is free and would do")
			return
		}
		need(any, "free volumes for claim "+name+" are on")
		return
	}
	if len(class.AllowedTopologies) > 0 {
		selector := &corev1.NodeSelector{}
		for _, t := range class.AllowedTopologies {
			term := corev1.NodeSelectorTerm{}
			for _, e := range t.MatchLabelExpressions {
				term.MatchExpressions = append(term.MatchExpressions, corev1.NodeSelectorRequirement{Key: e.Key, Operator: corev1.NodeSelectorOpIn, Values: e.Values})
			}
			selector.NodeSelectorTerms = append(selector.NodeSelectorTerms, term)
		}
		need(selector, "class "+class.Name+" of claim "+name+" allows")
	}
}

func filterClaims(cl *class, n *node, reject func(Reason) bool) {
	claims := &cl.claims
	for _, missing := range claims.missing {
		if !reject(Reason{Filter: "Volume", Detail: "because " + missing}) {
			return
		}
	}
	for _, key := range claims.held {
		name := claimNames([]object.Key{key})
		if !n.released && !reject(Reason{Filter: "Volume", Detail: "because " + name + " is for one pod and another uses it", cure: "the pod that uses " + name + " ends"}) {
			return
		}
	}
	if claims.node != "" && claims.node != n.name {
		if !reject(Reason{Filter: "Volume", Detail: "because the pod's volumes are being made on " + claims.node}) {
			return
		}
	}
	for i, terms := range claims.terms {
		if !anyTerm(terms, n) && !reject(Reason{Filter: "Volume", Detail: "because " + claims.texts[i]}) {
			return
		}
	}
}
