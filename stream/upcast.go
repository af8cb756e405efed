package stream

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
)

// Upcaster turns a payload of one version into the next: see [Upcast].
type Upcaster struct {
	from    int
	in, out reflect.Type
	decode  func(codec Codec, data []byte) (any, error)
	apply   func(any) (any, error)
}

// Upcast returns the upcaster that makes version from+1 of version from. A consumer of
// version n decodes an old event as what it was, and runs the chain up to n:
//
//	var OrderPlaced = stream.Define("order.placed", stream.DefinitionConfig[OrderV3]{
//		Version:   3,
//		Upcasters: []stream.Upcaster{stream.Upcast(1, toV2), stream.Upcast(2, toV3)},
//	})
func Upcast[From, To any](from int, fn func(From) (To, error)) Upcaster {
	u := Upcaster{
		from: from, in: reflect.TypeFor[From](), out: reflect.TypeFor[To](),
		decode: func(codec Codec, data []byte) (any, error) {
			var v From
			err := codec.Decode(data, &v)
			return v, err
		},
	}
	if fn != nil {
		u.apply = func(v any) (any, error) {
			old, _ := v.(From)
			return fn(old)
		}
	}
	return u
}

// checkUpcasters reports every hole, duplicate and misfit in the chain that must lead to
// the version and the type, joined. It returns the chain by version.
func checkUpcasters(upcasters []Upcaster, version int, to reflect.Type) (map[int]Upcaster, error) {
	chain := map[int]Upcaster{}
	var faults []error
	first := version
	for _, u := range upcasters {
		switch _, twice := chain[u.from]; {
		case u.apply == nil:
			faults = append(faults, fmt.Errorf("the upcaster from version %d is nil", u.from))
		case twice:
			faults = append(faults, fmt.Errorf("two upcasters from version %d", u.from))
		case u.from < 1:
			faults = append(faults, fmt.Errorf("an upcaster from version %d: versions start at 1", u.from))
		case u.from >= version:
			faults = append(faults, fmt.Errorf("the upcaster from version %d leads beyond version %d", u.from, version))
		default:
			chain[u.from] = u
			first = min(first, u.from)
		}
	}
	for v := first; v < version; v++ {
		u, ok := chain[v]
		if !ok {
			faults = append(faults, fmt.Errorf("no upcaster from version %d: the chain from %d to %d has a hole", v, first, version))
			continue
		}
		want := to
		if next, ok := chain[v+1]; ok {
			want = next.in
		}
		if u.out != want {
			faults = append(faults, fmt.Errorf("the upcaster from version %d makes a %s, version %d is a %s", v, u.out, v+1, want))
		}
	}
	return chain, errors.Join(faults...)
}

// schemaOf is how a version stands in an event: version 1 needs no mention.
func schemaOf(eventType string, version int) string {
	if version <= 1 {
		return ""
	}
	return eventType + "/v" + strconv.Itoa(version)
}

// versionOf reads the version of an event. A schema that some other program wrote says
// nothing of it.
func versionOf(e *Event) int {
	text, ok := strings.CutPrefix(e.Schema, e.Type+"/v")
	if !ok {
		return 1
	}
	version, err := strconv.Atoi(text)
	if err != nil || version < 1 {
		return 1
	}
	return version
}
