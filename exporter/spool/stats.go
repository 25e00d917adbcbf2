package spool

import "time"

// Count is requests and the samples in them.
type Count struct{ Requests, Samples uint64 }

func (c *Count) add(n Count) {
	c.Requests += n.Requests
	c.Samples += n.Samples
}

// Held is requests that are kept somewhere, and the room that they take.
type Held struct {
	Requests int
	Samples  uint64
	Bytes    int64
}

// Backend is what the last attempt to send said of the backend.
type Backend uint8

// What a backend can be.
const (
	BackendUnknown     Backend = iota // nothing was sent yet
	BackendReachable                  // it took a request or refused one
	BackendBusy                       // it answers, and asks to wait
	BackendUnreachable                // it gives no answer, or none that is one
)

// String gives the word used in metrics.
func (b Backend) String() string {
	switch b {
	case BackendUnknown:
		return "unknown"
	case BackendReachable:
		return "reachable"
	case BackendBusy:
		return "busy"
	case BackendUnreachable:
		return "unreachable"
	}
	return "invalid"
}

// Stats is what a spool did since it was opened, and what it holds. Every
// sample is in one place: Put and Recovered together are what Delivered,
// PartlyAccepted, Refused, Expired, Evicted, Unreadable, Lost, Disk and Memory
// are together.
type Stats struct {
	Put       Count // taken by Put
	Recovered Count // found in the folder, left there by an earlier run

	Delivered      Count
	PartlyAccepted Count // delivered, but the backend left out some of their profiles
	Refused        Count // the backend will not have them; set aside
	Expired        Count // older than the backend accepts
	Evicted        Count // dropped, oldest first, because there was no room
	Unreadable     Count // damaged or lost files; samples of those with a sound header only
	Lost           Count // in memory when the spool was closed: no backend and no folder took them

	Disk   Held      // waiting in the folder
	Memory Held      // waiting in memory
	Oldest time.Time // of the oldest request that waits; zero: none does

	SetAsideFiles int // files in the folder of rejected ones
	SetAsideBytes int64
	// SetAsideDropped counts files of rejected ones that are gone: the folder's
	// room is for what waits, and an eighth of it for them.
	SetAsideDropped uint64
	NewerFiles      int // files of a newer version, left alone
	ForeignFiles    int // what else is in the folder and is not the spool's
	LeftoverFiles   int // files of requests that are done with, which the disk would not remove

	RejectedProfiles uint64 // profiles that the backend left out of requests it took
	Retries          uint64 // failed attempts to send
	DiskErrors       uint64

	DiskError   string // why requests are kept in memory although there is a folder; empty: they are not
	Backend     Backend
	SendError   string    // the last, kept after it is overcome
	LastSuccess time.Time // zero: none yet
}
