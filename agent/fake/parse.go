package fake

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// node is a command of a script.
type node struct {
	join       string // with the one before: "&&", "||", or "" for always
	background bool
	kind       string // "", "if", "while", "until", "for"
	words      []word
	redirects  []redirect
	name       string // of a for's variable
	cond       []node
	body       []node
	other      []node // else
}

type redirect struct {
	fd  int
	add bool
	to  word
}

// word is a word of a script: pieces, of which those in single quotes are taken
// as they are.
type word []piece

type piece struct {
	text    string
	literal bool // no $ in it has a meaning
	quoted  bool
}

// assignment splits NAME=value.
func (w word) assignment() (name string, value word, ok bool) {
	if len(w) == 0 || w[0].quoted {
		return "", nil, false
	}
	name, rest, ok := strings.Cut(w[0].text, "=")
	if !ok || !isName(name) {
		return "", nil, false
	}
	return name, append(word{{text: rest}}, w[1:]...), true
}

func isName(s string) bool {
	for i, r := range s {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}

// plain returns a word that is nothing but unquoted text, as keywords are.
func (w word) plain() string {
	if len(w) == 1 && !w[0].quoted {
		return w[0].text
	}
	return ""
}

// expand replaces variables.
func (s *shell) expand(w word) string {
	var b strings.Builder
	for _, p := range w {
		if p.literal {
			b.WriteString(p.text)
			continue
		}
		text := p.text
		for {
			before, rest, ok := strings.Cut(text, "$")
			b.WriteString(before)
			if !ok {
				break
			}
			switch {
			case strings.HasPrefix(rest, "?"):
				b.WriteString(strconv.Itoa(s.status))
				text = rest[1:]
			case strings.HasPrefix(rest, "$"):
				b.WriteString("1")
				text = rest[1:]
			case strings.HasPrefix(rest, "{"):
				name, after, _ := strings.Cut(rest[1:], "}")
				name, fallback, _ := strings.Cut(name, ":-")
				if v := s.env[name]; v != "" {
					fallback = v
				}
				b.WriteString(fallback)
				text = after
			default:
				n := 0
				for n < len(rest) && isName(rest[:n+1]) {
					n++
				}
				if n == 0 {
					b.WriteByte('$')
				}
				b.WriteString(s.env[rest[:n]])
				text = rest[n:]
			}
		}
	}
	return b.String()
}

// token is a word or an operator.
type token struct {
	op   string // ";", "&&", "||", "&", ">", ">>", with fd; "" for a word
	fd   int
	word word
}

var errUnsupported = errors.New("the simulated shell has no pipes, substitutions or input redirections")

func tokenize(text string) ([]token, error) {
	var out []token
	var w word
	var cur strings.Builder
	inWord := false
	flushPiece := func() {
		if cur.Len() > 0 {
			w = append(w, piece{text: cur.String()})
			cur.Reset()
		}
	}
	flush := func() {
		flushPiece()
		if inWord {
			out = append(out, token{word: w})
		}
		w, inWord = nil, false
	}
	for i := 0; i < len(text); i++ {
		c := text[i]
		next := byte(0)
		if i+1 < len(text) {
			next = text[i+1]
		}
		switch {
		case c == '\'':
			end := strings.IndexByte(text[i+1:], '\'')
			if end < 0 {
				return nil, errors.New("a ' has no end")
			}
			flushPiece()
			w, inWord = append(w, piece{text: text[i+1 : i+1+end], literal: true, quoted: true}), true
			i += end + 1
		case c == '"':
			flushPiece()
			var q strings.Builder
			i++
			for ; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '`' || text[i] == '$' && i+1 < len(text) && text[i+1] == '(' {
					return nil, errUnsupported
				}
				if text[i] == '\\' && i+1 < len(text) && strings.IndexByte("\"\\$", text[i+1]) >= 0 {
					i++
					if text[i] == '$' {
						w = append(w, piece{text: q.String(), quoted: true}, piece{text: "$", literal: true, quoted: true})
						q.Reset()
						continue
					}
				}
				q.WriteByte(text[i])
			}
			if i == len(text) {
				return nil, errors.New(`a " has no end`)
			}
			w, inWord = append(w, piece{text: q.String(), quoted: true}), true
		case c == '\\' && next != 0:
			if next != '\n' {
				flushPiece()
				w, inWord = append(w, piece{text: string(next), literal: true, quoted: true}), true
			}
			i++
		case c == '#' && !inWord:
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
		case c == ' ' || c == '\t' || c == '\r':
			flush()
		case c == '\n' || c == ';':
			flush()
			out = append(out, token{op: ";"})
		case c == '&' && next == '&', c == '|' && next == '|':
			flush()
			out = append(out, token{op: string(c) + string(next)})
			i++
		case c == '&':
			flush()
			out = append(out, token{op: "&"})
		case c == '>':
			fd := 1
			if n := cur.String(); len(w) == 0 && (n == "1" || n == "2") {
				fd = int(n[0] - '0')
				cur.Reset()
				inWord = false
			}
			flush()
			op := ">"
			if next == '>' {
				op = ">>"
				i++
			}
			out = append(out, token{op: op, fd: fd})
			if op == ">" && next == '&' && i+2 < len(text) {
				out = append(out, token{word: word{{text: text[i+1 : i+3], literal: true}}})
				i += 2
			}
		case c == '|' || c == '<' || c == '`' || c == '$' && next == '(' || c == '(' || c == ')':
			return nil, errUnsupported
		default:
			cur.WriteByte(c)
			inWord = true
		}
	}
	flush()
	return out, nil
}

