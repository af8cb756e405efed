package dlq_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/dlq"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// deadLetters makes a group with two letters, as its consumer would.
func deadLetters(ctx context.Context, name string) (*redis.Client, stream.Topic) {
	opts, err := redis.ParseURL(testenv.RedisURL(testenv.Example()))
	if err != nil {
		panic(err)
	}
	rdb := redis.NewClient(opts)
	topic := stream.Topic{Name: "orders", Namespace: "example-" + name}
	dead := stream.KeyDead.Key(topic.StreamKey(0), "billing")
	rdb.Del(ctx, dead, stream.KeyRetry.Key(topic.StreamKey(0), "billing"), stream.KeyImported.Key(topic.StreamKey(0), "billing"))
	for i, reason := range []dlq.Reason{dlq.ReasonAttempts, dlq.ReasonUndecodable} {
		e := stream.NewEvent("order.placed", fmt.Sprint("order-", i+1), stream.ContentTypeJSON, []byte(`{"total":"12"}`))
		args := e.AppendFields([]any{"xadd", dead, "*"})
		args = append(args, "sk-group", "billing", "sk-reason", string(reason), "sk-error", "total is a text",
			"sk-attempts", 10, "sk-died", time.Now().UnixMilli(), "sk-origin", topic.StreamKey(0)+"/1-1")
		if err := rdb.Do(ctx, args...).Err(); err != nil {
			panic(err)
		}
	}
	return rdb, topic
}

func Example() {
	ctx := context.Background()
	rdb, topic := deadLetters(ctx, "all")
	defer rdb.Close()

	queue, err := dlq.Open(rdb, topic, "billing")
	if err != nil {
		panic(err)
	}
	for letter, err := range queue.All(ctx, dlq.Filter{Error: "is a text"}) {
		if err != nil {
			panic(err)
		}
		fmt.Println(letter.Entry.Event.Key, letter.Reason, letter.Attempts, letter.Error)
	}
	// Output:
	// order-1 attempts 10 total is a text
	// order-2 undecodable 10 total is a text
}

func ExampleQueue_RedriveAll() {
	ctx := context.Background()
	rdb, topic := deadLetters(ctx, "redrive")
	defer rdb.Close()

	queue, err := dlq.Open(rdb, topic, "billing")
	if err != nil {
		panic(err)
	}
	// Back to the group, 500 in a second at the most.
	sum, err := queue.RedriveAll(ctx, dlq.Redrive{Filter: dlq.Filter{Reasons: []dlq.Reason{dlq.ReasonAttempts}}, PerSecond: 500})
	left, _ := queue.Count(ctx)
	fmt.Println(sum.Done, err, left)
	// Output: 1 <nil> 1
}

func ExampleQueue_RedriveEdited() {
	ctx := context.Background()
	rdb, topic := deadLetters(ctx, "edit")
	defer rdb.Close()

	queue, err := dlq.Open(rdb, topic, "billing")
	if err != nil {
		panic(err)
	}
	for letter, err := range queue.All(ctx, dlq.Filter{Reasons: []dlq.Reason{dlq.ReasonUndecodable}}) {
		if err != nil {
			panic(err)
		}
		ref := dlq.Ref{Partition: letter.Partition, ID: letter.ID}
		fmt.Println(queue.RedriveEdited(ctx, ref, dlq.Edit{Data: []byte(`{"total":`), By: "ada"}) != nil)
		fmt.Println(queue.RedriveEdited(ctx, ref, dlq.Edit{Data: []byte(`{"total":12}`), By: "ada"}))
	}
	// Output:
	// true
	// <nil>
}

func ExampleQueue_Export() {
	ctx := context.Background()
	rdb, topic := deadLetters(ctx, "export")
	defer rdb.Close()

	queue, err := dlq.Open(rdb, topic, "billing")
	if err != nil {
		panic(err)
	}
	file, err := os.CreateTemp("", "letters")
	if err != nil {
		panic(err)
	}
	defer os.Remove(file.Name())
	n, err := queue.Export(ctx, file, dlq.Filter{})
	fmt.Println(n, err)

	if _, err := file.Seek(0, 0); err != nil {
		panic(err)
	}
	sum, err := queue.Import(ctx, file, dlq.Import{})
	fmt.Println(sum.Added, sum.Repeated, err)
	// Output:
	// 2 <nil>
	// 0 2 <nil>
}
