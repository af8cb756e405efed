package telemetry

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/streamkeel/streamkeel/consumergroup"
	"github.com/streamkeel/streamkeel/stream"
)

// TracingConfig configures [Tracing]. The zero value is the safe default.
type TracingConfig struct {
	// Provider makes the tracer. Default otel.GetTracerProvider().
	Provider trace.TracerProvider
	// SameTrace makes the spans of handlers children of the publisher's span, in one trace.
	// Default: each is the root of a trace of its own that links to the publisher's, so that
	// an event with many groups, retries and consequences does not grow into one trace that
	// lasts for days, and each group samples for itself.
	SameTrace bool
}

// Tracing makes spans of handlers and publishers. It is safe for use by many goroutines.
type Tracing struct {
	tracer    trace.Tracer
	sameTrace bool
}

const scope = "github.com/streamkeel/streamkeel/telemetry"

// NewTracing returns a tracing.
func NewTracing(config TracingConfig) *Tracing {
	if config.Provider == nil {
		config.Provider = otel.GetTracerProvider()
	}
	return &Tracing{tracer: config.Provider.Tracer(scope), sameTrace: config.SameTrace}
}

// The attributes, after OpenTelemetry's conventions for messaging.
const (
	system        = "streamkeel"
	systemKey     = attribute.Key("messaging.system")
	operationKey  = attribute.Key("messaging.operation.type")
	nameKey       = attribute.Key("messaging.operation.name")
	topicKey      = attribute.Key("messaging.destination.name")
	groupKey      = attribute.Key("messaging.consumer.group.name")
	clientKey     = attribute.Key("messaging.client.id")
	messageKey    = attribute.Key("messaging.message.id")
	batchKey      = attribute.Key("messaging.batch.message_count")
	eventTypeKey  = attribute.Key("streamkeel.event.type")
	streamKey     = attribute.Key("streamkeel.stream")
	entryKey      = attribute.Key("streamkeel.entry.id")
	attemptKey    = attribute.Key("streamkeel.attempt")
	deliveriesKey = attribute.Key("streamkeel.deliveries")
	errorTypeKey  = attribute.Key("error.type")
)

// Handle is a consumergroup.Middleware. Each run of a handler is a consumer span named "process
// <topic>", linked to the event's traceparent; its error, or panic, is the span's. The context
// that the handler gets carries the span, and what it publishes carries its traceparent.
//
// An event without a traceparent, or with one that is none, has a span without a link.
func (t *Tracing) Handle(next consumergroup.Handler) consumergroup.Handler {
	return consumergroup.HandlerFunc(func(ctx context.Context, e stream.Event) (err error) {
		meta, _ := consumergroup.MetadataFrom(ctx)
		options := []trace.SpanStartOption{
			trace.WithSpanKind(trace.SpanKindConsumer),
			trace.WithAttributes(
				systemKey.String(system), operationKey.String("process"), nameKey.String("handle"),
				topicKey.String(meta.Topic), groupKey.String(meta.Group), clientKey.String(meta.Consumer), messageKey.String(e.ID),
				eventTypeKey.String(e.Type), streamKey.String(meta.Stream), entryKey.String(meta.ID.String()),
				attemptKey.Int(meta.Attempt), deliveriesKey.Int(meta.Deliveries),
			),
		}
		if origin := spanContextOf(ctx, e.TraceParent); origin.IsValid() {
			if t.sameTrace {
				ctx = trace.ContextWithRemoteSpanContext(ctx, origin)
			} else {
				options = append(options, trace.WithNewRoot(), trace.WithLinks(trace.Link{SpanContext: origin}))
			}
		}
		ctx, span := t.tracer.Start(ctx, "process "+meta.Topic, options...)
		ended := false
		defer func() {
			switch {
			case !ended:
				span.SetStatus(codes.Error, "the handler panicked")
				span.SetAttributes(errorTypeKey.String("panic"))
			case err != nil:
				span.RecordError(err)
				span.SetStatus(codes.Error, err.Error())
				span.SetAttributes(errorTypeKey.String(classOf(err)))
			}
			span.End()
		}()
		err = next.Handle(WithSpan(ctx), e)
		ended = true
		return err
	})
}

func classOf(err error) string {
	switch consumergroup.Classify(err) {
	case consumergroup.PermanentError:
		return "permanent"
	case consumergroup.UnavailableError:
		return "unavailable"
	}
	return "transient"
}

// StartPublish starts a producer span named "send <topic>" around the publishing of n events,
// and returns a context by which they carry its traceparent. The caller ends the span:
//
//	ctx, span := tracing.StartPublish(ctx, Orders, 1)
//	defer span.End()
//	err := outbox.Publish(ctx, tx, Orders, event)
func (t *Tracing) StartPublish(ctx context.Context, topic stream.Topic, n int) (context.Context, trace.Span) {
	ctx, span := t.tracer.Start(ctx, "send "+topic.Name, trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
		systemKey.String(system), operationKey.String("send"), nameKey.String("publish"),
		topicKey.String(topic.Name), batchKey.Int(n),
	))
	return WithSpan(ctx), span
}

// WithSpan returns a context by which published events carry the traceparent of the span that
// ctx has; without a span it returns ctx. It is for publishers that have a span already, such
// as that of an HTTP request.
func WithSpan(ctx context.Context) context.Context {
	if parent := traceParentOf(trace.SpanContextFromContext(ctx)); parent != "" {
		return stream.WithTraceParent(ctx, parent)
	}
	return ctx
}

// traceParentOf writes a span context as the W3C Trace Context recommendation says.
func traceParentOf(sc trace.SpanContext) string {
	if !sc.IsValid() {
		return ""
	}
	return fmt.Sprintf("00-%s-%s-%s", sc.TraceID(), sc.SpanID(), sc.TraceFlags()&trace.FlagsSampled)
}

// spanContextOf reads a traceparent; what is none gives an invalid span context.
func spanContextOf(ctx context.Context, traceParent string) trace.SpanContext {
	ctx = trace.ContextWithSpanContext(ctx, trace.SpanContext{}) // what the handler's context has is not the event's
	carrier := propagation.MapCarrier{"traceparent": traceParent}
	return trace.SpanContextFromContext(propagation.TraceContext{}.Extract(ctx, carrier))
}
