// Package partial keeps account of pushes of which a Pyroscope server took only
// some profiles. The server charges and checks the profiles of a push one by
// one, stores those that pass and then answers with an error: to send such a
// push again as it is counts what was stored twice. To OTLP it says from 2.2 on
// which profiles did not pass, so the others can be left out of the next try.
// To its own clients it does not, so they push each profile by itself.
//
// The package knows of a message only that its field 1 has one profile each, in
// the order in which the server numbers them. That holds for OTLP's export
// request, as package otlp makes it, and for the native push request.
package partial

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/transport"
)

// Ledger remembers which profiles of requests are settled. Its zero value is
// ready. It does not outlive the process: a push of which a part was stored
// right before the agent ended is sent whole by the next.
type Ledger struct {
	mu      sync.Mutex
	entries map[key]*entry
	order   []key
}

type key [sha256.Size]byte

// entry is one request of which some profiles are settled.
type entry struct {
	settled  []bool // stored, or refused for good; by profile
	rejected int    // of those, the refused
	why      string
}

// entriesLimit is more requests than are tried in turns.
const entriesLimit = 64

// Left is the message of a request without what is settled.
func (l *Ledger) Left(r *exporter.Request) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, _ := l.find(r)
	if e == nil {
		return r.Body
	}
	return pick(r.Body, func(i int) bool { return !e.settled[i] })
}

// Settle takes the answer to what Left gave of a request. An answer that leaves
// nothing to be sent becomes a receipt; another comes back as it is.
func (l *Ledger) Settle(r *exporter.Request, receipt exporter.Receipt, err error) (exporter.Receipt, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, k := l.find(r)
	if err == nil {
		if e != nil {
			receipt.RejectedProfiles += e.rejected
			receipt.Message = cmp.Or(receipt.Message, e.why)
			l.forget(k)
		}
		return receipt, nil
	}
	var said *transport.Said
	if !errors.As(err, &said) || count(r.Body) != r.Profiles {
		return exporter.Receipt{}, err
	}
	// The server's numbers are those of what it was sent.
	var sent []int
	for i := range r.Profiles {
		if e == nil || !e.settled[i] {
			sent = append(sent, i)
		}
	}
	became, ok := read(said.Text, len(sent))
	if !ok {
		return exporter.Receipt{}, err
	}
	outcomes := make([]outcome, r.Profiles)
	for j, i := range sent {
		outcomes[i] = became[j]
	}
	return l.settle(r, outcomes, said.Error(), err)
}

// Each gives the messages of a request's profiles one by one, nil for those
// that are settled.
func (l *Ledger) Each(r *exporter.Request) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	e, _ := l.find(r)
	out := make([][]byte, count(r.Body))
	for i := range out {
		if e == nil || !e.settled[i] {
			out[i] = pick(r.Body, func(j int) bool { return i == j })
		}
	}
	return out
}

// SettleEach takes the answers to the messages that Each gave of a request.
func (l *Ledger) SettleEach(r *exporter.Request, answers []error) (exporter.Receipt, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	outcomes := make([]outcome, len(answers))
	var why string
	var err error // one that asks for another try, if there is such
	for i, answer := range answers {
		switch {
		case answer == nil:
			continue
		case exporter.Refused(answer):
			outcomes[i], why = refused, answer.Error()
		default:
			outcomes[i] = later
		}
		if err == nil || outcomes[i] == later {
			err = answer
		}
	}
	if err == nil && len(l.entries) == 0 {
		return exporter.Receipt{}, nil
	}
	return l.settle(r, outcomes, why, err)
}

// find gives the entry of a request. It does no work where there is none at
// all, which is how things are.
func (l *Ledger) find(r *exporter.Request) (*entry, key) {
	if len(l.entries) == 0 {
		return nil, key{}
	}
	k := key(sha256.Sum256(r.Body))
	return l.entries[k], k
}

