package elffile

// symbolCache is filled on the first look-up.
type symbolCache struct{}
