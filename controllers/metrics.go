package controllers

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the controllers. They outlive a leadership: the next one of the same
// process goes on counting where this one stops.
type metrics struct {
	passes      *prometheus.CounterVec
	writes      *prometheus.CounterVec
	planSeconds *prometheus.HistogramVec
	waiting     *prometheus.GaugeVec
	nodes       *prometheus.GaugeVec
	pauses      prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	return &metrics{
		passes: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_controller_passes_total",
			Help: "Passes over an object, by controller and result: ok, conflict, error.",
		}, []string{"controller", "result"})),
		writes: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "holdfast_controller_writes_total",
			Help: "Objects written or deleted, by controller.",
		}, []string{"controller"})),
		planSeconds: register(reg, prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "holdfast_controller_plan_seconds",
			Help:    "Time to decide about one object, without committing, by controller.",
			Buckets: prometheus.ExponentialBuckets(0.00001, 4, 9),
		}, []string{"controller"})),
		waiting: register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "holdfast_controller_queue_length",
			Help: "Objects that wait for a pass, for their commit or for a retry, by controller.",
		}, []string{"controller"})),
		nodes: register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "holdfast_nodes",
			Help: "Nodes by the leader's verdict: undecided, alive, silent, held, lost.",
		}, []string{"verdict"})),
		pauses: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "holdfast_health_loop_pauses_total",
			Help: "Times the loop that judges nodes did not run for more than two of its periods.",
		})),
	}
}

// register adds c to reg, or returns what an earlier leadership added. A nil reg
// exposes nothing.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg == nil {
		return c
	}
	err := reg.Register(c)
	if before, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		return before.ExistingCollector.(C)
	}
	if err != nil {
		panic("controllers: register metric: " + err.Error()) // two different metrics of one name: a bug
	}
	return c
}
