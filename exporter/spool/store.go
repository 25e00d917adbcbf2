package spool

import (
	"cmp"
	"errors"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Functions in this file are called with Spool.disk held.

// unlock ends what touched files, and notes for Stats what there is of them.
func (s *Spool) unlock() {
	defer s.disk.Unlock()
	if s.folder == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.SetAsideFiles, s.stats.SetAsideBytes = len(s.folder.aside), s.folder.asideBytes()
	s.stats.SetAsideDropped = s.folder.dropped
	s.stats.LeftoverFiles = len(s.leftover)
}

// openFolder makes sure that the folder is open, and takes up the files in it
// when it was not.
func (s *Spool) openFolder() error {
	opened, err := s.folder.ready()
	if err != nil || !opened {
		return err
	}
	if err := s.load(); err != nil {
		s.folder.close()
		return err
	}
	s.expire()
	s.room(0)
	return nil
}

// load takes up the files in the folder that are not known yet.
func (s *Spool) load() error {
	known := map[string]bool{}
	s.mu.Lock()
	for _, e := range s.queue.entries {
		known[e.name()] = true
	}
	s.mu.Unlock()
	for _, l := range s.leftover {
		known[l.name] = true
	}
	var sequences []uint64
	var temps []string
	foreign, example := 0, ""
	err := s.folder.list(".", func(d fs.DirEntry) {
		sequence, end, ok := parseName(d.Name())
		switch {
		case known[d.Name()], d.Name() == rejectedDir && d.IsDir():
		case !ok, !d.Type().IsRegular():
			foreign++
			example = d.Name()
		case end == tempEnding: // what was being written when the agent was killed was not Put yet
			temps = append(temps, d.Name())
		default:
			sequences = append(sequences, sequence)
		}
	})
	if err != nil {
		return err
	}
	for _, name := range temps {
		_ = s.folder.remove(name)
	}
	slices.Sort(sequences)
	entries, newer := s.entriesOf(sequences)
	s.mu.Lock()
	s.queue.add(entries...)
	s.stats.NewerFiles, s.stats.ForeignFiles = newer, foreign
	s.mu.Unlock()
	if foreign > 0 {
		s.cfg.Log.Warn("files in the spool that are not its own are left alone", "files", foreign, "one", example)
	}
	if newer > 0 {
		s.cfg.Log.Warn("files of a newer version in the spool are left alone", "files", newer)
	}
	if len(entries) > 0 {
		s.cfg.Log.Info("requests of an earlier run are in the spool", "requests", len(entries))
	}
	return nil
}

// entriesOf makes entries of files by their headers, and sets damaged files
// aside. It also says how many are of a newer version.
func (s *Spool) entriesOf(sequences []uint64) (entries []*entry, newer int) {
	for _, sequence := range sequences {
		s.sequence = max(s.sequence, sequence)
		name := fileName(sequence)
		h, size, err := s.folder.readHeader(name)
		sound := err == nil
		if sound && size != h.size() {
			err = corrupt("%d bytes, where its header says %d", size, h.size())
		}
		switch {
		case err == nil:
			s.count(&s.stats.Recovered, h.count())
			entries = append(entries, &entry{sequence: sequence, header: h})
		case errors.Is(err, errNewer):
			newer++
		case errors.Is(err, errCorrupt):
			lost := Count{Requests: 1}
			if sound {
				lost = h.count()
			}
			s.count(&s.stats.Recovered, lost)
			s.count(&s.stats.Unreadable, lost)
			s.damaged(name, lost, err)
			if err := s.folder.setAside(name, size); err != nil {
				s.troubled(err)
			}
		default: // it stays for the next start
			s.troubled(err)
		}
	}
	return entries, newer
}

func (s *Spool) damaged(name string, lost Count, err error) {
	s.cfg.Log.Warn("a spool file cannot be used", "file", name, "samples", lost.Samples, "reason", err)
}

func (s *Spool) count(to *Count, n Count) {
	s.mu.Lock()
	to.add(n)
	s.mu.Unlock()
}

// store brings to the folder what is in memory, oldest first, until there is
// nothing or a write fails.
func (s *Spool) store() {
	if s.folder == nil {
		return
	}
	if err := s.openFolder(); err != nil {
		s.diskFailed(err)
		return
	}
	s.removeLeftover()
	for wrote := false; ; wrote = true {
		s.mu.Lock()
		var e *entry
		for _, one := range s.queue.entries {
			if one.data != nil {
				e = one
				break
			}
		}
		waits := len(s.queue.entries) > 1 || s.stats.Backend > BackendReachable
		s.mu.Unlock()
		if e == nil && wrote {
			s.diskWorks()
		}
		if e == nil || !s.room(onDisk(e.header.size())) {
			return
		}
		// A file that is deleted within a second never reaches the disk unless
		// it is made to. Only what has to wait is worth that.
		if err := s.write(e, waits || s.closing.Err() != nil); err != nil {
			s.diskFailed(err)
			return
		}
	}
}

// write gives an entry its file, which outlives the agent. One that is lasting
// outlives a crash of the machine too.
func (s *Spool) write(e *entry, lasting bool) error {
	if err := s.folder.write(e.name(), e.data, lasting); err != nil {
		return err
	}
	if lasting {
		if err := s.folder.syncNames(); err != nil {
			s.troubled(err)
			lasting = false
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue.stored(e, lasting)
	return nil
}

// room drops the oldest files until as many bytes fit into the folder. It says
// whether they do.
func (s *Spool) room(bytes int64) bool {
	for s.folderBytes()+bytes > s.cfg.MaxBytes {
		if s.folder.dropAside() {
			continue
		}
		e := s.oldest(false)
		if e == nil {
			return false
		}
		s.evict(e)
	}
	return true
}

// folderBytes is the room that the spool's files take.
func (s *Spool) folderBytes() int64 {
	n := s.folder.asideBytes()
	for _, l := range s.leftover {
		n += l.bytes
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return n + s.queue.disk.Bytes
}

// boundMemory drops the oldest requests until what is in memory fits there.
// Where the disk is full, dropping its oldest makes room for what is in memory.
func (s *Spool) boundMemory() {
	for s.memoryBytes() > s.cfg.MemoryBytes {
		if s.full && s.folder.dropAside() {
			s.store()
			continue
		}
		if e := s.oldest(false); s.full && e != nil {
			s.evict(e)
			s.store()
			continue
		}
		e := s.oldest(true)
		if e == nil {
			return
		}
		s.evict(e)
	}
}

func (s *Spool) memoryBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.memory.Bytes
}

func (s *Spool) oldest(inMemory bool) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue.oldest(inMemory)
}

// expire drops what the backend would refuse for its age.
func (s *Spool) expire() {
	s.mu.Lock()
	old := s.queue.older(time.Now().Add(-s.cfg.MaxAge))
	s.mu.Unlock()
	if len(old) == 0 {
		return
	}
	var n Count
	for _, e := range old {
		n.add(e.header.count())
		s.discard(e, &s.stats.Expired)
	}
	s.cfg.Log.Warn("requests older than the backend accepts are dropped", "requests", n.Requests, "samples", n.Samples, "limit", s.cfg.MaxAge)
}

// evict drops an entry for want of room.
func (s *Spool) evict(e *entry) {
	s.cfg.Log.Warn("no room in the spool, its oldest request is dropped", "samples", e.header.samples)
	s.discard(e, &s.stats.Evicted)
}

// discard ends an entry: it is counted and its file is removed.
func (s *Spool) discard(e *entry, to *Count) {
	s.mu.Lock()
	s.queue.remove(e)
	to.add(e.header.count())
	s.mu.Unlock()
	if e.data != nil {
		return
	}
	if err := s.folder.remove(e.name()); err != nil {
		s.leftover = append(s.leftover, file{e.name(), e.bytes()})
		s.troubled(err)
	}
}

// setAside ends an entry whose file a person may want to look at.
func (s *Spool) setAside(e *entry, to *Count) {
	if s.folder != nil && s.folder.root != nil {
		var err error
		if e.data != nil && s.room(onDisk(e.header.size())) {
			err = s.write(e, false)
		}
		if err == nil && e.data == nil {
			err = s.folder.setAside(e.name(), e.header.size())
		}
		if err != nil {
			s.troubled(err)
		}
	}
	// A file that was moved away is no longer there to be removed.
	s.discard(e, to)
}

// removeLeftover tries again to remove the files of entries that are gone.
func (s *Spool) removeLeftover() {
	for len(s.leftover) > 0 && s.folder.remove(s.leftover[0].name) == nil {
		s.leftover = s.leftover[1:]
	}
}

// troubled notes that something could not be done with a file. Whether the
// folder works shows when the next one is written.
func (s *Spool) troubled(err error) {
	s.mu.Lock()
	s.stats.DiskErrors++
	s.mu.Unlock()
	s.cfg.Log.Warn("trouble with a file in the spool", "error", err)
}

// diskFailed notes that nothing can be written to the folder.
func (s *Spool) diskFailed(err error) {
	s.full = s.folder.root != nil && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT))
	s.mu.Lock()
	worked := s.stats.DiskError == ""
	s.stats.DiskErrors++
	s.stats.DiskError = err.Error()
	s.mu.Unlock()
	if worked {
		s.cfg.Log.Warn("the spool's folder does not work, requests are kept in memory", "dir", s.cfg.Dir, "error", err)
	}
}

