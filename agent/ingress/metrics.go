package ingress

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/holdfast-io/holdfast/agent/netstate"
)

type metrics struct {
	requests        *prometheus.CounterVec
	seconds         *prometheus.HistogramVec
	pending         prometheus.Gauge
	connections     prometheus.Gauge
	connectFailures prometheus.Counter
	retries         prometheus.Counter
	revision        prometheus.Gauge
	faults          prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "holdfast", Subsystem: "ingress", Name: name, Help: help}
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts(opts("requests_total", "Requests by Ingress (empty: no rule matched) and status; 499: the client did not wait.")), []string{"ingress", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "holdfast", Subsystem: "ingress", Name: "request_seconds", Help: "From a request's header to the end of its answer.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 3, 12),
		}, []string{"ingress"}),
		pending:         prometheus.NewGauge(prometheus.GaugeOpts(opts("pending_requests", "Requests under way."))),
		connections:     prometheus.NewGauge(prometheus.GaugeOpts(opts("connections", "Open connections of clients."))),
		connectFailures: prometheus.NewCounter(prometheus.CounterOpts(opts("connect_failures_total", "Connections that endpoints did not take."))),
		retries:         prometheus.NewCounter(prometheus.CounterOpts(opts("retries_total", "Requests sent to another endpoint."))),
		revision:        prometheus.NewGauge(prometheus.GaugeOpts(opts("revision", "Revision of the state that requests are routed by."))),
		faults:          prometheus.NewGauge(prometheus.GaugeOpts(opts("faulty_ingresses", "Ingresses of which something cannot be done."))),
	}
	reg.MustRegister(m.requests, m.seconds, m.pending, m.connections, m.connectFailures, m.retries, m.revision, m.faults)
	return m
}

func (m *metrics) request(ingress string, status int, took time.Duration) {
	m.requests.WithLabelValues(ingress, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(ingress).Observe(took.Seconds())
}

// forget drops what was counted of an Ingress that is gone.
func (m *metrics) forget(ingress netstate.Name) {
	m.requests.DeletePartialMatch(prometheus.Labels{"ingress": ingress.String()})
	m.seconds.DeleteLabelValues(ingress.String())
}
