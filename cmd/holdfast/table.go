package main

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-io/holdfast/object"
)

// grid writes tables in columns, as kubectl does: three blanks between them.
// Later tables keep at least the widths of earlier ones, so that the rows of a
// watch stay in line.
type grid struct {
	w      io.Writer
	wide   bool // all columns
	header bool // write the names of the columns before the first row
	widths []int
}

// write writes the rows of t. The columns must be those of the last call.
func (g *grid) write(t object.Table) {
	var rows [][]string
	if g.header {
		var names []string
		for _, c := range t.Columns {
			names = append(names, c.Name)
		}
		rows, g.header = append(rows, names), false
	}
	rows = append(rows, t.Rows...)
	for i, row := range rows {
		shown := make([]string, 0, len(row))
		for j, cell := range row {
			if g.wide || j >= len(t.Columns) || !t.Columns[j].Wide {
				shown = append(shown, cell)
			}
		}
		rows[i] = shown
		for j, cell := range shown {
			if j == len(g.widths) {
				g.widths = append(g.widths, 0)
			}
			g.widths[j] = max(g.widths[j], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for j, cell := range row {
			line.WriteString(cell)
			if j < len(row)-1 {
				line.WriteString(strings.Repeat(" ", g.widths[j]-utf8.RuneCountInString(cell)+3))
			}
		}
		fmt.Fprintln(g.w, strings.TrimRight(line.String(), " "))
	}
}
