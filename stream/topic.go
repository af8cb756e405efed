package stream

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Topic is a named log of partitions. It is plain data, and comparable: declare it once,
// share it between producers and consumers. The number of partitions is fixed by the first
// declaration; another number later is ErrPartitionMismatch.
type Topic struct {
	// Name of the topic: [A-Za-z0-9][A-Za-z0-9._-]{0,127}.
	Name string
	// Partitions is how many streams the topic has. Default 1, at most 4096. More
	// partitions let more consumers work in order, and cost a key set each.
	Partitions int
	// Namespace is the first part of every key. Default "sk".
	Namespace string
	// Stream names an existing stream to use as the topic's one partition. It may hold
	// no brace, or one non-empty {tag}. Default: <namespace>:<name>.<partition>.
	Stream string
	// Source is the source of events that name none. Default: Name.
	Source string
	// Dedup makes publishing the same event (source and id) again within this window change
	// nothing, so that a publish whose outcome is unknown may be repeated. Every publisher of
	// the topic must have it. It costs Redis some 100 bytes an event for up to twice the window,
	// and publishing half of its rate. Default: off; at most 24 hours. The relay needs
	// none: it never writes an event twice.
	Dedup time.Duration
	// Adopt makes events of entries that some other program wrote with other fields, when they
	// are read; publishing does not need it. Default: none, which makes such entries letters with
	// reason "undecodable". It is no part of the topic's JSON.
	Adopt *Adoption `json:"-"`
}

const (
	// DefaultNamespace is the namespace of topics that name none.
	DefaultNamespace = "sk"
	maxPartitions    = 4096
	maxDedup         = 24 * time.Hour
)

var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// ValidName reports whether name may name a topic, a namespace or a group.
func ValidName(name string) bool { return namePattern.MatchString(name) }

// Validate reports every rule that the topic breaks, joined, as ErrInvalid.
func (t Topic) Validate() error {
	var faults []error
	if !ValidName(t.Name) {
		faults = append(faults, fmt.Errorf("name %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", t.Name))
	}
	if !ValidName(t.NamespaceName()) {
		faults = append(faults, fmt.Errorf("namespace %.140q is not [A-Za-z0-9][A-Za-z0-9._-]{0,127}", t.Namespace))
	}
	if t.Partitions < 0 || t.Partitions > maxPartitions {
		faults = append(faults, fmt.Errorf("partitions %d is not 1 to %d", t.Partitions, maxPartitions))
	}
	if t.Stream != "" {
		if t.Count() != 1 {
			faults = append(faults, fmt.Errorf("stream %.140q is one partition, and the topic has %d", t.Stream, t.Partitions))
		}
		if strings.ContainsAny(t.Stream, "{}") && !hasTag(t.Stream) || len(t.Stream) > 512 {
			faults = append(faults, fmt.Errorf("stream %.140q may hold no brace, or one non-empty {tag}, in 512 bytes", t.Stream))
		}
	}
	if t.Dedup < 0 || t.Dedup > maxDedup || t.Dedup > 0 && t.Dedup < time.Millisecond {
		faults = append(faults, fmt.Errorf("dedup %s is not 1ms to %s", t.Dedup, maxDedup))
	}
	if t.Adopt != nil && t.Adopt.adopt == nil {
		faults = append(faults, errors.New("adopt has no function"))
	}
	if key := t.StreamKey(t.Count() - 1); t.Adopt != nil && len(key) > maxAdoptedKey {
		faults = append(faults, fmt.Errorf("stream key %.140q has %d bytes, %d are allowed with adopt, since event ids are made of it", key, len(key), maxAdoptedKey))
	}
	if len(t.Source) > maxSource {
		faults = append(faults, fmt.Errorf("source has %d bytes, %d are allowed", len(t.Source), maxSource))
	}
	if len(faults) == 0 {
		return nil
	}
	return fmt.Errorf("stream: %w topic: %w", ErrInvalid, errors.Join(faults...))
}

// Count returns the number of partitions.
func (t Topic) Count() int { return max(t.Partitions, 1) }

// NamespaceName returns the namespace, DefaultNamespace where none is set.
func (t Topic) NamespaceName() string {
	if t.Namespace == "" {
		return DefaultNamespace
	}
	return t.Namespace
}

// PartitionOf returns the partition of a key: the first four bytes of its SHA-256,
// big endian, modulo the number of partitions. docs/wire.md has test vectors.
func (t Topic) PartitionOf(key string) int {
	sum := sha256.Sum256([]byte(key))
	return int(binary.BigEndian.Uint32(sum[:4]) % uint32(t.Count())) //nolint:gosec // Count is at most 4096
}

// Partition returns the partition that an event goes to: by its key, or spread by its
// id where it has none.
func (t Topic) Partition(e *Event) int {
	if t.Count() == 1 {
		return 0
	}
	if e.Key == "" {
		return t.PartitionOf(e.ID)
	}
	return t.PartitionOf(e.Key)
}

// StreamKey returns the key of partition p.
func (t Topic) StreamKey(p int) string {
	if t.Stream != "" {
		return t.Stream
	}
	return t.NamespaceName() + ":" + t.Name + "." + strconv.Itoa(p)
}

// StreamKeys returns the keys of all partitions, in order.
func (t Topic) StreamKeys() []string {
	keys := make([]string, t.Count())
	for p := range keys {
		keys[p] = t.StreamKey(p)
	}
	return keys
}

func (t Topic) source() string {
	if t.Source == "" {
		return t.Name
	}
	return t.Source
}
