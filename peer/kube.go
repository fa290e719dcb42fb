package peer

import (
	"net/http"

	"github.com/holdfast-io/holdfast/apiserver"
	"github.com/holdfast-io/holdfast/apiserver/kube"
)

// kubeHandler answers Kubernetes' REST dialect with the API's own handlers.
func (p *Peer) kubeHandler(api *apiserver.Server) http.Handler {
	return kube.New(kube.Config{
		Objects:   api.Objects(),
		Pods:      api.Pods(),
		Tokens:    api.Tokens(),
		Usage:     api.Usage(),
		Catalog:   api.Catalog,
		Authorize: api.Authorize,
		Allowed:   api.Allowed,
		Rules:     api.Rules,
		Documents: api.DiscoveryDocuments(),
		Version:   p.cfg.Version,
		Ready:     []kube.Check{{Name: "store", Run: api.Ready}},
		Logger:    p.log.With("part", "kube"),
	})
}