// diskWorks notes that all that was in memory could be written.
func (s *Spool) diskWorks() {
	s.full = false
	s.mu.Lock()
	worked := s.stats.DiskError == ""
	s.stats.DiskError = ""
	s.mu.Unlock()
	if !worked {
		s.cfg.Log.Info("the spool's folder works again", "dir", s.cfg.Dir)
	}
}

// loseMemory ends what no folder took.
func (s *Spool) loseMemory() Count {
	for e := s.oldest(true); e != nil; e = s.oldest(true) {
		s.discard(e, &s.stats.Lost)
	}
	st := s.Stats()
	if st.Lost.Requests > 0 {
		why := cmp.Or(st.DiskError, "it has no room")
		if s.folder == nil {
			why = "there is no folder"
		}
		s.cfg.Log.Error("requests in memory are lost with the end of the agent: no folder took them",
			"requests", st.Lost.Requests, "samples", st.Lost.Samples, "reason", why)
	}
	return st.Lost
}

// keep makes the files that stay outlive a crash of the machine.
func (s *Spool) keep() {
	for _, e := range s.queue.entries {
		if e.data == nil {
			s.keepOne(e)
		}
	}
}

func (s *Spool) keepOne(e *entry) {
	if e.lasting || e.data != nil {
		return
	}
	if err := s.folder.sync(e.name()); err != nil {
		s.troubled(err)
		return
	}
	e.lasting = true
}
