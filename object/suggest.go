package object

import "strings"

// Nearest returns the candidate that word was most likely meant to be, for "did
// you mean"; ok is false if none is near.
func Nearest(word string, candidates []string) (guess string, ok bool) {
	return nearest(word, candidates)
}

// nearest returns the candidate that word was most likely meant to be. A word
// is close enough if a third of its letters, or one, would have to change; so
// "replica" suggests "replicas", and "foo" suggests nothing.
func nearest(word string, candidates []string) (string, bool) {
	best, found := "", false
	limit := max(1, len(word)/3) + 1 // the first distance that is too far
	lower := strings.ToLower(word)
	for _, c := range candidates {
		if d := editDistance(lower, strings.ToLower(c)); d < limit && d < max(len(c), len(word)) {
			best, found, limit = c, true, d
		}
	}
	return best, found
}

// editDistance counts the letters to insert, remove, replace or swap with their
// neighbor to turn a into b (optimal string alignment).
func editDistance(a, b string) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}
