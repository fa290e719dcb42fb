package main

import (
	"fmt"
	"io"
	"unicode/utf8"
)

// liveLine writes lines and, on a terminal, keeps one more below them that is
// overwritten. Elsewhere only the lines appear.
type liveLine struct {
	w     io.Writer
	width func() (int, bool)
	shown bool
}

func (a *app) newLiveLine(w io.Writer) *liveLine {
	return &liveLine{w: w, width: func() (int, bool) {
		if a.getenv("TERM") == "dumb" {
			return 0, false
		}
		return a.terminal(w)
	}}
}

// print writes a line that stays.
func (l *liveLine) print(text string) {
	l.clear()
	fmt.Fprintln(l.w, text)
}

// show replaces the live line.
func (l *liveLine) show(text string) {
	width, ok := l.width()
	if !ok {
		return
	}
	for utf8.RuneCountInString(text) >= width && text != "" {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	fmt.Fprintf(l.w, "\r\x1b[K%s", text)
	l.shown = true
}

// clear removes the live line.
func (l *liveLine) clear() {
	if l.shown {
		fmt.Fprint(l.w, "\r\x1b[K")
		l.shown = false
	}
}
