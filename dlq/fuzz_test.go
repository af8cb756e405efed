package dlq

import (
	"testing"

	"github.com/streamkeel/streamkeel/stream"
)

// No line of an import and no packed field breaks anything: it is refused, or what it says can
// be written and read again.
func FuzzImportedLine(f *testing.F) {
	for _, line := range []string{
		`{"topic":"orders","group":"billing","letter":"0/1-1","fields":[{"name":"data","base64":"/w=="},{"name":"sk-reason","value":"manual"}]}`,
		`{"topic":"orders","group":"billing","letter":"0/18446744073709551615-18446744073709551615","fields":[{"name":"sk-reason"}]}`,
		`{"topic":"orders","group":"billing","letter":"-0/1","fields":[{"name":"sk-reason"}]}`,
		`{"fields":null}`, `[]`, `null`, "", "{", `{"letter":1}`, "\xdd\xff\xff\xff\xff", "\x92\xa1a\xa1b",
	} {
		f.Add([]byte(line))
	}
	q := &Queue{topic: stream.Topic{Name: "orders"}, group: "billing"}
	f.Fuzz(func(t *testing.T, line []byte) {
		if len(unpack(string(line)))%2 != 0 {
			t.Error("a name without its value")
		}
		ref, e, err := q.parse(line)
		if err != nil {
			return
		}
		if ref.Partition != 0 {
			t.Errorf("partition %d of 1", ref.Partition)
		}
		for _, field := range e.Fields {
			name, value := field.Text()
			if n, v := NewField(name, value).Text(); n != name || v != value {
				t.Errorf("%q: %q is %q: %q", name, value, n, v)
			}
		}
	})
}
