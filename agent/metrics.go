package agent

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the agent's. Those of pods by phase and of dirty reports are read
// when they are asked for; see watch.
type metrics struct {
	reg           prometheus.Registerer
	connected     prometheus.Gauge
	revision      prometheus.Gauge
	lastHeartbeat prometheus.Gauge
	heartbeats    *prometheus.CounterVec
	sessions      *prometheus.CounterVec
	reports       *prometheus.CounterVec
	streams       *prometheus.GaugeVec
	restarts      prometheus.Counter
	startSeconds  prometheus.Histogram
	imageSeconds  prometheus.Histogram
	listSeconds   prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "holdfast", Subsystem: "agent", Name: name, Help: help}
	}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "holdfast", Subsystem: "agent", Name: name, Help: help, Buckets: buckets,
		})
	}
	m := &metrics{
		reg:           reg,
		connected:     prometheus.NewGauge(prometheus.GaugeOpts(opts("connected", "1 while a peer streams desired state."))),
		revision:      prometheus.NewGauge(prometheus.GaugeOpts(opts("desired_revision", "Revision of the desired state."))),
		lastHeartbeat: prometheus.NewGauge(prometheus.GaugeOpts(opts("last_heartbeat_timestamp_seconds", "When a heartbeat was last accepted."))),
		heartbeats:    prometheus.NewCounterVec(prometheus.CounterOpts(opts("heartbeats_total", "Heartbeats by result.")), []string{"result"}),
		sessions:      prometheus.NewCounterVec(prometheus.CounterOpts(opts("sessions_total", "Sessions with peers begun and ended.")), []string{"event"}),
		reports:       prometheus.NewCounterVec(prometheus.CounterOpts(opts("reports_total", "Status reports by result.")), []string{"result"}),
		streams:       prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("pod_streams", "Open sessions by kind: logs, exec, attach, port-forward.")), []string{"kind"}),
		restarts:      prometheus.NewCounter(prometheus.CounterOpts(opts("container_restarts_total", "Containers started again."))),
		startSeconds:  histogram("pod_start_seconds", "From first sight of a pod to all of its containers running.", prometheus.ExponentialBuckets(0.01, 2, 14)),
		imageSeconds:  histogram("image_seconds", "Time to make an image present.", prometheus.ExponentialBuckets(0.001, 4, 10)),
		listSeconds:   histogram("list_seconds", "Time to list what runs.", prometheus.ExponentialBuckets(0.0001, 4, 10)),
	}
	reg.MustRegister(m.connected, m.revision, m.lastHeartbeat, m.heartbeats, m.sessions, m.reports, m.streams,
		m.restarts, m.startSeconds, m.imageSeconds, m.listSeconds)
	return m
}

// watch registers the metrics that are read from r.
func (m *metrics) watch(r *reporter) {
	m.reg.MustRegister(&podCollector{
		r:     r,
		pods:  prometheus.NewDesc("holdfast_agent_pods", "Pods on the node by phase.", []string{"phase"}, nil),
		dirty: prometheus.NewDesc("holdfast_agent_unacknowledged_pods", "Pods whose status no peer has acknowledged.", nil, nil),
	})
}

type podCollector struct {
	r           *reporter
	pods, dirty *prometheus.Desc
}

func (c *podCollector) Describe(out chan<- *prometheus.Desc) {
	out <- c.pods
	out <- c.dirty
}

func (c *podCollector) Collect(out chan<- prometheus.Metric) {
	phases, dirty := c.r.counts()
	for phase, n := range phases {
		out <- prometheus.MustNewConstMetric(c.pods, prometheus.GaugeValue, float64(n), string(phase))
	}
	out <- prometheus.MustNewConstMetric(c.dirty, prometheus.GaugeValue, float64(dirty))
}
