package dns

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	queries         *prometheus.CounterVec
	seconds         *prometheus.HistogramVec
	cache           *prometheus.CounterVec
	upstreamSeconds *prometheus.HistogramVec
	loops           prometheus.Counter
	refused         prometheus.Counter
	revision        prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "holdfast", Subsystem: "dns", Name: name, Help: help}
	}
	buckets := prometheus.ExponentialBuckets(0.00005, 4, 10)
	m := &metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts(opts("queries_total", "Questions by source of the answer (cluster, forward), transport and response code.")), []string{"source", "transport", "rcode"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "holdfast", Subsystem: "dns", Name: "query_seconds", Help: "Time to an answer.", Buckets: buckets,
		}, []string{"source"}),
		cache: prometheus.NewCounterVec(prometheus.CounterOpts(opts("cache_total", "Forwarded questions by whether the cache had the answer.")), []string{"result"}),
		upstreamSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "holdfast", Subsystem: "dns", Name: "resolver_seconds", Help: "Time that the node's resolvers took.", Buckets: buckets,
		}, []string{"resolver", "result"}),
		loops:    prometheus.NewCounter(prometheus.CounterOpts(opts("loops_total", "Resolvers found to lead back to this server."))),
		refused:  prometheus.NewCounter(prometheus.CounterOpts(opts("overload_total", "Questions answered with SERVFAIL because too many were under way."))),
		revision: prometheus.NewGauge(prometheus.GaugeOpts(opts("revision", "Revision of the state that is answered from."))),
	}
	reg.MustRegister(m.queries, m.seconds, m.cache, m.upstreamSeconds, m.loops, m.refused, m.revision)
	return m
}

// watch registers what is read from the cache when it is asked for.
func (m *metrics) watch(reg prometheus.Registerer, c *cache) {
	gauge := func(name, help string, read func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "holdfast", Subsystem: "dns", Name: name, Help: help}, func() float64 { return float64(read()) })
	}
	reg.MustRegister(
		gauge("cache_entries", "Answers in the cache.", func() int { entries, _ := c.size(); return entries }),
		gauge("cache_bytes", "Bytes of the cache.", func() int { _, bytes := c.size(); return bytes }),
	)
}