func parse(text string) ([]node, error) {
	tokens, err := tokenize(text)
	if err != nil {
		return nil, err
	}
	p := &parser{tokens: tokens}
	list, err := p.list()
	if err != nil {
		return nil, err
	}
	if len(p.tokens) > 0 {
		return nil, fmt.Errorf("syntax error at %q", p.tokens[0].text())
	}
	return list, nil
}

func (t token) text() string {
	if t.op != "" {
		return t.op
	}
	var b strings.Builder
	for _, p := range t.word {
		b.WriteString(p.text)
	}
	return b.String()
}

type parser struct{ tokens []token }

func (p *parser) peek() token {
	if len(p.tokens) == 0 {
		return token{op: "end"}
	}
	return p.tokens[0]
}

// list reads commands up to the end or one of the keywords, which it leaves.
func (p *parser) list(until ...string) ([]node, error) {
	var out []node
	join := ""
	for {
		for p.peek().op == ";" {
			p.tokens = p.tokens[1:]
		}
		t := p.peek()
		if t.op == "end" || t.op == "" && contains(until, t.word.plain()) {
			return out, nil
		}
		n, err := p.command()
		if err != nil {
			return nil, err
		}
		n.join = join
		join = ""
		switch t := p.peek(); t.op {
		case "&&", "||":
			join = t.op
			p.tokens = p.tokens[1:]
		case "&":
			n.background = true
			p.tokens = p.tokens[1:]
		case ";", "end":
		default:
			return nil, fmt.Errorf("syntax error at %q", t.text())
		}
		out = append(out, n)
	}
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

func (p *parser) keyword(k string) error {
	for p.peek().op == ";" {
		p.tokens = p.tokens[1:]
	}
	if t := p.peek(); t.op != "" || t.word.plain() != k {
		return fmt.Errorf("syntax error: %q expected before %q", k, t.text())
	}
	p.tokens = p.tokens[1:]
	return nil
}

func (p *parser) command() (node, error) {
	t := p.peek()
	if t.op != "" {
		return node{}, fmt.Errorf("syntax error at %q", t.text())
	}
	var n node
	var err error
	switch k := t.word.plain(); k {
	case "if":
		n.kind = k
		p.tokens = p.tokens[1:]
		if n.cond, err = p.list("then"); err == nil {
			err = p.keyword("then")
		}
		if err == nil {
			n.body, err = p.list("else", "fi")
		}
		if err == nil && p.peek().word.plain() == "else" {
			p.tokens = p.tokens[1:]
			n.other, err = p.list("fi")
		}
		if err == nil {
			err = p.keyword("fi")
		}
		return n, err
	case "while", "until":
		n.kind = k
		p.tokens = p.tokens[1:]
		if n.cond, err = p.list("do"); err == nil {
			err = p.body(&n)
		}
		return n, err
	case "for":
		n.kind = k
		p.tokens = p.tokens[1:]
		n.name = p.peek().word.plain()
		if !isName(n.name) {
			return n, fmt.Errorf("syntax error: a name expected before %q", p.peek().text())
		}
		p.tokens = p.tokens[1:]
		if err := p.keyword("in"); err != nil {
			return n, err
		}
		for p.peek().op == "" {
			n.words = append(n.words, p.peek().word)
			p.tokens = p.tokens[1:]
		}
		return n, p.body(&n)
	case "then", "else", "fi", "do", "done":
		return n, fmt.Errorf("syntax error at %q", k)
	}
	for {
		switch t := p.peek(); t.op {
		case "":
			n.words = append(n.words, t.word)
			p.tokens = p.tokens[1:]
		case ">", ">>":
			p.tokens = p.tokens[1:]
			to := p.peek()
			if to.op != "" {
				return n, fmt.Errorf("syntax error: a file expected before %q", to.text())
			}
			n.redirects = append(n.redirects, redirect{fd: t.fd, add: t.op == ">>", to: to.word})
			p.tokens = p.tokens[1:]
		default:
			return n, nil
		}
	}
}

func (p *parser) body(n *node) (err error) {
	if err = p.keyword("do"); err == nil {
		if n.body, err = p.list("done"); err == nil {
			err = p.keyword("done")
		}
	}
	return err
}
