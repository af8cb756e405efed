package command

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Visible returns a text that acts on no terminal: control characters (also of the C1 range),
// marks that turn the direction of writing, and bytes that are no UTF-8 become escapes.
func Visible(s string) string {
	clean := true
	for i, r := range s {
		if !strconv.IsPrint(r) || (r == utf8.RuneError && !strings.HasPrefix(s[i:], "\uFFFD")) {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		i += size
	}
	return b.String()
}
