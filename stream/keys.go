package stream

import "strings"

// What names the keys that stand beside a partition's stream, in its slot.
// docs/wire.md has them in one table, with type, writer and lifetime.
type What string

// The keys beside a stream.
const (
	KeyRetry    What = "retry"    // stream: a group's entries to be handled again
	KeyDue      What = "due"      // sorted set: a group's retries by due time
	KeyDead     What = "dead"     // stream: a group's letters
	KeyAttempts What = "attempts" // hash: an ordered group's attempts and due times
	KeyGroup    What = "group"    // hash: a group's checkpoint, pause, lease generation
	KeyMembers  What = "members"  // sorted set: a group's consumers by when they were last heard of
	KeyRelay    What = "relay"    // hash: the outbox position that the stream holds
	KeyDedup    What = "dedup"    // published ids, where a topic is published with Dedup
	KeyImported What = "imported" // set: digests of letters that were imported
)

// Key returns the key of what stands beside a stream, of one group where the group is
// not empty. It shares the stream's slot: the stream's key becomes the hash tag, unless
// it has one already.
func (w What) Key(streamKey, group string) string {
	var b strings.Builder
	b.Grow(len(streamKey) + len(w) + len(group) + 4)
	if hasTag(streamKey) {
		b.WriteString(streamKey)
	} else {
		b.WriteByte('{')
		b.WriteString(streamKey)
		b.WriteByte('}')
	}
	b.WriteByte(':')
	b.WriteString(string(w))
	if group != "" {
		b.WriteByte(':')
		b.WriteString(group)
	}
	return b.String()
}

// hasTag reports whether the key has exactly one pair of braces with something between.
func hasTag(key string) bool {
	open, end := strings.IndexByte(key, '{'), strings.IndexByte(key, '}')
	return open >= 0 && end > open+1 && strings.Count(key, "{") == 1 && strings.Count(key, "}") == 1
}
