package peer

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/holdfast-io/holdfast/object"
	"github.com/holdfast-io/holdfast/raftstore"
)

// ownServiceScan is how often the leader looks whether peers have moved.
const ownServiceScan = 2 * time.Second

// keepOwnService keeps the Service kubernetes in namespace default, by which pods
// reach the API: its address is the first of the Services', and its endpoints are the
// peers. It has no selector, so nobody else writes them.
func (p *Peer) keepOwnService(ctx context.Context, leader *raftstore.Leader) error {
	ticker := time.NewTicker(ownServiceScan)
	defer ticker.Stop()
	for {
		txn, err := ownServiceTxn(leader.View(), p.cfg.ServiceCIDR, p.apiAddresses(), time.Now())
		if err != nil {
			return err
		}
		if len(txn.Then) > 0 {
			if _, err := leader.Txn(ctx, txn); err != nil && !errors.Is(err, raftstore.ErrConflict) && ctx.Err() == nil {
				p.log.Warn("the Service of the API is not up to date", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// ownServiceTxn returns what brings the Service and its endpoints up to date; nothing
// if they are. A peer that is known by a name has no place among endpoints.
func ownServiceTxn(view object.Reader, services netip.Prefix, peers map[string]string, now time.Time) (raftstore.Txn, error) {
	txn := raftstore.Txn{Actor: "peer", Reason: "the API's own service"}
	put := func(want, have object.Object, exists bool) error {
		condition := raftstore.Absent(string(object.KeyOf(want)))
		if exists {
			revision, err := revisionOf(have)
			if err != nil {
				return err
			}
			condition = raftstore.ModIs(string(object.KeyOf(want)), revision)
		}
		data, err := object.Encode(want)
		if err != nil {
			return err
		}
		txn.If, txn.Then = append(txn.If, condition), append(txn.Then, raftstore.Put(string(object.KeyOf(want)), data))
		return nil
	}
	meta := metav1.ObjectMeta{
		Namespace: metav1.NamespaceDefault, Name: "kubernetes", UID: uuid.NewUUID(), Generation: 1,
		CreationTimestamp: metav1.NewTime(now.UTC().Truncate(time.Second)),
		Labels:            map[string]string{"component": "apiserver", "provider": "kubernetes"},
	}
	svc := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta}
	svc.Spec.ClusterIP = services.Masked().Addr().Next().String()
	svc.Spec.Ports = []corev1.ServicePort{{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(443)}}
	object.Default(svc)
	if have, ok := object.Get[*corev1.Service](view, object.KeyOf(svc)); !ok {
		if err := put(svc, nil, false); err != nil {
			return txn, err
		}
	} else if object.Deleting(have) {
		return txn, nil
	}

	byPort := map[uint16][]string{}
	for _, address := range peers {
		if at, err := netip.ParseAddrPort(address); err == nil && at.Addr().Unmap().Is4() {
			byPort[at.Port()] = append(byPort[at.Port()], at.Addr().Unmap().String())
		}
	}
	for _, have := range object.List[*discoveryv1.EndpointSlice](view, metav1.NamespaceDefault) {
		if !strings.HasPrefix(have.Name, "kubernetes") || have.Labels[discoveryv1.LabelManagedBy] != ownManager {
			continue
		}
		port := uint16(*have.Ports[0].Port)
		want := have.DeepCopy()
		if want.Endpoints = endpoints(byPort[port]); len(want.Endpoints) == 0 {
			revision, err := revisionOf(have)
			if err != nil {
				return txn, err
			}
			key := string(object.KeyOf(have))
			txn.If, txn.Then = append(txn.If, raftstore.ModIs(key, revision)), append(txn.Then, raftstore.Delete(key))
		} else if !equality.Semantic.DeepEqual(want, have) {
			want.Generation++
			if err := put(want, have, true); err != nil {
				return txn, err
			}
		}
		delete(byPort, port)
	}
	for port, ips := range byPort {
		meta := *meta.DeepCopy()
		meta.Name, meta.UID = "kubernetes-"+strconv.Itoa(int(port)), uuid.NewUUID()
		meta.Labels = map[string]string{discoveryv1.LabelServiceName: "kubernetes", discoveryv1.LabelManagedBy: ownManager}
		slice := &discoveryv1.EndpointSlice{
			TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, ObjectMeta: meta,
			AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints(ips),
			Ports: []discoveryv1.EndpointPort{{Name: new("https"), Protocol: new(corev1.ProtocolTCP), Port: new(int32(port))}},
		}
		if err := put(slice, nil, false); err != nil {
			return txn, err
		}
	}
	return txn, nil
}

func revisionOf(obj object.Object) (int64, error) {
	return strconv.ParseInt(obj.GetResourceVersion(), 10, 64)
}

// ownManager is who writes the slices of the API's own service.
const ownManager = "holdfast.dev/peers"

func endpoints(ips []string) []discoveryv1.Endpoint {
	slices.Sort(ips)
	var all []discoveryv1.Endpoint
	for _, ip := range slices.Compact(ips) {
		all = append(all, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)}})
	}
	return all
}
