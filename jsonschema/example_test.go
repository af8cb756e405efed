package jsonschema_test

import (
	"errors"
	"fmt"

	"github.com/streamkeel/streamkeel/jsonschema"
	"github.com/streamkeel/streamkeel/stream"
)

func Example() {
	type order struct {
		Cents int `json:"cents"`
	}
	schema := jsonschema.Must(jsonschema.Compile([]byte(`{"type": "object", "properties": {"cents": {"type": "integer", "minimum": 1}}}`)))
	orderPlaced := stream.Define("order.placed", stream.DefinitionConfig[order]{Validator: schema})

	_, err := orderPlaced.Decode(orderPlaced.Event("order-1", order{1999}))
	fmt.Println(err)
	refused := orderPlaced.Event("order-2", order{0})
	err = refused.Validate() // as publishing does
	fmt.Println(errors.Is(err, stream.ErrInvalid))
	// Output:
	// <nil>
	// true
}
