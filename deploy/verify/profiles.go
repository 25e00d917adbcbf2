package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/kalypso-dev/kalypso/deploy/check"
	"github.com/kalypso-dev/kalypso/deploy/component"
	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/otlp"
	"github.com/kalypso-dev/kalypso/exporter/transport"
	"github.com/kalypso-dev/kalypso/profiler"
)

const (
	hotFunction  = "kalypso_probe_hot"
	coldFunction = "kalypso_probe_cold"
	// hotPercent of the samples are in the hot function. Every step of the way
	// counts in whole samples, so it has to come out to the sample.
	hotPercent = 74

	pyroscopePort = 4040
	profileType   = "process_cpu:cpu:nanoseconds:cpu:nanoseconds"
	queryPath     = "/querier.v1.QuerierService/SelectMergeStacktraces"
)

// profiles makes the check. Profiles go where kalypso-agent sends its own, by
// the agent's own exporter: that a request was accepted proves nothing with this
// store, which drops without a word what it does not understand.
func (c *Config) profiles() check.Check {
	return check.Check{
		ID: "profiles", Title: "a profile is written and read back from Pyroscope", Severity: check.Required,
		Effect: "profiles are not stored, or cannot be read",
		Fix:    "kalypsoctl logs pyroscope",
		Run:    c.needs("pyroscope", c.proveProfiles),
	}
}

func (c *Config) proveProfiles(ctx context.Context, store component.Component) check.Outcome {
	out := c.open(store, pyroscopePort)
	defer out.Close()
	id, at := newID(), time.Now()
	if err := c.push(ctx, out, probe(id, at)); err != nil {
		return check.Fail("no profile could be written:\n%v", err).WithFix("%s", c.fix(store, err))
	}
	percent, err := c.awaitHot(ctx, out, id, at)
	if err != nil {
		return check.Fail("a profile that %s took was not found:\n%v", out, err).WithFix("%s", c.fix(store, err))
	}
	if percent != hotPercent {
		return check.Fail("%s is at %.4g %% in Pyroscope, %d %% was written", hotFunction, percent, hotPercent)
	}
	c.keep("profiles", id)
	return check.Pass("%s at %d %% in Pyroscope", hotFunction, hotPercent)
}

// probe is one second of CPU time in two functions.
func probe(id string, at time.Time) *profiler.Profile {
	module := &profiler.Module{Path: "/kalypso-probe"}
	location := func(address uint64, name string) *profiler.Location {
		return &profiler.Location{Module: module, Address: address, Frames: []profiler.Frame{{Function: name}}}
	}
	main := location(0x1000, "main")
	process := &profiler.Process{PID: 1, Comm: serviceName, Exe: module.Path}
	sample := func(address uint64, name string, count uint64) profiler.Sample {
		stack := &profiler.Stack{Locations: []*profiler.Location{location(address, name), main}, Stop: profiler.StopRoot}
		return profiler.Sample{Process: process, Stack: stack, Count: count}
	}
	return &profiler.Profile{
		Workload: &profiler.Workload{Attributes: []profiler.Attribute{{Key: idLabel, Value: id}, {Key: "service.name", Value: serviceName}}},
		Start:    at.Add(-time.Second), Duration: time.Second, Frequency: 100, Event: "cpu-clock",
		Samples: []profiler.Sample{sample(0x2000, hotFunction, hotPercent), sample(0x3000, coldFunction, 100-hotPercent)},
	}
}

// push delivers a profile over OTLP, as the agent does by default.
func (c *Config) push(ctx context.Context, to *service, profile *profiler.Profile) error {
	requests, dropped, err := otlp.NewEncoder(otlp.EncoderConfig{}).Encode([]*profiler.Profile{profile})
	if err != nil {
		return err
	}
	if len(requests) != 1 || dropped != 0 {
		return fmt.Errorf("the profile became %d requests, %d samples dropped", len(requests), dropped)
	}
	ctx, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	done, err := poll(ctx, func(ctx context.Context) (bool, error) {
		err := send(ctx, to, requests[0])
		return err == nil, err
	})
	if !done && err == nil {
		err = fmt.Errorf("%s does not answer", to)
	}
	return err
}

