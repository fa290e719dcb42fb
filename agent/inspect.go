package agent

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/holdfast-io/holdfast/agent/netstate"
	agentv1 "github.com/holdfast-io/holdfast/proto/holdfast/agent/v1"
	holdfastv1 "github.com/holdfast-io/holdfast/proto/holdfast/v1"
)

// inspectTimeout bounds the reading of the kernel's tables.
const inspectTimeout = 30 * time.Second

var protocolNumbers = map[string]byte{string(corev1.ProtocolTCP): 6, string(corev1.ProtocolUDP): 17, string(corev1.ProtocolSCTP): 132}

// inspect answers what the node's network is: by its state, and by the kernel's tables.
func (s *sessions) inspect(ctx context.Context, out *sessionStream, req *holdfastv1.InspectRequest) error {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	found := s.a.network.inspect(ctx, s.a.cfg.Network, req.GetPackets())
	return out.send(&agentv1.SessionRequest{Message: &agentv1.SessionRequest_Network{Network: found}})
}

func (n *netSync) inspect(ctx context.Context, network Network, packets []*holdfastv1.Packet) *holdfastv1.NodeNetwork {
	state, _ := n.holder.Get()
	n.mu.Lock()
	found := &holdfastv1.NodeNetwork{Revision: state.Revision, Hash: hashText(state), Programmed: n.programmed}
	n.mu.Unlock()
	of, ok := network.(Audits)
	if !ok {
		return found
	}
	tables, err := of.Audit(ctx)
	if err != nil {
		found.Error = err.Error()
	}
	for _, t := range tables {
		found.Tables = append(found.Tables, &holdfastv1.NetworkTable{Name: t.Name, Hash: t.Hash, Wanted: t.Wanted, Faults: t.Faults, Repaired: t.Repaired})
	}
	for _, p := range packets {
		verdict := &holdfastv1.PacketVerdict{Allowed: true}
		from, err1 := netip.ParseAddr(p.GetFrom())
		to, err2 := netip.ParseAddr(p.GetTo())
		if err1 == nil && err2 == nil {
			verdict.Allowed, verdict.By = of.Judge(from, to, protocolNumbers[p.GetProtocol()], uint16(p.GetPort()))
		}
		found.Verdicts = append(found.Verdicts, verdict)
	}
	return found
}

func hashText(s *netstate.State) string { return fmt.Sprintf("%016x", s.Hash) }
