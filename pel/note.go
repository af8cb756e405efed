package pel

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/redisx"
	"github.com/streamkeel/streamkeel/stream"
)

var (
	//go:embed lua/decide.lua
	decideText   string
	decideScript = redisx.NewScript(decideText)
)

// Note is what Redis remembers of an entry of an ordered group that was handled without
// success and is still pending.
type Note struct {
	State    NoteState
	Reason   dlq.Reason // why it is parked, or becomes a letter
	Attempts int
	First    time.Time // when the group first got it
	Error    string
}

// NoteState says what an entry waits for.
type NoteState string

// The states.
const (
	// NoteWaiting: for its next attempt.
	NoteWaiting NoteState = "waiting"
	// NoteParked: for a person. Its key's later events wait with it.
	NoteParked NoteState = "parked"
	// NoteRetry and NoteDead are what a person decided; the owner acts on it within seconds.
	NoteRetry NoteState = "retry"
	NoteDead  NoteState = "dead"
)

func (n Note) head() string {
	if n.Reason == "" {
		return string(n.State)
	}
	return string(n.State) + "/" + string(n.Reason)
}

func (n Note) tail() string {
	return strconv.Itoa(n.Attempts) + " " + strconv.FormatInt(n.First.UnixMilli(), 10) + " " + strings.ToValidUTF8(n.Error[:min(len(n.Error), maxError)], "?")
}

// parseNote reads "state/reason due attempts first error"; nothing comes of what is none.
func parseNote(s string) Note {
	parts := strings.SplitN(s, " ", 5)
	if len(parts) < 5 {
		return Note{}
	}
	state, reason, _ := strings.Cut(parts[0], "/")
	n := Note{State: NoteState(state), Reason: dlq.Reason(reason), Attempts: count(parts[2]), Error: parts[4]}
	if first := count(parts[3]); first > 0 {
		n.First = time.UnixMilli(int64(first)).UTC()
	}
	return n
}

// Place names a pending entry of a group at a stream.
type Place struct {
	ID    stream.ID
	Retry bool // it is one of the group's retry stream
}

func (p Place) field() string {
	if p.Retry {
		return "retry/" + p.ID.String()
	}
	return p.ID.String()
}

// Notes returns the notes of entries, in their order; the zero Note where there is none.
func Notes(ctx context.Context, rdb redis.UniversalClient, k Keys, places ...Place) ([]Note, error) {
	if len(places) == 0 {
		return nil, nil
	}
	fields := make([]string, len(places))
	for i, p := range places {
		fields[i] = p.field()
	}
	values, err := rdb.HMGet(ctx, k.Attempts, fields...).Result()
	if err != nil {
		return nil, fmt.Errorf("pel: notes of group %s at %s: %w", k.Group, k.Stream, err)
	}
	notes := make([]Note, len(values))
	for i, v := range values {
		text, _ := v.(string)
		notes[i] = parseNote(text)
	}
	return notes, nil
}

// Noted returns every note of an ordered group at a stream: what waits for its next attempt,
// and what is parked. There are at most as many as events are held.
func Noted(ctx context.Context, rdb redis.UniversalClient, k Keys) (map[Place]Note, error) {
	notes := map[Place]Note{}
	var cursor uint64
	for {
		flat, next, err := rdb.HScan(ctx, k.Attempts, cursor, "", 500).Result()
		if err != nil {
			return nil, fmt.Errorf("pel: notes of group %s at %s: %w", k.Group, k.Stream, err)
		}
		for i := 0; i+1 < len(flat); i += 2 {
			idText, retry := strings.CutPrefix(flat[i], "retry/")
			if id, err := stream.ParseID(idText); err == nil {
				notes[Place{id, retry}] = parseNote(flat[i+1])
			}
		}
		if cursor = next; cursor == 0 {
			return notes, nil
		}
	}
}

// ErrNotParked says that an entry does not wait for a person.
var ErrNotParked = errors.New("entry is not parked")

// Decide says how a parked event goes on: NoteRetry hands it over anew, its attempts
// counting from zero; NoteDead makes it a letter, and its key's later events pass. The
// partition's owner acts on it within seconds, or the next owner when there is one.
func Decide(ctx context.Context, rdb redis.UniversalClient, k Keys, p Place, decision NoteState) error {
	if decision != NoteRetry && decision != NoteDead {
		return fmt.Errorf("pel: decision %.40q is not %s or %s", decision, NoteRetry, NoteDead)
	}
	done, err := decideScript.Run(ctx, rdb, []string{k.Attempts}, p.field(), string(decision)).Int()
	if err == nil && done != 1 {
		err = ErrNotParked
	}
	if err != nil {
		return fmt.Errorf("pel: decide about %s of group %s at %s: %w", p.field(), k.Group, k.Stream, err)
	}
	return nil
}