// settle notes what became of the profiles that were not settled before.
func (l *Ledger) settle(r *exporter.Request, outcomes []outcome, why string, err error) (exporter.Receipt, error) {
	k := key(sha256.Sum256(r.Body))
	e := l.entries[k]
	if e == nil {
		e = &entry{settled: make([]bool, len(outcomes))}
	}
	left := 0
	for i, o := range outcomes {
		switch {
		case e.settled[i]:
		case o == later:
			left++
		default:
			e.settled[i] = true
			if o == refused {
				e.rejected++
				e.why = why
			}
		}
	}
	switch {
	case left == len(outcomes):
		return exporter.Receipt{}, err
	case e.rejected == len(outcomes):
		l.forget(k)
		return exporter.Receipt{}, err
	case left == 0:
		l.forget(k)
		return exporter.Receipt{RejectedProfiles: e.rejected, Message: e.why}, nil
	}
	l.remember(k, e)
	if exporter.Refused(err) { // of some; the others are for later
		err = &exporter.BusyError{Err: errors.Unwrap(refusal(err))}
	}
	return exporter.Receipt{}, err
}

// refusal finds the RefusedError in err.
func refusal(err error) error {
	var refused *exporter.RefusedError
	errors.As(err, &refused)
	return refused
}

func (l *Ledger) remember(k key, e *entry) {
	if l.entries[k] == e {
		return
	}
	if l.entries == nil {
		l.entries = make(map[key]*entry)
	}
	if len(l.order) == entriesLimit {
		delete(l.entries, l.order[0])
		l.order = l.order[1:]
	}
	l.entries[k] = e
	l.order = append(l.order, k)
}

func (l *Ledger) forget(k key) {
	delete(l.entries, k)
	for i := range l.order {
		if l.order[i] == k {
			l.order = append(l.order[:i], l.order[i+1:]...)
			return
		}
	}
}

// outcome is what became of one profile.
type outcome uint8

const (
	stored outcome = iota
	refused
	later // neither, as far as is known
)

// failure is how Pyroscope begins what it says of one profile
// (pkg/distributor/distributor.go, PushBatch).
var failure = regexp.MustCompile(`push series with index (\d+) and id [0-9A-Fa-f-]* ?failed: `)

// failures is how a server's answer begins that names profiles. A collector
// puts words of its own in front of a server's, and may have sent it profiles
// of other requests as well: its numbers are not ours.
var failures = regexp.MustCompile(`^failed to make a GRPC request: (?:(\d+) errors: )?push series with index `)

// read finds what became of the profiles of a push. It is false where the text
// is not surely of that kind: labels are in it, which a workload may have named
// to look like it, so the number of failures must be the one that is told.
func read(text string, profiles int) (map[int]outcome, bool) {
	begin := failures.FindStringSubmatch(text)
	if begin == nil {
		return nil, false
	}
	want := 1
	if begin[1] != "" {
		n, err := strconv.Atoi(begin[1])
		if err != nil {
			return nil, false
		}
		want = n
	}
	found := failure.FindAllStringSubmatchIndex(text, -1)
	if len(found) != want || want > profiles {
		return nil, false
	}
	out := make(map[int]outcome, want)
	for i, at := range found {
		index, err := strconv.Atoi(text[at[2]:at[3]])
		if err != nil || index >= profiles {
			return nil, false
		}
		if _, twice := out[index]; twice {
			return nil, false
		}
		end := len(text)
		if i+1 < len(found) {
			end = found[i+1][0]
		}
		out[index] = later
		if strings.HasPrefix(text[at[1]:end], "invalid_argument: ") {
			out[index] = refused
		}
	}
	return out, true
}

// count is how many profiles a message has; 0 where it cannot be read.
func count(message []byte) int {
	n := 0
	pick(message, func(i int) bool {
		n = i + 1
		return false
	})
	return n
}

// pick gives a message with those of its profiles that keep says.
func pick(message []byte, keep func(i int) bool) []byte {
	var out []byte
	n := 0
	for rest := message; len(rest) > 0; {
		number, _, size := protowire.ConsumeField(rest)
		if size < 0 {
			return append(out, rest...) // not for us to judge
		}
		if number != 1 || keep(n) {
			out = append(out, rest[:size]...)
		}
		if number == 1 {
			n++
		}
		rest = rest[size:]
	}
	return out
}
