package spool

import (
	"slices"
	"time"
)

// entry is a request that waits.
type entry struct {
	sequence uint64
	header   header
	data     []byte // its file, while there is none; nil: it is in the folder
	lasting  bool   // its file outlives a crash of the machine
	sending  bool   // it is being sent, and stays until that is known to have ended
	failed   int    // how often sending it failed
	passed   int    // how many others got through since it first stood in their way
	unread   int    // how often its file could not be read
}

func (e *entry) name() string { return fileName(e.sequence) }

// bytes is the room that the entry takes where it is.
func (e *entry) bytes() int64 {
	if e.data != nil {
		return int64(cap(e.data))
	}
	return onDisk(e.header.size())
}

// queue is the requests that wait, oldest first, and their sums.
type queue struct {
	entries []*entry
	memory  Held
	disk    Held
	body    int64 // bytes of all requests, as they are sent
}

// held is the sum that the entry is part of.
func (q *queue) held(e *entry) *Held {
	if e.data != nil {
		return &q.memory
	}
	return &q.disk
}

// add puts entries where their sequence numbers say.
func (q *queue) add(entries ...*entry) {
	for _, e := range entries {
		q.held(e).add(e)
		q.body += int64(e.header.body)
	}
	q.entries = append(q.entries, entries...)
	slices.SortFunc(q.entries, func(a, b *entry) int {
		switch {
		case a.sequence < b.sequence:
			return -1
		case a.sequence > b.sequence:
			return 1
		}
		return 0
	})
}

func (q *queue) remove(e *entry) {
	i := slices.Index(q.entries, e)
	if i < 0 {
		return
	}
	q.entries = slices.Delete(q.entries, i, i+1)
	q.held(e).subtract(e)
	q.body -= int64(e.header.body)
}

// stored says that the entry's file was written.
func (q *queue) stored(e *entry, lasting bool) {
	q.memory.subtract(e)
	e.data, e.lasting = nil, lasting
	q.disk.add(e)
}

// oldest is the first entry that is where it is asked for, and is not being
// sent; nil: there is none.
func (q *queue) oldest(inMemory bool) *entry {
	for _, e := range q.entries {
		if !e.sending && (e.data != nil) == inMemory {
			return e
		}
	}
	return nil
}

// older are the entries from before the time that are not being sent.
func (q *queue) older(than time.Time) []*entry {
	var out []*entry
	for _, e := range q.entries {
		if !e.sending && e.header.time.Before(than) {
			out = append(out, e)
		}
	}
	return out
}

func (h *Held) add(e *entry) {
	h.Requests++
	h.Samples += e.header.samples
	h.Bytes += e.bytes()
}

func (h *Held) subtract(e *entry) {
	h.Requests--
	h.Samples -= e.header.samples
	h.Bytes -= e.bytes()
}
