package apiserver

import (
	"time"

	"connectrpc.com/connect/v2"
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	calls    *prometheus.CounterVec
	duration *prometheus.HistogramVec
	streams  *prometheus.GaugeVec
	dropped  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, s *Server) *metrics {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_api_calls_total",
			Help: "Calls that have ended, by procedure and Connect code.",
		}, []string{"procedure", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "holdfast_api_call_seconds",
			Help:    "Duration of unary calls.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"procedure"}),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "holdfast_api_streams",
			Help: "Streams that are open, by procedure.",
		}, []string{"procedure"}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_agent_reports_dropped_total",
			Help: "Status reports for pods that are gone or not the node's.",
		}),
	}
	if reg == nil {
		return m
	}
	reg.MustRegister(m.calls, m.duration, m.streams, m.dropped,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "holdfast_agents_connected",
			Help: "Nodes whose agents can be reached through this peer.",
		}, func() float64 { return float64(s.sessions.connected()) }))
	for name, end := range s.cfg.Certificates {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "holdfast_certificate_expires_timestamp_seconds",
			Help:        "When a certificate ends, in seconds since 1970: this peer's own, which it renews by itself, and the cluster's CA's.",
			ConstLabels: prometheus.Labels{"certificate": name},
		}, func() float64 { return float64(end().Unix()) }))
	}
	return m
}

// begin counts a call; what it returns is called at its end.
func (m *metrics) begin(spec connect.Spec) func(code string, took time.Duration) {
	stream := spec.StreamType != connect.StreamTypeUnary
	if stream {
		m.streams.WithLabelValues(spec.Procedure).Inc()
	}
	return func(code string, took time.Duration) {
		m.calls.WithLabelValues(spec.Procedure, code).Inc()
		if stream {
			m.streams.WithLabelValues(spec.Procedure).Dec()
			return
		}
		m.duration.WithLabelValues(spec.Procedure).Observe(took.Seconds())
	}
}
