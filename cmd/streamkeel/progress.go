package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// progress shows how far a long work is. Short works show nothing.
type progress struct {
	w     io.Writer // nil: nobody looks
	what  string
	total int // 0 where it is not known
	every time.Duration
	last  time.Time
	width int // of the line that stands there
}

// newProgress returns a progress on standard error, where that is a terminal.
func (a *app) newProgress(what string, total int) *progress {
	p := &progress{what: what, total: total, every: 200 * time.Millisecond, last: time.Now()}
	if f, isFile := a.process.Stderr.(*os.File); isFile && term.IsTerminal(int(f.Fd())) {
		p.w = f
	}
	return p
}

const barWidth = 30

// show tells that so much is done.
func (p *progress) show(done int) {
	if p.w == nil || time.Since(p.last) < p.every {
		return
	}
	p.last = time.Now()
	line := fmt.Sprintf("%s %d", p.what, done)
	if p.total > 0 {
		full := min(done, p.total) * barWidth / p.total
		line = fmt.Sprintf("%s [%s%s] %d of %d", p.what, strings.Repeat("#", full), strings.Repeat("-", barWidth-full), done, p.total)
	}
	p.write(line)
}

// end takes the line away.
func (p *progress) end() {
	if p.width > 0 {
		p.write("")
		fmt.Fprint(p.w, "\r")
		p.width = 0
	}
}

func (p *progress) write(line string) {
	fmt.Fprint(p.w, "\r", line, strings.Repeat(" ", max(p.width-len(line), 0)))
	p.width = len(line)
}
