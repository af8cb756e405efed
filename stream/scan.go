package stream

import (
	"encoding/binary"
	"fmt"
)

// The limits under which a payload is decoded. msgpack v5.4.1 allocates what a length
// field announces and recurses as deep as the input says: five bytes take 34 GB, three
// megabytes of nested arrays the whole stack. So every payload is looked through first,
// without recursion and without allocating by what it says.
const (
	maxDepth    = 64
	maxElements = 100_000
)

func undecodable(format, why string, args ...any) error {
	return fmt.Errorf("stream: %w %s: %s", ErrUndecodable, format, fmt.Sprintf(why, args...))
}

// scanMsgpack accepts data that is exactly one msgpack value within the limits.
func scanMsgpack(data []byte) error {
	const format = "msgpack"
	if len(data) > MaxData {
		return undecodable(format, "%d bytes, %d are allowed", len(data), MaxData)
	}
	var open [maxDepth + 1]int // values that are still to come on each level
	depth, elements := 0, 0
	open[0] = 1
	for i := 0; ; {
		for depth > 0 && open[depth] == 0 {
			depth--
		}
		if open[depth] == 0 {
			if i != len(data) {
				return undecodable(format, "%d bytes follow the value", len(data)-i)
			}
			return nil
		}
		open[depth]--
		if i >= len(data) {
			return undecodable(format, "ends in the middle of a value")
		}
		head, children, err := msgpackHead(data[i:])
		if err != nil {
			return err
		}
		if head > len(data)-i {
			return undecodable(format, "value of %d bytes at byte %d, %d are left", head, i, len(data)-i)
		}
		i += head
		if children == 0 {
			continue
		}
		if children > len(data)-i { // the smallest value is a byte
			return undecodable(format, "%d elements announced at byte %d, %d bytes are left", children, i, len(data)-i)
		}
		if elements += children; elements > maxElements {
			return undecodable(format, "more than %d elements", maxElements)
		}
		if depth++; depth > maxDepth {
			return undecodable(format, "nested deeper than %d", maxDepth)
		}
		open[depth] = children
	}
}

// msgpackHead returns how many bytes the value at the start of b takes by itself, and
// how many values follow as its children.
func msgpackHead(b []byte) (size, children int, err error) {
	code := b[0]
	switch {
	case code <= 0x7f, code >= 0xe0, code == 0xc0, code == 0xc2, code == 0xc3:
		return 1, 0, nil
	case code <= 0x8f:
		return 1, 2 * int(code&0x0f), nil
	case code <= 0x9f:
		return 1, int(code & 0x0f), nil
	case code <= 0xbf:
		return 1 + int(code&0x1f), 0, nil
	}
	// number reads the length that follows the code in 1, 2 or 4 bytes.
	number := func(width int) (int, error) {
		if len(b) < 1+width {
			return 0, undecodable("msgpack", "ends in the middle of a length")
		}
		switch width {
		case 1:
			return int(b[1]), nil
		case 2:
			return int(binary.BigEndian.Uint16(b[1:])), nil
		}
		return int(binary.BigEndian.Uint32(b[1:])), nil
	}
	switch code {
	case 0xca, 0xce, 0xd2: // float32, uint32, int32
		return 5, 0, nil
	case 0xcb, 0xcf, 0xd3: // float64, uint64, int64
		return 9, 0, nil
	case 0xcc, 0xd0: // uint8, int8
		return 2, 0, nil
	case 0xcd, 0xd1: // uint16, int16
		return 3, 0, nil
	case 0xd4, 0xd5, 0xd6, 0xd7, 0xd8: // fixext 1, 2, 4, 8, 16
		return 2 + 1<<(code-0xd4), 0, nil
	case 0xc4, 0xc5, 0xc6: // bin 8, 16, 32
		width := 1 << (code - 0xc4)
		n, err := number(width)
		return 1 + width + n, 0, err
	case 0xd9, 0xda, 0xdb: // str 8, 16, 32
		width := 1 << (code - 0xd9)
		n, err := number(width)
		return 1 + width + n, 0, err
	case 0xc7, 0xc8, 0xc9: // ext 8, 16, 32
		width := 1 << (code - 0xc7)
		n, err := number(width)
		return 2 + width + n, 0, err
	case 0xdc, 0xdd: // array 16, 32
		width := 2 << (code - 0xdc)
		n, err := number(width)
		return 1 + width, n, err
	case 0xde, 0xdf: // map 16, 32
		width := 2 << (code - 0xde)
		n, err := number(width)
		return 1 + width, 2 * n, err
	}
	return 0, 0, undecodable("msgpack", "code %#x is not used", code)
}

// scanJSON bounds what encoding/json is given: it checks the syntax itself, up to
// 10,000 levels, but makes a struct of every null of a list.
func scanJSON(data []byte) error {
	const format = "JSON"
	if len(data) > MaxData {
		return undecodable(format, "%d bytes, %d are allowed", len(data), MaxData)
	}
	depth, elements, quoted := 0, 0, false
	for i := 0; i < len(data); i++ {
		c := data[i]
		switch {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[', c == '{':
			if depth++; depth > maxDepth {
				return undecodable(format, "nested deeper than %d", maxDepth)
			}
			elements++
		case c == ']', c == '}':
			depth--
		case c == ',':
			elements++
		}
	}
	if elements > maxElements {
		return undecodable(format, "more than %d elements", maxElements)
	}
	return nil
}
