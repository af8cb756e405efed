package command

import (
	"encoding/json"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Secrets are the passwords that this process was given. Nothing prints them on purpose; this
// is the second line, which takes them out of whatever is written: an error of a library may
// quote what it was given. It is safe for use by many goroutines.
type Secrets struct {
	mu    sync.RWMutex
	forms []string // each as it may stand in a text, the longest first
}

// What is shorter is a part of too many words to be taken out of every text.
const shortestSecret = 6

const masked = "***"

// urlPassword finds the password of every URL, also of one that no parser takes: all from the
// first colon of the user's part to the last @.
var urlPassword = regexp.MustCompile(`://[^:/@\s]*:(\S+)@`)

// NewSecrets returns the passwords in the URLs of the process's arguments and environment.
func NewSecrets(p Process) *Secrets {
	s := &Secrets{}
	for _, text := range slices.Concat(p.Args, p.Env) {
		for _, match := range urlPassword.FindAllStringSubmatch(text, -1) {
			s.Add(match[1])
			if plain, err := url.PathUnescape(match[1]); err == nil {
				s.Add(plain)
			}
		}
	}
	return s
}

// Add adds a secret.
func (s *Secrets) Add(secret string) {
	if len(secret) < shortestSecret {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	quoted := strconv.Quote(secret)
	forms := []string{secret, url.QueryEscape(secret), url.PathEscape(secret), url.UserPassword("", secret).String()[1:], quoted[1 : len(quoted)-1]}
	if encoded, err := json.Marshal(secret); err == nil {
		forms = append(forms, string(encoded[1:len(encoded)-1]))
	}
	s.forms = slices.Compact(sortedByLength(append(s.forms, forms...)))
}

func sortedByLength(all []string) []string {
	slices.SortFunc(all, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	return all
}

// Redact returns the text with stars in place of secrets.
func (s *Secrets) Redact(text string) string {
	if s == nil {
		return text
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, form := range s.forms {
		text = strings.ReplaceAll(text, form, masked)
	}
	return text
}

// Writer returns a writer that takes secrets out of each write: of whole lines, as loggers
// write them.
func (s *Secrets) Writer(w io.Writer) io.Writer { return secretsWriter{s, w} }

type secretsWriter struct {
	secrets *Secrets
	w       io.Writer
}

func (w secretsWriter) Write(b []byte) (int, error) {
	if _, err := io.WriteString(w.w, w.secrets.Redact(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}
