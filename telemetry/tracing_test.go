package telemetry_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/internal/testenv"
	"github.com/streamkeel/streamkeel/stream"
	"github.com/streamkeel/streamkeel/telemetry"
)

const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func newTracing(t *testing.T, sameTrace bool) (*telemetry.Tracing, *tracetest.SpanRecorder) {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	t.Cleanup(func() { require.NoError(t, provider.Shutdown(context.Background())) })
	return telemetry.NewTracing(telemetry.TracingConfig{Provider: provider, SameTrace: sameTrace}), recorder
}

// published returns the event that would be published with a context.
func published(ctx context.Context) stream.Event {
	e := stream.NewEvent("t", "", "", nil)
	e.Stamp(ctx, stream.Topic{Name: "out"})
	return e
}

func handle(t *testing.T, tracing *telemetry.Tracing, e stream.Event, fn func(ctx context.Context) error) error {
	t.Helper()
	ctx := consumergroup.WithMetadata(stream.WithCause(t.Context(), e), consumergroup.Metadata{Topic: "orders", Group: "billing", Attempt: 2, Deliveries: 3})
	return tracing.Handle(consumergroup.HandlerFunc(func(ctx context.Context, _ stream.Event) error { return fn(ctx) })).Handle(ctx, e)
}

func TestHandlerSpanLinksToThePublisherAndIsCarriedOn(t *testing.T) {
	t.Parallel()
	tracing, recorder := newTracing(t, false)
	e := stream.Event{ID: "e1", Type: "order.placed", TraceParent: parent}
	var inside trace.SpanContext
	var out stream.Event
	require.NoError(t, handle(t, tracing, e, func(ctx context.Context) error {
		inside = trace.SpanContextFromContext(ctx)
		out = published(ctx)
		return nil
	}))
	span := recorder.Ended()[0]
	require.Equal(t, "process orders", span.Name())
	require.Equal(t, trace.SpanKindConsumer, span.SpanKind())
	require.Len(t, span.Links(), 1)
	require.Equal(t, "4bf92f3577b34da6a3ce929d0e0e4736", span.Links()[0].SpanContext.TraceID().String())
	require.False(t, span.Parent().IsValid(), "it is a trace of its own")
	require.NotEqual(t, "4bf92f3577b34da6a3ce929d0e0e4736", span.SpanContext().TraceID().String())
	require.Equal(t, span.SpanContext(), inside)
	require.Equal(t, "00-"+inside.TraceID().String()+"-"+inside.SpanID().String()+"-01", out.TraceParent)
	require.Equal(t, "e1", out.CausationID)
	attributes := map[string]string{}
	for _, a := range span.Attributes() {
		attributes[string(a.Key)] = a.Value.String()
	}
	for name, want := range map[string]string{
		"messaging.system": "streamkeel", "messaging.operation.type": "process", "messaging.destination.name": "orders",
		"messaging.consumer.group.name": "billing", "messaging.message.id": "e1", "streamkeel.event.type": "order.placed", "streamkeel.attempt": "2", "streamkeel.deliveries": "3",
	} {
		require.Equal(t, want, attributes[name], name)
	}
}

func TestHandlerSpanJoinsTheTraceWhereThatIsWanted(t *testing.T) {
	t.Parallel()
	tracing, recorder := newTracing(t, true)
	require.NoError(t, handle(t, tracing, stream.Event{TraceParent: parent}, func(context.Context) error { return nil }))
	span := recorder.Ended()[0]
	require.Equal(t, "4bf92f3577b34da6a3ce929d0e0e4736", span.SpanContext().TraceID().String())
	require.Equal(t, "00f067aa0ba902b7", span.Parent().SpanID().String())
	require.Empty(t, span.Links())
}

func TestWhatIsNoTraceParentMakesNoLink(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "nonsense", "00-0-0-00", "00-00000000000000000000000000000000-0000000000000000-01", "ff-" + parent[3:], parent + "\r\nx: y"} {
		tracing, recorder := newTracing(t, false)
		require.NoError(t, handle(t, tracing, stream.Event{TraceParent: bad}, func(context.Context) error { return nil }))
		require.Empty(t, recorder.Ended()[0].Links(), bad)
	}
}

func TestErrorsAndPanicsAreTheSpans(t *testing.T) {
	t.Parallel()
	tracing, recorder := newTracing(t, false)
	broken := errors.New("broken")
	for want, err := range map[string]error{"transient": broken, "permanent": consumergroup.Permanent(broken), "unavailable": consumergroup.Unavailable(broken)} {
		require.ErrorIs(t, handle(t, tracing, stream.Event{}, func(context.Context) error { return err }), broken)
		ended := recorder.Ended()
		span := ended[len(ended)-1]
		require.Equal(t, codes.Error, span.Status().Code)
		require.Equal(t, "broken", span.Status().Description)
		require.Contains(t, span.Attributes(), attribute.String("error.type", want))
	}
	require.Panics(t, func() {
		_ = handle(t, tracing, stream.Event{}, func(context.Context) error { panic("oh") })
	})
	ended := recorder.Ended()
	require.Contains(t, ended[len(ended)-1].Attributes(), attribute.String("error.type", "panic"))
}

func TestPublisherSpanIsCarriedByTheEvents(t *testing.T) {
	t.Parallel()
	tracing, recorder := newTracing(t, false)
	ctx, span := tracing.StartPublish(t.Context(), stream.Topic{Name: "orders"}, 2)
	e := published(ctx)
	span.End()
	ended := recorder.Ended()[0]
	require.Equal(t, "send orders", ended.Name())
	require.Equal(t, trace.SpanKindProducer, ended.SpanKind())
	require.Contains(t, e.TraceParent, ended.SpanContext().SpanID().String())
	require.Empty(t, published(telemetry.WithSpan(t.Context())).TraceParent, "without a span there is nothing to carry")
}

func TestTraceGoesFromPublisherToHandlerThroughRedis(t *testing.T) {
	t.Parallel()
	tracing, recorder := newTracing(t, false)
	rdb := testenv.Redis(t)
	topic := stream.Topic{Name: "orders", Namespace: testenv.Namespace(t)}
	publisher, err := stream.NewPublisher(rdb, stream.PublisherConfig{})
	require.NoError(t, err)
	ctx, span := tracing.StartPublish(t.Context(), topic, 1)
	placed := stream.Define[string]("order.placed")
	_, err = publisher.Publish(ctx, topic, placed.Event("k", "v"))
	require.NoError(t, err)
	span.End()

	handled := make(chan struct{})
	mux := consumergroup.NewMux()
	mux.Use(tracing.Handle)
	consumergroup.Handle(mux, placed, func(context.Context, stream.Event, string) error { close(handled); return nil })
	c, err := consumergroup.New(rdb, consumergroup.Config{Topics: []stream.Topic{topic}, Group: "g", Handler: mux, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	runCtx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(runCtx) }()
	<-handled
	stop()
	require.NoError(t, <-ended)
	spans := recorder.Ended()
	require.Len(t, spans, 2)
	require.Equal(t, span.SpanContext().SpanID(), spans[1].Links()[0].SpanContext.SpanID())
}
