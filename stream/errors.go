package stream

import (
	"errors"

	"github.com/streamkeel/streamkeel/internal/redisx"
)

var (
	// ErrInvalid says that an event, a topic or a value breaks a rule that is known
	// before anything is sent; nothing was written.
	ErrInvalid = errors.New("invalid")
	// ErrUndecodable says that a payload is none of its content type, or exceeds the
	// limits under which it may be decoded. Decoding it again gives the same.
	ErrUndecodable = errors.New("undecodable")
	// ErrMalformed says that an entry is no event on the wire: a field is missing,
	// repeated or not what docs/wire.md says.
	ErrMalformed = errors.New("malformed entry")
	// ErrPartitionMismatch says that a topic was declared before with another number
	// of partitions or another stream key. The first declaration stands; a topic with
	// another number is a new topic.
	ErrPartitionMismatch = errors.New("topic was declared differently")
	// ErrLayout says that this Redis holds Streamkeel data of a layout that this
	// version does not know.
	ErrLayout = errors.New("unknown layout")
	// ErrUnknown says that a publish may or may not have been carried out: its reply
	// was lost. Publishing the same event again may write it twice, with the same id, unless
	// the topic has Dedup.
	ErrUnknown = errors.New("outcome unknown")
	// ErrNotDurable says that an event was written, but not confirmed by as many replicas,
	// or not on as many disks, as the publisher asks for within its DurableTimeout. It may
	// be lost if a server fails now. Publishing it again writes it twice.
	ErrNotDurable = errors.New("written, but not confirmed as durable")
	// ErrBackpressure says that the partition holds as many entries as the publisher allows;
	// the event was not written.
	ErrBackpressure = errors.New("partition is full")
	// ErrUnsupportedServer says that the server is older than Redis 7.0.5 or Valkey
	// 7.2, or the client is a redis.Ring.
	ErrUnsupportedServer = redisx.ErrUnsupported
	// ErrEviction says that the server may evict streams when its memory is full.
	ErrEviction = redisx.ErrEviction
)
