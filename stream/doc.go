// Package stream is the log: events, their types and codecs, topics of partitions,
// publishing, and reading without a consumer group.
//
// A [Topic] is a named log of N partitions, each one Redis stream. An [Event] goes to
// the partition that its key hashes to, so that events of one key stay in order. A
// [Definition] ties a Go type to an event type, and is shared by producer and consumer:
//
//	var OrderPlaced = stream.Define[Order]("order.placed")
//	var Orders = stream.Topic{Name: "orders", Partitions: 8}
//
//	publisher, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
//	_, err = publisher.Publish(ctx, Orders, OrderPlaced.Event(order.ID, order))
//
// An event whose loss would matter is published with package outbox, in the database
// transaction that it tells of; a [Publisher] writes to Redis directly.
package stream
