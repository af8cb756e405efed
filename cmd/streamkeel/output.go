package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/streamkeel/streamkeel/internal/command"
)

// print prints a document as JSON, or what table makes of it.
func (a *app) print(document any, table func(w io.Writer)) error {
	if a.json {
		return printJSON(a.process.Stdout, document)
	}
	var b bytes.Buffer
	table(&b)
	_, err := b.WriteTo(a.process.Stdout)
	return err
}

// printJSON prints a document. encoding/json escapes only the control characters below a
// space; what else would act on a terminal (DEL, C1 controls, marks that turn the direction of
// writing) is escaped here. Outside of strings JSON has none of it.
func printJSON(w io.Writer, document any) error {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(document); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	_, err := io.WriteString(w, escapeJSON(b.String()))
	return err
}

func escapeJSON(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for _, r := range s {
		switch {
		case r == '\n', r < utf8.RuneSelf && r != 0x7f, strconv.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// table prints rows under a head, in columns. No cell acts on a terminal.
func table(w io.Writer, head []string, rows [][]string) {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{head}, rows...) {
		cells := make([]string, len(row))
		for i, cell := range row {
			if cells[i] = command.Visible(cell); cell == "" {
				cells[i] = "-"
			}
		}
		fmt.Fprintln(tab, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
	}
	_ = tab.Flush() // into memory
}

// shorten cuts a text at n runes.
func shorten(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	runes := []rune(s)
	return string(runes[:n-1]) + "…"
}

// age writes a duration for people: 0 is nothing.
func age(d time.Duration) string {
	switch {
	case d <= 0:
		return ""
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Hour:
		return d.Round(time.Second).String()
	}
	d = d.Round(time.Minute)
	if days := d / (24 * time.Hour); days > 0 {
		return fmt.Sprintf("%dd%dh", days, (d%(24*time.Hour))/time.Hour)
	}
	return strings.TrimSuffix(d.String(), "0s")
}

// number writes a count.
func number[N int | int64](n N) string { return strconv.FormatInt(int64(n), 10) }

// instant is a time in a document: null where there is none.
func instant(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// confirm asks whether it is meant, unless that was said before.
func (a *app) confirm(yes bool, what, warn string) error {
	if yes {
		return nil
	}
	if !a.terminal {
		return command.Unfitf("to %s, say --yes: there is no terminal to ask at", what)
	}
	fmt.Fprintf(a.process.Stderr, "%s%s? [y/N] ", what, warn)
	answer, _ := bufio.NewReader(a.process.Stdin).ReadString('\n') // no answer is no
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}
