package process

import (
	"fmt"
	"time"
)

// tooLong is how long reading one thing of a file may take. The symbol table of
// the largest programs takes a second or two, on a busy machine a few times that.
const tooLong = 20 * time.Second

// guard runs what reads the file's bytes, and says whether that went well.
// Parsers check bounds, count their work and are fuzzed; should one panic or
// never come to an end all the same, the agent goes on: the file is poisoned,
// which is said once, and not read any more. Its frames stay module+0xoffset
// and its stacks end there.
func (e *Executable) guard(doing string, read func()) (ok bool) {
	holder := e
	if e.lender != nil {
		holder = e.lender
	}
	if holder.poisoned.Load() {
		return false
	}
	begin := time.Now()
	defer func() {
		why := recover()
		if took := time.Since(begin); why == nil && took > tooLong {
			why = fmt.Sprintf("it takes %s", took.Round(time.Second))
		}
		if why == nil {
			return
		}
		ok = false
		if !holder.poisoned.Swap(true) && e.tell != nil {
			e.tell(fmt.Errorf("%s of %s (build %s): %v; the file is not read any more", doing, e.path, e.module.BuildID, why))
		}
	}()
	read()
	return true
}
