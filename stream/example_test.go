package stream_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
)

// placed is what the events of the examples carry.
type placed struct {
	ID    string `json:"id"`
	Cents int    `json:"cents"`
}

// exampleTopic is a topic without entries on the tests' server.
func exampleTopic(ctx context.Context, name string) (*redis.Client, stream.Topic) {
	opts, err := redis.ParseURL(testenv.RedisURL(testenv.Example()))
	if err != nil {
		panic(err)
	}
	rdb := redis.NewClient(opts)
	topic := stream.Topic{Name: "orders", Namespace: "example-" + name, Partitions: 2}
	for _, key := range topic.StreamKeys() {
		rdb.Del(ctx, key)
	}
	return rdb, topic
}

func ExamplePublisher() {
	ctx := context.Background()
	rdb, orders := exampleTopic(ctx, "publisher")
	defer rdb.Close()
	orderPlaced := stream.Define[placed]("order.placed")

	publisher, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	if err != nil {
		panic(err)
	}
	events := []stream.Event{
		orderPlaced.Event("order-1", placed{"order-1", 1999}),
		orderPlaced.Event("order-2", placed{"order-2", 500}),
	}
	results, err := publisher.PublishBatch(ctx, orders, events)
	fmt.Println(len(results), err)
	if errors.Is(err, stream.ErrUnknown) {
		fmt.Println("the reply was lost: publishing again may write some of them twice, unless Topic.Dedup is set")
	}
	// Output: 2 <nil>
}

func ExampleReader() {
	ctx := context.Background()
	rdb, orders := exampleTopic(ctx, "reader")
	defer rdb.Close()
	orderPlaced := stream.Define[placed]("order.placed")
	publisher, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	if err != nil {
		panic(err)
	}
	for i := range 3 {
		if _, err := publisher.Publish(ctx, orders, orderPlaced.Event("order-1", placed{"order-1", i})); err != nil {
			panic(err)
		}
	}

	// From the start to where the streams end now; Follow would go on with what comes.
	reader, err := stream.NewReader(rdb, stream.ReaderConfig{Topic: orders})
	if err != nil {
		panic(err)
	}
	for entry, err := range reader.Entries(ctx) {
		if err != nil {
			panic(err) // ErrRewound, ErrTrimmedUnread: nothing is skipped silently
		}
		order, err := orderPlaced.Decode(entry.Event)
		fmt.Println(order.ID, order.Cents, err)
	}
	// Output:
	// order-1 0 <nil>
	// order-1 1 <nil>
	// order-1 2 <nil>
}

func ExampleBatcher() {
	ctx := context.Background()
	rdb, orders := exampleTopic(ctx, "batcher")
	defer rdb.Close()
	orderPlaced := stream.Define[placed]("order.placed")
	publisher, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	if err != nil {
		panic(err)
	}

	// What many goroutines publish at the same time goes out together.
	batcher, err := stream.NewBatcher(publisher, stream.BatcherConfig{})
	if err != nil {
		panic(err)
	}
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if _, err := batcher.Publish(ctx, orders, orderPlaced.Event(fmt.Sprint("order-", i), placed{})); err != nil {
				panic(err)
			}
		})
	}
	wg.Wait()
	length := int64(0)
	for _, key := range orders.StreamKeys() {
		length += rdb.XLen(ctx, key).Val()
	}
	fmt.Println(length)
	// Output: 50
}

func ExampleUpcast() {
	type nameV1 struct {
		Name string `json:"name"`
	}
	type nameV2 struct {
		First string `json:"first"`
		Last  string `json:"last"`
	}
	old := stream.Define[nameV1]("customer.renamed")
	current := stream.Define("customer.renamed", stream.DefinitionConfig[nameV2]{
		Version: 2,
		Upcasters: []stream.Upcaster{stream.Upcast(1, func(v nameV1) (nameV2, error) {
			first, last, _ := strings.Cut(v.Name, " ")
			return nameV2{first, last}, nil
		})},
	})
	v, err := current.Decode(old.Event("c-1", nameV1{"Ada Lovelace"}))
	fmt.Println(v.First, v.Last, err)
	// Output: Ada Lovelace <nil>
}
