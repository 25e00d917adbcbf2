package daemon

import (
	"time"

	"github.com/kalypso-dev/kalypso/exporter/spool"
	"github.com/kalypso-dev/kalypso/profiler/api"
	"github.com/kalypso-dev/kalypso/profiler/pipeline"
	"github.com/kalypso-dev/kalypso/profiler/telemetry"
)

// Metrics are all that the agent tells of itself but for what package telemetry
// adds. What they are read from may be empty where only the descriptions are
// wanted.
func Metrics(own *pipeline.Metrics, outlets []*outlet, history *api.History, refusals *api.Refusals) []telemetry.Metric {
	list := append(own.List(), historyMetrics(history)...)
	list = append(list, telemetry.Metric{
		Name: "kalypso_agent_api_refused_total", Unit: "{request}", Kind: telemetry.Counter, Labels: []string{"status"},
		Description: "Requests that the local API refused: 403 from another machine or for another origin, 429 over the allowance, 503 with nothing to show or no memory to show it.",
		Read: func(observe telemetry.Observe) {
			st := refusals.Stats()
			observe(float64(st.Forbidden), "403")
			observe(float64(st.TooManyRequests), "429")
			observe(float64(st.Unavailable), "503")
		},
	})
	each := func(name, unit, description string, kind telemetry.Kind, read func(*outlet, *spool.Stats) float64) {
		list = append(list, telemetry.Metric{
			Name: name, Unit: unit, Description: description, Kind: kind, Labels: []string{"export"},
			Read: func(observe telemetry.Observe) {
				for _, o := range outlets {
					st := o.spool.Stats()
					observe(read(o, &st), o.name)
				}
			},
		})
	}
	counter := func(name, unit, description string, read func(*outlet, *spool.Stats) float64) {
		each(name, unit, description, telemetry.Counter, read)
	}
	gauge := func(name, unit, description string, read func(*outlet, *spool.Stats) float64) {
		each(name, unit, description, telemetry.Gauge, read)
	}
	const samples = "{sample}"
	counter("kalypso_agent_export_samples_encoded_total", samples, "Samples that went into requests.",
		func(o *outlet, _ *spool.Stats) float64 { return float64(o.encoded.Load()) })
	counter("kalypso_agent_export_samples_dropped_total", samples, "Samples that no request could carry, or that the spool did not take.",
		func(o *outlet, _ *spool.Stats) float64 { return float64(o.dropped.Load()) })
	counter("kalypso_agent_export_bytes_total", "By", "Bytes of requests before compression.",
		func(o *outlet, _ *spool.Stats) float64 { return float64(o.bytes.Load()) })
	counter("kalypso_agent_export_requests_delivered_total", "{request}", "Requests that the backend took.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Delivered.Requests) })
	counter("kalypso_agent_export_samples_delivered_total", samples, "Samples in requests that the backend took whole.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Delivered.Samples) })
	counter("kalypso_agent_export_samples_partly_accepted_total", samples, "Samples in requests of which the backend left out some profiles; which is not known, and they are not sent again.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.PartlyAccepted.Samples) })
	counter("kalypso_agent_export_profiles_rejected_total", "{profile}", "Profiles that the backend left out of requests that it took.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.RejectedProfiles) })
	counter("kalypso_agent_export_samples_refused_total", samples, "Samples in requests that the backend refused for good; they are set aside in the folder rejected of the spool.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Refused.Samples) })
	counter("kalypso_agent_export_samples_expired_total", samples, "Samples that waited until they were older than the backend takes.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Expired.Samples) })
	counter("kalypso_agent_export_samples_evicted_total", samples, "Samples that made room for newer ones in the spool.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Evicted.Samples) })
	counter("kalypso_agent_export_samples_unreadable_total", samples, "Samples in files of the spool that were damaged; of files whose header is damaged too the number is not known.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Unreadable.Samples) })
	counter("kalypso_agent_export_samples_lost_total", samples, "Samples that were in memory when the agent ended, and that neither the backend nor a folder took.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Lost.Samples) })
	counter("kalypso_agent_export_samples_recovered_total", samples, "Samples that an earlier run of the agent left in the spool.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Recovered.Samples) })
	counter("kalypso_agent_export_retries_total", "{attempt}", "Attempts to send that failed and are made again.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Retries) })
	gauge("kalypso_agent_export_reachable", "", "1 where the last attempt to send reached the backend, 0 where it did not or none was made.",
		func(_ *outlet, s *spool.Stats) float64 {
			if s.Backend == spool.BackendReachable {
				return 1
			}
			return 0
		})
	gauge("kalypso_agent_export_last_success_age_seconds", "s", "Time since the backend last took a request; -1 if it never did.",
		func(_ *outlet, s *spool.Stats) float64 { return age(s.LastSuccess) })

	gauge("kalypso_agent_spool_requests", "{request}", "Requests that wait, on disk and in memory.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Disk.Requests + s.Memory.Requests) })
	gauge("kalypso_agent_spool_samples", samples, "Samples that wait.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Disk.Samples + s.Memory.Samples) })
	gauge("kalypso_agent_spool_disk_bytes", "By", "Bytes that wait on disk.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Disk.Bytes) })
	gauge("kalypso_agent_spool_memory_bytes", "By", "Bytes that wait in memory.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.Memory.Bytes) })
	gauge("kalypso_agent_spool_oldest_age_seconds", "s", "Age of the oldest request that waits; -1 if none does.",
		func(_ *outlet, s *spool.Stats) float64 { return age(s.Oldest) })
	gauge("kalypso_agent_spool_rejected_files", "{file}", "Files that are set aside in the folder rejected.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.SetAsideFiles) })
	counter("kalypso_agent_spool_rejected_files_dropped_total", "{file}", "Files of the folder rejected that were removed for want of room.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.SetAsideDropped) })
	gauge("kalypso_agent_spool_newer_files", "{file}", "Files of a newer version of the agent in the spool; they are left alone.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.NewerFiles) })
	gauge("kalypso_agent_spool_foreign_files", "{file}", "What is in the folder of the spool and is not the spool's; it is left alone.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.ForeignFiles) })
	gauge("kalypso_agent_spool_leftover_files", "{file}", "Files of requests that are done with, which the disk does not remove.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.LeftoverFiles) })
	gauge("kalypso_agent_spool_disk_failing", "", "1 while requests are kept in memory because the folder does not work.",
		func(_ *outlet, s *spool.Stats) float64 {
			if s.DiskError != "" {
				return 1
			}
			return 0
		})
	counter("kalypso_agent_spool_disk_errors_total", "{error}", "Errors of the spool's disk.",
		func(_ *outlet, s *spool.Stats) float64 { return float64(s.DiskErrors) })
	return list
}

func historyMetrics(h *api.History) []telemetry.Metric {
	return []telemetry.Metric{
		{
			Name: "kalypso_agent_history_bytes", Unit: "By", Kind: telemetry.Gauge,
			Description: "Memory of the last minutes that are kept for the local API.",
			Read:        func(observe telemetry.Observe) { observe(float64(h.Stats().Bytes)) },
		},
		{
			Name: "kalypso_agent_history_evicted_total", Unit: "{segment}", Kind: telemetry.Counter, Labels: []string{"reason"},
			Description: "Segments that left the history because they were old enough, or for the memory budget.",
			Read: func(observe telemetry.Observe) {
				st := h.Stats()
				observe(float64(st.Evicted.Age), "age")
				observe(float64(st.Evicted.Budget), "budget")
			},
		},
	}
}

func age(t time.Time) float64 {
	if t.IsZero() {
		return -1
	}
	return time.Since(t).Seconds()
}
