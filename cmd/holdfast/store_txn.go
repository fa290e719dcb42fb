package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	storev1 "github.com/holdfast-io/holdfast/proto/holdfast/store/v1"
)

func (a *app) storeTxnCommand() *cobra.Command {
	var file, output string
	cmd := &cobra.Command{
		Use:   "txn",
		Short: "Run a conditional transaction",
		Long: `Run a conditional transaction, read from standard input or a file. It has three
parts, each ended by an empty line: compares; what to do if all of them hold; what
to do if not. The last ones may be missing. Words with spaces are quoted.

Compares: value, version, create, mod or lease of a key, with =, !=, < or >.
Operations: put KEY VALUE; get KEY, delete KEY, with --prefix or --from-key.

Exit code 4 means that the compares did not hold; the second part was run.`,
		Example: `  printf 'mod("lock") = 0\n\nput lock me\n\nget lock\n' | holdfast store txn
  holdfast store txn --file move.txt`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output, "text", "json", "yaml"); err != nil {
				return err
			}
			in := a.stdin
			name := "standard input"
			if file != "" && file != "-" {
				f, err := os.Open(file)
				if err != nil {
					return failf(exitUsage, "%w", err)
				}
				defer f.Close()
				in, name = f, file
			}
			text, err := io.ReadAll(io.LimitReader(in, 4<<20))
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			req, err := parseTxn(string(text))
			if err != nil {
				return failf(exitUsage, "%s:\n%w", name, err)
			}
			r, err := a.dial()
			if err != nil {
				return err
			}
			ctx, cancel := a.request(cmd.Context())
			defer cancel()
			resp, err := r.store.Txn(ctx, req)
			if err != nil {
				return a.explain(ctx, r, "txn", err)
			}
			if output == "text" {
				a.printTxn(resp)
			} else if err := a.writeMessage(output, resp); err != nil {
				return err
			}
			if !resp.GetSucceeded() {
				return exit(exitRefused)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "read the transaction from this file")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	return cmd
}

func (a *app) printTxn(resp *storev1.TxnResponse) {
	if resp.GetSucceeded() {
		fmt.Fprintf(a.stdout, "success, revision %d\n", resp.GetHeader().GetRevision())
	} else {
		fmt.Fprintf(a.stdout, "failure, revision %d\n", resp.GetHeader().GetRevision())
	}
	for _, result := range resp.GetResults() {
		switch r := result.GetResult().(type) {
		case *storev1.OpResult_Put:
			fmt.Fprintln(a.stdout, "put")
		case *storev1.OpResult_Delete:
			fmt.Fprintf(a.stdout, "%d deleted\n", r.Delete.GetDeleted())
		case *storev1.OpResult_Range:
			fmt.Fprintf(a.stdout, "%d found\n", r.Range.GetCount())
			for _, kv := range r.Range.GetKvs() {
				fmt.Fprintf(a.stdout, "%s\t%s\n", shown(kv.GetKey()), shown(kv.GetValue()))
			}
		}
	}
}

// parseTxn reads a transaction. The error names all lines that are wrong.
func parseTxn(text string) (*storev1.TxnRequest, error) {
	req := &storev1.TxnRequest{}
	part, blank := 0, false
	var faults []error
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		var err error
		switch line = strings.TrimSpace(line); {
		case line == "":
			// Each empty line ends a part, so that a part can be empty.
			part++
			blank = true
			continue
		case part == 0:
			var c *storev1.Compare
			if c, err = parseCompare(line); err == nil {
				req.Compares = append(req.Compares, c)
			}
		case part > 2:
			err = errors.New("the transaction has ended: there are three parts, with an empty line between")
		default:
			var op *storev1.Op
			if op, err = parseOp(line); err == nil && part == 1 {
				req.Success = append(req.Success, op)
			} else if err == nil {
				req.Failure = append(req.Failure, op)
			}
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("line %d: %w", i+1, err))
		}
	}
	if len(faults) == 0 && !blank {
		faults = append(faults, errors.New("there is nothing to do: after the compares comes an empty line, then the operations"))
	}
	return req, errors.Join(faults...)
}

