package redisx

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"
)

// ServerError is an error reply that was read from raw bytes. It satisfies
// redis.Error, so that it classifies as one that go-redis parsed itself.
type ServerError string

func (e ServerError) Error() string { return string(e) }

// RedisError marks the error as a reply of the server.
func (ServerError) RedisError() {}

// IsNil reports whether err is the nil reply: nothing there, or a blocking read that timed out.
func IsNil(err error) bool { return errors.Is(err, redis.Nil) }

// IsServer reports whether err is a reply of the server: the command reached it, and was refused.
func IsServer(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && !IsNil(err)
}

// hasCode reports whether err is an error reply that starts with one of codes.
func hasCode(err error, codes ...string) bool {
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	text := reply.Error()
	for _, code := range codes {
		if strings.HasPrefix(text, code) && (len(text) == len(code) || text[len(code)] == ' ') {
			return true
		}
		// An error inside a script keeps its code, behind this prefix, on Redis 7.0.
		if strings.HasPrefix(text, "ERR "+code+" ") {
			return true
		}
	}
	return false
}

// IsBusyGroup reports whether a consumer group exists already.
func IsBusyGroup(err error) bool { return hasCode(err, "BUSYGROUP") }

// IsNoGroup reports whether the stream or the consumer group of a read is gone.
// A reader that was blocked when the stream went away gets UNBLOCKED on Redis 7.0.
func IsNoGroup(err error) bool { return hasCode(err, "NOGROUP", "UNBLOCKED") }

// IsNoScript reports whether the server does not know the script's digest.
func IsNoScript(err error) bool { return hasCode(err, "NOSCRIPT") }

// IsWrongType reports whether a key holds another type than the command wants.
func IsWrongType(err error) bool { return hasCode(err, "WRONGTYPE") }

// IsOOM reports whether the server refused a write for want of memory.
func IsOOM(err error) bool { return hasCode(err, "OOM") }

// IsReadOnly reports whether a write reached a replica.
func IsReadOnly(err error) bool { return hasCode(err, "READONLY") }

// IsNoPerm reports whether the ACL user lacks a permission.
func IsNoPerm(err error) bool { return hasCode(err, "NOPERM") }

// IsAuth reports whether the server wants a password, or another one.
func IsAuth(err error) bool { return hasCode(err, "NOAUTH", "WRONGPASS") }

// IsUnknownCommand reports whether the server lacks the command or its option.
func IsUnknownCommand(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply) && strings.HasPrefix(reply.Error(), "ERR unknown")
}

// IsUnavailable reports whether err says that the server is away, or cannot take
// the command now, so that the same command may succeed later: connection and time
// errors, and the replies LOADING, MASTERDOWN, CLUSTERDOWN, TRYAGAIN, READONLY, OOM,
// MISCONF, NOREPLICAS, and too many clients. A cancelled context is not one.
func IsUnavailable(err error) bool {
	if err == nil || IsNil(err) {
		return false
	}
	if hasCode(err, "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "READONLY", "OOM", "MISCONF", "NOREPLICAS", "BUSY") {
		return true
	}
	var reply redis.Error
	if errors.As(err, &reply) {
		return strings.HasPrefix(reply.Error(), "ERR max number of clients")
	}
	return isNetwork(err)
}

// IsAmbiguous reports whether the server may have carried out a write although
// the caller got err: anything but a reply, and a connection that never came about.
func IsAmbiguous(err error) bool {
	if err == nil || IsServer(err) || IsNil(err) {
		return false
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return false
	}
	return !errors.Is(err, redis.ErrPoolTimeout) && !errors.Is(err, redis.ErrPoolExhausted) && !errors.Is(err, redis.ErrClosed)
}

// IsTimeout reports whether a reply did not come in time.
func IsTimeout(err error) bool {
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout()
}

func isNetwork(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false
	}
	var netErr net.Error
	return errors.As(err, &netErr) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, redis.ErrPoolExhausted) ||
		errors.Is(err, context.DeadlineExceeded)
}
