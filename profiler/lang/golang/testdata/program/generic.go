//go:build go1.18

package main

type list[T any] struct{ items []T }

//go:noinline
func (l *list[T]) each(f func(T)) {
	for _, x := range l.items {
		f(x)
	}
}

func apply[T, U any](in []T, f func(T) U) []U {
	var got []U
	for _, x := range in {
		got = append(got, f(x))
	}
	return got
}

func generic() {
	l := &list[int]{[]int{1}}
	l.each(func(int) { outer(2) })
	apply([]string{"a"}, func(s string) int { return inner(len(s)) })
}
