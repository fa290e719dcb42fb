package agent

import "github.com/holdfast-io/holdfast/agent/netstate"

// NetworkState is what the node knows of the cluster's network.
func (a *Agent) NetworkState() *netstate.Holder { return a.network.holder }
