package spool

import (
	"math/rand/v2"
	"os"
	"testing"
)

// BenchmarkPut is a request of 510 kB that gzip makes a fifth of: what 10,000
// samples are as OTLP. A file that waits is synced, one that does not is not.
func BenchmarkPut(b *testing.B) {
	words := make([][]byte, 512)
	for i := range words {
		for range 4 + rand.IntN(24) {
			words[i] = append(words[i], byte('a'+rand.IntN(26)))
		}
	}
	r := request(1)
	for len(r.Body) < 510_000 {
		r.Body = append(r.Body, words[rand.IntN(len(words))]...)
	}
	for name, waiting := range map[string]int{"alone": 0, "behind another": 1} {
		b.Run(name, func(b *testing.B) {
			dir, err := os.MkdirTemp(os.Getenv("SPOOL_BENCH_DIR"), "spool")
			if err != nil {
				b.Fatal(err)
			}
			defer os.RemoveAll(dir)
			s, err := Open(Config{Sender: &backend{}, Dir: dir})
			if err != nil {
				b.Fatal(err)
			}
			for range waiting {
				if err := s.Put(r); err != nil {
					b.Fatal(err)
				}
			}
			for b.Loop() {
				if err := s.Put(r); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				s.disk.Lock()
				s.discard(s.queue.entries[len(s.queue.entries)-1], &s.stats.Delivered)
				s.unlock()
				b.StartTimer()
			}
		})
	}
}
