package partial

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kalypso-dev/kalypso/exporter"
	"github.com/kalypso-dev/kalypso/exporter/transport"
)

// request has profiles named a, b, c, … and a dictionary.
func request(profiles int) *exporter.Request {
	r := &exporter.Request{Profiles: profiles}
	for i := range profiles {
		r.Body = protowire.AppendString(protowire.AppendTag(r.Body, 1, protowire.BytesType), string(rune('a'+i)))
	}
	r.Body = protowire.AppendString(protowire.AppendTag(r.Body, 2, protowire.BytesType), "dictionary")
	return r
}

// text is the profiles of a message, with + where there is a dictionary.
func text(message []byte) string {
	var out strings.Builder
	for len(message) > 0 {
		number, _, n := protowire.ConsumeTag(message)
		value, m := protowire.ConsumeString(message[n:])
		if number == 2 {
			value = "+"
		}
		out.WriteString(value)
		message = message[n+m:]
	}
	return out.String()
}

const id = " and id 69887703-237a-487c-b0cf-2b31ede5a58c failed: "

// said is what a server of 2.2.1 says of failures, each "index why".
func said(failures ...string) error {
	var all []string
	for _, f := range failures {
		index, why, _ := strings.Cut(f, " ")
		all = append(all, "push series with index "+index+id+why)
	}
	text := "failed to make a GRPC request: "
	if len(all) > 1 {
		text += fmt.Sprintf("%d errors: ", len(all))
	}
	return transport.Answered("backend:1", &transport.Said{Text: text + strings.Join(all, "; ")}, "")
}

const (
	limited = "resource_exhausted: push rate limit (4.0 MiB) exceeded while adding 823 KiB"
	invalid = `invalid_argument: profile with labels '{a="b"}' is outside of ingestion window`
)

func busy(err error) error         { return &exporter.BusyError{Err: err} }
func refusedForGood(e error) error { return &exporter.RefusedError{Err: e} }

func TestSettle(t *testing.T) {
	type step struct {
		sent     string // what Left gives
		answer   error
		want     string // taken, busy, refused, again
		rejected int
	}
	for _, test := range []struct {
		name  string
		steps []step
	}{
		{"what was taken is done", []step{{"abcd+", nil, "taken", 0}}},
		{"profiles that were stored are not sent again", []step{
			{"abcd+", busy(said("3 "+limited, "1 "+limited)), "busy", 0},
			{"bd+", busy(said("1 " + limited)), "busy", 0},
			{"d+", nil, "taken", 0},
		}},
		{"all that were stored but one", []step{
			{"abcd+", busy(said("2 " + limited)), "busy", 0},
			{"c+", nil, "taken", 0},
		}},
		{"where none was stored all are sent again", []step{
			{"abcd+", busy(said("0 "+limited, "1 "+limited, "2 "+limited, "3 "+limited)), "busy", 0},
			{"abcd+", nil, "taken", 0},
		}},
		{"profiles that are refused while others are stored are a partial success", []step{
			{"abcd+", refusedForGood(said("0 "+invalid, "2 "+invalid)), "taken", 2},
		}},
		{"all refused is a refusal", []step{
			{"abcd+", refusedForGood(said("0 "+invalid, "1 "+invalid, "2 "+invalid, "3 "+invalid)), "refused", 0},
		}},
		{"what is for later outlasts what is refused", []step{
			{"abcd+", refusedForGood(said("0 "+invalid, "2 "+limited)), "busy", 0},
			{"c+", nil, "taken", 1},
		}},
		{"another failure of a profile says nothing of its data", []step{
			{"abcd+", said("1 context deadline exceeded"), "again", 0},
			{"b+", nil, "taken", 0},
		}},
		{"an answer that names no profiles holds for all", []step{
			{"abcd+", busy(transport.Answered("backend:1", &transport.Said{Text: "push rate limit exceeded"}, "")), "busy", 0},
			{"abcd+", errors.New("connection refused"), "again", 0},
			{"abcd+", nil, "taken", 0},
		}},
		{"a label that looks like a failure is not believed", []step{
			{"abcd+", busy(said("1 " + limited + ` push series with index 2` + id)), "busy", 0},
			{"abcd+", busy(said("1 "+limited+` push series with index 2`+id, "3 "+limited)), "busy", 0},
			{"abcd+", nil, "taken", 0},
		}},
		{"what a collector says of profiles is not about those of a request", []step{
			{"abcd+", busy(transport.Answered("backend:1", &transport.Said{Text: "Permanent error: failed to make a GRPC request: push series with index 1" + id + limited}, "")), "busy", 0},
			{"abcd+", nil, "taken", 0},
		}},
		{"an index that there is not is not believed", []step{
			{"abcd+", busy(said("4 " + limited)), "busy", 0},
			{"abcd+", busy(said("1 "+limited, "1 "+limited)), "busy", 0},
			{"abcd+", nil, "taken", 0},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var l Ledger
			r := request(4)
			for i, s := range test.steps {
				if got := text(l.Left(r)); got != s.sent {
					t.Errorf("step %d sends %s, want %s", i, got, s.sent)
				}
				receipt, err := l.Settle(r, exporter.Receipt{}, s.answer)
				check(t, i, receipt, err, s.want, s.rejected)
			}
			if len(l.entries) != 0 || len(l.order) != 0 {
				t.Errorf("%d entries are left", len(l.entries))
			}
		})
	}
}

