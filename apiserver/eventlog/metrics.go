package eventlog

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	events *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, l *Log) *metrics {
	m := &metrics{events: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "holdfast_events_recorded_total",
		Help: "Events recorded on this peer, repetitions included.",
	}, []string{"type"})}
	if reg == nil {
		return m
	}
	reg.MustRegister(m.events,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "holdfast_events", Help: "Events held, other peers' included.",
		}, func() float64 {
			l.mu.Lock()
			defer l.mu.Unlock()
			return float64(len(l.events))
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "holdfast_events_bytes", Help: "Size of the event segments.",
		}, func() float64 {
			l.mu.Lock()
			defer l.mu.Unlock()
			return float64(l.files.bytes)
		}))
	return m
}

func (m *metrics) recorded(eventType string) { m.events.WithLabelValues(eventType).Inc() }
