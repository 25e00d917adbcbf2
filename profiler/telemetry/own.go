package telemetry

import "time"

// own are the metrics of this package, which every agent has. What they are
// read from may be nil: then they have no values.
func own(log *Log, health *Health, pushed *pushes) []Metric {
	return []Metric{
		{
			Name: "kalypso_agent_log_records_total", Unit: "{record}", Kind: Counter, Labels: []string{"level"},
			Description: "Things that were logged, those that were folded into an earlier line included.",
			Read: func(observe Observe) {
				for i := range levelNames {
					if log != nil {
						observe(float64(log.records[i].Load()), levelNames[i])
					}
				}
			},
		},
		{
			Name: "kalypso_agent_log_records_folded_total", Unit: "{record}", Kind: Counter,
			Description: "Repeats that have no line of their own in the log, only a count.",
			Read: func(observe Observe) {
				if log != nil {
					observe(float64(log.folded.Load()))
				}
			},
		},
		{
			Name: "kalypso_agent_stage_progress_age_seconds", Unit: "s", Kind: Gauge, Labels: []string{"stage"},
			Description: "How long ago a stage of the agent last made progress; /healthz fails above the stage's limit.",
			Read: func(observe Observe) {
				if health != nil {
					for _, s := range health.states(time.Now()) {
						observe(s.age.Seconds(), s.name)
					}
				}
			},
		},
		{
			Name: "kalypso_agent_metrics_pushes_total", Unit: "{push}", Kind: Counter, Labels: []string{"outcome"},
			Description: "Pushes of the agent's metrics over OTLP, by how they ended: delivered or failed.",
			Read: func(observe Observe) {
				observe(float64(pushed.delivered.Load()), "delivered")
				observe(float64(pushed.failed.Load()), "failed")
			},
		},
	}
}
