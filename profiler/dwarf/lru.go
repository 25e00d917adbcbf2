package dwarf

import "container/list"

// What the cache holds. Everything parsed lives in one least-recently-used
// cache, so one byte budget bounds all of it.
const (
	kindUnit uint8 = iota
	kindFunction
	kindAbbrevs
	kindName
	kindRoot
	kindFile
)

type cacheKey struct {
	kind  uint8
	space uint8
	off   uint64
	n     uint32
}

type cacheEntry struct {
	key   cacheKey
	value any
	bytes int
}

// entryOverhead is the list element, the map slot and the entry itself.
const entryOverhead = 160

type cache struct {
	entries   map[cacheKey]*list.Element
	order     list.List // front: used last
	bytes     int
	budget    int
	evictions uint64
}

func (c *cache) get(k cacheKey) any {
	e := c.entries[k]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cacheEntry).value
}

// put adds a value of so many bytes and evicts others until the budget holds.
// A value larger than the whole budget is not kept.
func (c *cache) put(k cacheKey, value any, bytes int) {
	bytes += entryOverhead
	if old := c.entries[k]; old != nil {
		c.drop(old)
	}
	if bytes > c.budget {
		c.evictions++
		return
	}
	for c.bytes+bytes > c.budget {
		c.drop(c.order.Back())
		c.evictions++
	}
	c.entries[k] = c.order.PushFront(&cacheEntry{k, value, bytes})
	c.bytes += bytes
}

func (c *cache) drop(e *list.Element) {
	entry := c.order.Remove(e).(*cacheEntry)
	delete(c.entries, entry.key)
	c.bytes -= entry.bytes
}

func (c *cache) clear() {
	clear(c.entries)
	c.order.Init()
	c.bytes = 0
}
