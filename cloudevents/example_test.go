package cloudevents_test

import (
	"fmt"
	"time"

	"github.com/streamkeel/streamkeel/cloudevents"
	"github.com/streamkeel/streamkeel/stream"
)

func ExampleMarshal() {
	e := stream.NewEvent("order.placed", "order-1", stream.ContentTypeJSON, []byte(`{"cents":1999}`))
	e.ID, e.Source, e.Time = "01", "shop", time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	document, err := cloudevents.Marshal(e)
	fmt.Println(string(document), err)
	back, err := cloudevents.Unmarshal(document)
	fmt.Println(back.Key, string(back.Data), err)
	// Output:
	// {"data":{"cents":1999},"datacontenttype":"application/json","id":"01","source":"shop","specversion":"1.0","subject":"order-1","time":"2026-01-02T03:04:05Z","type":"order.placed"} <nil>
	// order-1 {"cents":1999} <nil>
}
