package scheduler

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of the scheduler. They outlive a leadership: the next one of the same
// process goes on counting where this one stops.
type metrics struct {
	bound, unschedulable, conflicts, errors prometheus.Counter

	passSeconds prometheus.Histogram
	pending     prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	decisions := register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_scheduler_decisions_total",
		Help: "Decisions committed or refused, by result: bound, unschedulable, conflict, error.",
	}, []string{"result"}))
	return &metrics{
		bound: decisions.WithLabelValues("bound"), unschedulable: decisions.WithLabelValues("unschedulable"),
		conflicts: decisions.WithLabelValues("conflict"), errors: decisions.WithLabelValues("error"),
		passSeconds: register(reg, prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "holdfast_scheduler_pass_seconds",
			Help:    "Time to decide about all pods of one pass, without committing.",
			Buckets: prometheus.ExponentialBuckets(0.00001, 4, 10),
		})),
		pending: register(reg, prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "holdfast_scheduler_pending_pods",
			Help: "Pods that wait for a node.",
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
		panic("scheduler: register metric: " + err.Error()) // two different metrics of one name: a bug
	}
	return c
}
