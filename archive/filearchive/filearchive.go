// Package filearchive keeps entries that retention trims in compressed JSON Lines files, a
// folder for each stream, to be copied and read with any tool.
package filearchive

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/streamkeel/streamkeel/stream"
)

// Archive is a retention.Archive and a stream.Archive. Processes may share a folder: what
// one has stored, another storing it again changes nothing that a reader sees.
type Archive struct{ dir string }

// New returns the archive in a folder, which is made where it is missing.
func New(dir string) (*Archive, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("filearchive: %w", err)
	}
	return &Archive{dir}, nil
}

// line is an entry in a file. Fields that are not text stand in Base64, all of them.
type line struct {
	ID     string   `json:"id"`
	Fields []string `json:"fields,omitempty"`
	Base64 [][]byte `json:"fields_base64,omitempty"`
}

const suffix = ".jsonl.gz"

// folder returns where a stream's files are; its name is the stream's, made safe.
func (a *Archive) folder(streamKey string) string {
	var b strings.Builder
	for _, c := range []byte(streamKey) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' && b.Len() > 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return filepath.Join(a.dir, b.String())
}

// Append stores entries in one file, named by their first and last ID. It returns nil when
// the file is on disk.
func (a *Archive) Append(_ context.Context, streamKey string, entries []stream.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	if err := a.append(a.folder(streamKey), entries); err != nil {
		return fmt.Errorf("filearchive: append to %s: %w", streamKey, err)
	}
	return nil
}

func (a *Archive) append(folder string, entries []stream.Entry) (err error) {
	if err := os.MkdirAll(folder, 0o750); err != nil {
		return err
	}
	f, err := os.CreateTemp(folder, "*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	zw := gzip.NewWriter(f)
	enc := json.NewEncoder(zw)
	for i := range entries {
		if err := enc.Encode(lineOf(&entries[i])); err != nil {
			return err
		}
	}
	if err := errors.Join(zw.Close(), f.Sync(), f.Close()); err != nil {
		return err
	}
	name := entries[0].ID.String() + "_" + entries[len(entries)-1].ID.String() + suffix
	if err := os.Rename(f.Name(), filepath.Join(folder, name)); err != nil {
		return err
	}
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close()) // the name is on disk too
}

func lineOf(en *stream.Entry) line {
	l := line{ID: en.ID.String()}
	text := true
	for name, value := range en.Fields() {
		l.Fields = append(l.Fields, name, value)
		text = text && utf8.ValidString(name) && utf8.ValidString(value)
	}
	if !text {
		for _, f := range l.Fields {
			l.Base64 = append(l.Base64, []byte(f))
		}
		l.Fields = nil
	}
	return l
}

func (l line) entry(streamKey string) (stream.Entry, error) {
	id, err := stream.ParseID(l.ID)
	if err != nil {
		return stream.Entry{}, err
	}
	for _, f := range l.Base64 {
		l.Fields = append(l.Fields, string(f))
	}
	return stream.NewEntry(streamKey, id, l.Fields)
}

// file is a file of a stream, and the IDs that it spans.
type file struct {
	path        string
	first, last stream.ID
}

// Read returns the entries of a stream behind an ID, at most limit.
func (a *Archive) Read(ctx context.Context, streamKey string, after stream.ID, limit int) ([]stream.Entry, error) {
	files, err := a.files(streamKey)
	if err != nil {
		return nil, fmt.Errorf("filearchive: read %s: %w", streamKey, err)
	}
	var entries []stream.Entry
	for _, f := range files {
		if f.last.Compare(after) <= 0 || len(entries) == limit {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		found, err := f.read(streamKey, after, limit-len(entries))
		if err != nil {
			return nil, fmt.Errorf("filearchive: read %s: %w", f.path, err)
		}
		if len(found) > 0 {
			entries = append(entries, found...)
			after = found[len(found)-1].ID
		}
	}
	return entries, nil
}

// files returns a stream's files in the order of their first entries.
func (a *Archive) files(streamKey string) ([]file, error) {
	names, err := os.ReadDir(a.folder(streamKey))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var files []file
	for _, name := range names {
		ids, ok := strings.CutSuffix(name.Name(), suffix)
		first, last, both := strings.Cut(ids, "_")
		if !ok || !both {
			continue // a file that was not finished, or somebody else's
		}
		f := file{path: filepath.Join(a.folder(streamKey), name.Name())}
		var errs [2]error
		f.first, errs[0] = stream.ParseID(first)
		f.last, errs[1] = stream.ParseID(last)
		if errors.Join(errs[:]...) == nil {
			files = append(files, f)
		}
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Or(a.first.Compare(b.first), a.last.Compare(b.last)) })
	return files, nil
}

// maxLine is far above the largest entry, in base64.
const maxLine = 16 << 20

func (f file) read(streamKey string, after stream.ID, limit int) (entries []stream.Entry, err error) {
	r, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	zr, err := gzip.NewReader(bufio.NewReader(r))
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(zr)
	lines.Buffer(nil, maxLine)
	for len(entries) < limit && lines.Scan() {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return nil, err
		}
		en, err := l.entry(streamKey)
		if err != nil {
			return nil, err
		}
		if en.ID.Compare(after) > 0 {
			entries = append(entries, en)
		}
	}
	if err := lines.Err(); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return entries, nil
}
