package daemon

import "log/slog"

// logTotals says what became of every sample. Taken is what the next three are
// together; samples are, for each export, what was queued and dropped; and what
// was queued, with what an earlier run left, is the rest of the line.
func (d *daemon) logTotals() {
	st := d.service.Stats()
	totals := []any{
		"taken", st.Taken, "samples", st.Samples, "lost", st.Lost, "filtered", st.Filtered,
		"windows", st.Windows, "rate_changes", st.RateChanges, "agent_cpu", st.AgentCPU, "bpf_time", st.BPFTime,
	}
	for _, o := range d.outlets {
		totals = append(totals, o.totals())
	}
	d.log.Info("ended", totals...)
}

// totals tells what became of an outlet's samples, under the name that
// --export has for it.
func (o *outlet) totals() slog.Attr {
	st := o.spool.Stats()
	return slog.Group(o.name,
		"queued", st.Put.Samples, "dropped", o.dropped.Load(), "recovered", st.Recovered.Samples,
		"delivered", st.Delivered.Samples, "partly_accepted", st.PartlyAccepted.Samples, "refused", st.Refused.Samples,
		"expired", st.Expired.Samples, "evicted", st.Evicted.Samples, "unreadable", st.Unreadable.Samples,
		"lost", st.Lost.Samples, "waiting", st.Disk.Samples+st.Memory.Samples, "retries", st.Retries,
	)
}
