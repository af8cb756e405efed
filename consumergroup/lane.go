package consumergroup

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/streamkeel/streamkeel/pel"
	"github.com/streamkeel/streamkeel/stream"
)

// partition is one partition of one topic, as this consumer reads it: two lanes, the
// topic's stream and the group's retry stream beside it.
type partition struct {
	topic   stream.Topic
	keys    pel.Keys
	settler *pel.Settler
	lanes   [2]*lane

	paused atomic.Bool // by pel.Pause

	lessor  *pel.Lessor             // of ordered groups
	holding atomic.Pointer[holding] // while this consumer leases it

	mu     sync.Mutex
	broken error     // why it cannot be read, or nil
	retest time.Time // when to look again
}

// lane is one stream that is read: it collects the acks of what was handled.
type lane struct {
	p     *partition
	key   string
	retry bool

	mu     sync.Mutex
	acks   []*delivery // handled, in the order in which handlers finished
	oldest time.Time   // when the first of them was
}

func newPartition(topic stream.Topic, keys pel.Keys, settler *pel.Settler) *partition {
	p := &partition{topic: topic, keys: keys, settler: settler}
	p.lanes = [2]*lane{{p: p, key: keys.Stream}, {p: p, key: keys.Retry, retry: true}}
	return p
}

// receive returns what an entry that was just handed over carries, this delivery included, and
// makes an event of it where the topic adopts it.
func (l *lane) receive(en *stream.Entry, now time.Time) pel.Carried {
	carried := pel.CarriedBy(en, l.retry)
	carried.Deliveries++
	if carried.First.IsZero() {
		carried.First = now
	}
	l.p.topic.AdoptEntry(en, carried.Origin)
	return carried
}

// readable reports whether the partition is to be read now.
func (p *partition) readable() bool { return !p.paused.Load() && p.usable() }

// usable reports whether the partition can be read, or whether it is time to look again.
func (p *partition) usable() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.broken == nil || time.Now().After(p.retest)
}

func (p *partition) setBroken(err error, retest time.Duration) {
	p.mu.Lock()
	p.broken, p.retest = err, time.Now().Add(retest)
	p.mu.Unlock()
}

// addAck adds a handled delivery, and reports whether it is the first.
func (l *lane) addAck(d *delivery) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.acks) == 0 {
		l.oldest = time.Now()
	}
	l.acks = append(l.acks, d)
	return len(l.acks) == 1
}

// takeAcks takes the acks whose first is at least as old as age.
func (l *lane) takeAcks(age time.Duration) []*delivery {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.acks) == 0 || (age > 0 && time.Since(l.oldest) < age) {
		return nil
	}
	acks := l.acks
	l.acks = nil
	return acks
}

// putBack returns acks that could not be sent.
func (l *lane) putBack(acks []*delivery) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acks = append(acks, l.acks...)
	l.oldest = time.Now()
}

func idsOf(ds []*delivery) []stream.ID {
	ids := make([]stream.ID, len(ds))
	for i, d := range ds {
		ids[i] = d.id
	}
	return ids
}
