// Package near finds what somebody probably meant who mistyped a word.
package near

import "strings"

// wordLimit is far over the length of any name; comparing two takes
// time as their lengths multiplied.
const wordLimit = 100

// Word is the candidate that takes the fewest edits to become word, or ""
// when even that one takes more than a third of its letters.
func Word(word string, candidates []string) string {
	if len(word) > wordLimit {
		return ""
	}
	best, fewest := "", len(word)
	for _, c := range candidates {
		if strings.HasPrefix(c, word) && word != "" {
			return c
		}
		if d := distance(word, c); d < fewest && d <= (len(c)+2)/3 {
			best, fewest = c, d
		}
	}
	return best
}

// distance counts the edits (insert, delete, replace) from a to b:
// Levenshtein's, one row at a time.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