func send(ctx context.Context, to *service, request *exporter.Request) error {
	if err := to.reach(ctx); err != nil {
		return err
	}
	sender, err := otlp.NewSender(transport.Config{Endpoint: to.addr, Insecure: true, Timeout: requestLimit, UserAgent: serviceName}, otlp.GRPC)
	if err != nil {
		return &permanentError{err}
	}
	defer sender.Close()
	receipt, err := sender.Send(ctx, request)
	switch {
	case exporter.Refused(err):
		return &permanentError{fmt.Errorf("%s refuses it: %s", to, said(err))}
	case err != nil:
		return fmt.Errorf("%s does not take it: %s", to, said(err))
	case receipt.RejectedProfiles > 0:
		return &permanentError{fmt.Errorf("it was not taken: %s", words([]byte(receipt.Message)))}
	}
	return nil
}

// said is what a server answered, without the address on this machine that was
// sent to.
func said(err error) string {
	var fault *profiler.Fault
	if errors.As(err, &fault) && fault.Why != nil {
		err = fault.Why
	}
	return words([]byte(err.Error()))
}

// awaitHot reads the profile as Grafana does, and gives the share of the hot
// function.
func (c *Config) awaitHot(ctx context.Context, from *service, id string, at time.Time) (percent float64, err error) {
	question := object{
		"profileTypeID": profileType,
		"labelSelector": fmt.Sprintf(`{service_name="%s",%s="%s"}`, serviceName, idLabel, id),
		"start":         at.Add(-time.Minute).UnixMilli(),
		"end":           at.Add(time.Minute).UnixMilli(),
	}
	ctx, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	done, err := poll(ctx, func(ctx context.Context) (bool, error) {
		answer, err := from.post(ctx, queryPath, question)
		if err != nil {
			return false, err
		}
		var found bool
		percent, found, err = share(answer, hotFunction)
		return found, err
	})
	if !done && err == nil {
		err = fmt.Errorf("%s does not have it after %s", from, c.Patience)
	}
	return percent, err
}

// flameGraph is what Pyroscope answers. Numbers of 64 bits are strings.
type flameGraph struct {
	Flamegraph struct {
		Names  []string
		Total  json.Number
		Levels []struct {
			Values []json.Number // four for each bar: offset, total, self, index of the name
		}
	}
}

// share is what part of the total a function took itself. There is none where
// the flame graph is empty.
func share(answer []byte, function string) (percent float64, found bool, err error) {
	var said flameGraph
	if err := json.Unmarshal(answer, &said); err != nil {
		return 0, false, fmt.Errorf("the answer is no flame graph: %w", err)
	}
	graph := said.Flamegraph
	total, err := graph.Total.Int64()
	if graph.Total == "" || err == nil && total == 0 {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("the answer is no flame graph: %w", err)
	}
	var self int64
	for _, level := range graph.Levels {
		for bar := level.Values; len(bar) >= 4; bar = bar[4:] {
			mine, err := bar[2].Int64()
			name, err2 := bar[3].Int64()
			if err := errors.Join(err, err2); err != nil {
				return 0, false, fmt.Errorf("the answer is no flame graph: %w", err)
			}
			if name >= 0 && name < int64(len(graph.Names)) && graph.Names[name] == function {
				self += mine
			}
		}
	}
	return 100 * float64(self) / float64(total), true, nil
}

// fix is what to do about an error of a component.
func (c *Config) fix(of component.Component, err error) string {
	var fault *profiler.Fault
	if errors.As(err, &fault) && fault.Fix != "" {
		return fault.Fix
	}
	text := err.Error()
	switch {
	case of.Name == "pyroscope" && strings.Contains(text, "leader"):
		return "kalypsoctl upgrade --set pyroscope.pyroscope.architecture.storage.v1=true --set pyroscope.pyroscope.architecture.storage.v2=false\n" +
			"one node of Pyroscope's second storage can lose its leader for good (grafana/pyroscope#5257); the first has none"
	case of.Name == "pyroscope" && strings.Contains(text, "service is unavailable"):
		return "kalypsoctl logs pyroscope     it answers so while it cannot write to the object store"
	case strings.Contains(text, "X-Scope-OrgID") || strings.Contains(text, "no org id"):
		return "the store wants a tenant, which nothing of the stack sends: switch multitenancy off in its values, or put the header into its gateway"
	case strings.Contains(text, "AccessDenied") || strings.Contains(text, "NoSuchBucket") || strings.Contains(text, "SignatureDoesNotMatch") || strings.Contains(text, "InvalidAccessKeyId"):
		return "the object store refuses: kalypsoctl logs minio, and compare the Secret kalypso-s3 of " + of.Namespace + " with that of minio"
	}
	return "kalypsoctl logs " + of.Name
}
