// Package pel is about the pending entries list: what Redis remembers of deliveries
// that were not settled. It has every way out of the list, each one atomic step
// (Settler), and takes back what silent consumers left behind (Reclaimer, Janitor).
//
// Nothing leaves a group's pending list unless it was handled, or moved to the group's
// retries or dead letters in the same step.
package pel

import "github.com/streamkeel/streamkeel/stream"

// Keys names what one group has at one stream, all in the stream's slot.
type Keys struct {
	Stream   string // the topic's stream
	Group    string
	Retry    string // stream of what is to be handled again, read beside the topic's stream
	Due      string // sorted set of retries that wait for their time
	Dead     string // stream of letters
	Members  string // sorted set of consumers by when they were last heard of
	Hash     string // checkpoint, pause, lease
	Attempts string // hash of an ordered group's failing entries
}

// KeysOf returns the keys of a group at a stream.
func KeysOf(streamKey, group string) Keys {
	return Keys{
		Stream: streamKey, Group: group,
		Retry:    stream.KeyRetry.Key(streamKey, group),
		Due:      stream.KeyDue.Key(streamKey, group),
		Dead:     stream.KeyDead.Key(streamKey, group),
		Members:  stream.KeyMembers.Key(streamKey, group),
		Hash:     stream.KeyGroup.Key(streamKey, group),
		Attempts: stream.KeyAttempts.Key(streamKey, group),
	}
}