var comparePattern = regexp.MustCompile(`^(value|version|create|mod|lease)\s*\((.*)\)\s*(!=|=|<|>)\s*(.+)$`)

func parseCompare(line string) (*storev1.Compare, error) {
	m := comparePattern.FindStringSubmatch(line)
	if m == nil {
		return nil, fmt.Errorf("%s is no compare: want value, version, create, mod or lease, as in mod(\"key\") = 0", line)
	}
	key, err := parseWord(strings.TrimSpace(m[2]))
	if err != nil {
		return nil, err
	}
	right, err := parseWord(m[4])
	if err != nil {
		return nil, err
	}
	c := &storev1.Compare{Key: []byte(key)}
	switch m[3] {
	case "=":
		c.Result = storev1.Compare_RESULT_EQUAL
	case "!=":
		c.Result = storev1.Compare_RESULT_NOT_EQUAL
	case "<":
		c.Result = storev1.Compare_RESULT_LESS
	case ">":
		c.Result = storev1.Compare_RESULT_GREATER
	}
	if m[1] == "value" {
		c.Target = &storev1.Compare_Value{Value: []byte(right)}
		return c, nil
	}
	n, err := strconv.ParseInt(right, 0, 64)
	if err != nil {
		return nil, fmt.Errorf("%s is compared with %s, want a number", m[1], right)
	}
	switch m[1] {
	case "version":
		c.Target = &storev1.Compare_Version{Version: n}
	case "create":
		c.Target = &storev1.Compare_CreateRevision{CreateRevision: n}
	case "mod":
		c.Target = &storev1.Compare_ModRevision{ModRevision: n}
	case "lease":
		c.Target = &storev1.Compare_Lease{Lease: n}
	}
	return c, nil
}

func parseOp(line string) (*storev1.Op, error) {
	words, err := parseWords(line)
	if err != nil {
		return nil, err
	}
	var keys keyFlags
	verb, args := words[0], words[:0:0]
	for _, word := range words[1:] {
		switch word {
		case "--prefix":
			keys.prefix = true
		case "--from-key":
			keys.fromKey = true
		default:
			args = append(args, word)
		}
	}
	want := map[string]int{"put": 2, "get": 1, "delete": 1, "del": 1}[verb]
	switch {
	case want == 0:
		return nil, fmt.Errorf("%s is no operation: want put, get or delete", verb)
	case len(args) != want:
		return nil, fmt.Errorf("%s has %d arguments, want %d; quote those with spaces", verb, len(args), want)
	case verb == "put":
		return &storev1.Op{Op: &storev1.Op_Put{Put: &storev1.PutRequest{Key: []byte(args[0]), Value: []byte(args[1])}}}, nil
	}
	start, end, err := keys.bounds(args[0])
	if err != nil {
		return nil, err
	}
	if verb == "get" {
		return &storev1.Op{Op: &storev1.Op_Range{Range: &storev1.RangeRequest{Key: start, RangeEnd: end}}}, nil
	}
	return &storev1.Op{Op: &storev1.Op_Delete{Delete: &storev1.DeleteRequest{Key: start, RangeEnd: end}}}, nil
}

// parseWords splits a line at spaces. Words in quotes are as Go writes strings.
func parseWords(line string) ([]string, error) {
	var words []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		word, rest, _ := strings.Cut(line, " ")
		if line[0] == '"' || line[0] == '`' {
			quoted, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, fmt.Errorf("%s: the quotes do not end, or hold what no string does", line)
			}
			word, rest = quoted, line[len(quoted):]
		}
		parsed, err := parseWord(word)
		if err != nil {
			return nil, err
		}
		words, line = append(words, parsed), rest
	}
	return words, nil
}

func parseWord(word string) (string, error) {
	if !strings.HasPrefix(word, `"`) && !strings.HasPrefix(word, "`") {
		return word, nil
	}
	text, err := strconv.Unquote(word)
	if err != nil {
		return "", fmt.Errorf("%s is not quoted as it should be", word)
	}
	return text, nil
}
