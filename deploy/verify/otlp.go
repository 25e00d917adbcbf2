package verify

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// Messages of OTLP in its JSON form (opentelemetry-proto 1.x, "JSON Protobuf
// Encoding"): IDs in hex, numbers of 64 bits as strings, enumerations as numbers.

type object = map[string]any

const (
	serviceName = "kalypso-verify"
	// idLabel has no dots, so that it has the same name in every store.
	idLabel    = "kalypso_probe_id"
	metricName = "kalypso_probe"
)

func attribute(key, value string) object {
	return object{"key": key, "value": object{"stringValue": value}}
}

func nano(t time.Time) string { return strconv.FormatInt(t.UnixNano(), 10) }

// envelope puts what one scope has to tell into a message of one resource.
func envelope(resources, scopes string, content object) object {
	content["scope"] = object{"name": serviceName}
	return object{resources: []any{object{
		"resource": object{"attributes": []any{attribute("service.name", serviceName)}},
		scopes:     []any{content},
	}}}
}

// gauge is a series with one value.
func gauge(id string, at time.Time) object {
	return series(object{"timeUnixNano": nano(at), "asDouble": metricValue, "attributes": []any{attribute(idLabel, id)}})
}

// metricValue is what the series has to say.
const metricValue = 1.5

// stale ends the series: flag 1 is "no recorded value".
func stale(id string, at time.Time) object {
	return series(object{"timeUnixNano": nano(at), "flags": 1, "attributes": []any{attribute(idLabel, id)}})
}

func series(point object) object {
	return envelope("resourceMetrics", "scopeMetrics", object{"metrics": []any{object{
		"name": metricName, "description": "Written by kalypsoctl verify.", "gauge": object{"dataPoints": []any{point}},
	}}})
}

// line is a log record.
func line(id string, at time.Time) object {
	return envelope("resourceLogs", "scopeLogs", object{"logRecords": []any{object{
		"timeUnixNano": nano(at), "observedTimeUnixNano": nano(at),
		"severityNumber": 9, "severityText": "INFO",
		"body": object{"stringValue": "kalypsoctl verify " + id},
	}}})
}

// span is a trace of one span. The attribute is how it is known again: a store
// may give IDs in another form.
func span(id string, at time.Time) object {
	return envelope("resourceSpans", "scopeSpans", object{"spans": []any{object{
		"traceId": id, "spanId": id[:16], "name": "kalypsoctl verify", "kind": 1,
		"startTimeUnixNano": nano(at.Add(-time.Millisecond)), "endTimeUnixNano": nano(at),
		"attributes": []any{attribute(idLabel, id)},
	}}})
}

// refused reads out of an answer what was not taken although the request was.
func refused(answer []byte) error {
	var said struct {
		PartialSuccess struct {
			ErrorMessage                                          string
			RejectedDataPoints, RejectedLogRecords, RejectedSpans any // a number, or a string of one
		}
	}
	if json.Unmarshal(answer, &said) != nil {
		return nil // some answer in binary, whatever was asked for
	}
	p := said.PartialSuccess
	for _, n := range []any{p.RejectedDataPoints, p.RejectedLogRecords, p.RejectedSpans} {
		if text := fmt.Sprint(n); n != nil && text != "0" {
			return &permanentError{fmt.Errorf("it was not taken: %s", words([]byte(p.ErrorMessage)))}
		}
	}
	return nil
}
