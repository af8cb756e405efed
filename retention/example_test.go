package retention_test

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/retention"
	"github.com/streamkeel/streamkeel/stream"
)

func ExampleTrim() {
	ctx := context.Background()
	opts, err := redis.ParseURL(testenv.RedisURL(testenv.Example()))
	if err != nil {
		panic(err)
	}
	rdb := redis.NewClient(opts)
	defer rdb.Close()
	topic := stream.Topic{Name: "orders", Namespace: "example-trim"}
	key := topic.StreamKey(0)
	rdb.Del(ctx, key)
	for i := range 10 {
		rdb.XAdd(ctx, &redis.XAddArgs{Stream: key, ID: fmt.Sprintf("%d-0", i+1), Values: []string{"id", fmt.Sprint(i), "type", "order.placed"}})
	}
	rdb.XGroupCreate(ctx, key, "billing", "7-0") // it has handled seven of them

	// A dry run says what would go, and why not more.
	report, err := retention.Trim(ctx, rdb, key, []stream.Group{{Name: "billing", Kind: stream.GroupWork}}, retention.Policy{Keep: time.Minute, Exact: true}, true)
	fmt.Println("below", report.Cut, "of", report.Left, "because of", report.Held, report.Group, err)
	// Output: below 7-1 of 10 because of group billing <nil>
}