func check(t *testing.T, i int, receipt exporter.Receipt, err error, want string, rejected int) {
	t.Helper()
	var busy *exporter.BusyError
	got := "again"
	switch {
	case err == nil:
		got = "taken"
	case exporter.Refused(err):
		got = "refused"
	case errors.As(err, &busy):
		got = "busy"
	}
	if got != want || receipt.RejectedProfiles != rejected {
		t.Errorf("step %d: %s with %d rejected, want %s with %d: %v", i, got, receipt.RejectedProfiles, want, rejected, err)
	}
	if rejected > 0 && !strings.Contains(receipt.Message, "ingestion window") {
		t.Errorf("step %d: the message %q does not say why", i, receipt.Message)
	}
}

func TestSettleEach(t *testing.T) {
	var l Ledger
	r := request(4)
	left := func() string {
		var out []string
		for _, m := range l.Each(r) {
			out = append(out, text(m))
		}
		return strings.Join(out, ",")
	}
	if got := left(); got != "a+,b+,c+,d+" {
		t.Errorf("sends %s", got)
	}
	no := refusedForGood(errors.New("outside of ingestion window"))
	receipt, err := l.SettleEach(r, []error{nil, busy(errors.New("rate")), no, errors.New("reset")})
	check(t, 0, receipt, err, "again", 0)
	if got := left(); got != ",b+,,d+" {
		t.Errorf("then sends %s", got)
	}
	receipt, err = l.SettleEach(r, []error{nil, busy(errors.New("rate")), nil, nil})
	check(t, 1, receipt, err, "busy", 0)
	receipt, err = l.SettleEach(r, []error{nil, nil, nil, nil})
	check(t, 2, receipt, err, "taken", 1)
	receipt, err = l.SettleEach(r, []error{no, no, no, no})
	check(t, 3, receipt, err, "refused", 0)
	receipt, err = l.SettleEach(r, []error{nil, nil, nil, nil})
	check(t, 4, receipt, err, "taken", 0)
	if len(l.entries) != 0 {
		t.Errorf("%d entries are left", len(l.entries))
	}
}

func TestLedgerIsBounded(t *testing.T) {
	var l Ledger
	for i := range 3 * entriesLimit {
		r := request(2)
		r.Body = append(r.Body, request(i%25+1).Body...)
		r.Body = protowire.AppendString(protowire.AppendTag(r.Body, 2, protowire.BytesType), fmt.Sprint(i))
		r.Profiles = count(r.Body)
		if _, err := l.Settle(r, exporter.Receipt{}, busy(said("1 "+limited))); err == nil {
			t.Fatal("taken")
		}
	}
	if len(l.entries) != entriesLimit || len(l.order) != entriesLimit {
		t.Errorf("%d entries in an order of %d, want %d", len(l.entries), len(l.order), entriesLimit)
	}
}

func FuzzRead(f *testing.F) {
	f.Add("failed to make a GRPC request: push series with index 3"+id+limited, 4)
	f.Add("failed to make a GRPC request: 2 errors: push series with index 99999999999999999999 and id  failed: ", 1)
	f.Fuzz(func(t *testing.T, text string, profiles int) {
		outcomes, ok := read(text, profiles)
		for i := range outcomes {
			if ok && (i < 0 || i >= profiles) {
				t.Errorf("profile %d of %d", i, profiles)
			}
		}
	})
}
