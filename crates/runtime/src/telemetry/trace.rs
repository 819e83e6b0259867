//! Carries a trace through messages: the W3C `traceparent` of a span, out and in.
//!
//! With OTLP set, spans are recorded and each hands on its own id. Without it nothing is recorded, but a span still
//! hands on the `traceparent` it was given, as it came, so that traces of the services around stay whole.
//! Invariant: only well-formed values are taken and handed on; anything else a producer sends is ignored.
//! Deliberately absent: `tracestate`. Spans that shall carry a trace are of level info or above.

use std::collections::HashMap;

use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::registry::{LookupSpan, Registry};

use super::names::TRACEPARENT;

/// A `traceparent` that a span was given and hands on.
struct Carried(String);

/// The `traceparent` of the current span, to put into the headers of a message.
pub fn current_traceparent() -> Option<String> {
    traceparent_of(&Span::current())
}

/// The `traceparent` that work begun by this span belongs to. None outside any trace.
pub fn traceparent_of(span: &Span) -> Option<String> {
    recorded(span).or_else(|| carried(span))
}

/// Makes the span continue the trace of a message. A value that is no `traceparent` changes nothing.
/// Call before the span is first entered; a span's parent cannot change after that.
pub fn set_parent(span: &Span, traceparent: &str) {
    let Some(parent) = parse(traceparent) else {
        return;
    };
    // Refused without OTLP, or when the span was entered before; the trace is then carried without being recorded.
    drop(span.set_parent(parent));
    span.with_subscriber(|(id, dispatch)| {
        let known = dispatch.downcast_ref::<Registry>().and_then(|registry| registry.span(id));
        if let Some(span) = known {
            span.extensions_mut().replace(Carried(traceparent.trim().to_owned()));
        }
    });
}

/// The span as a child of the trace a message came with, where it came with one:
/// `span_from(traceparent, info_span!("process", …))`.
#[must_use]
pub fn span_from(traceparent: Option<&str>, span: Span) -> Span {
    if let Some(traceparent) = traceparent {
        set_parent(&span, traceparent);
    }
    span
}

/// Names one of many traces that led to this span, where one parent would be wrong: a batch made of many messages.
pub fn add_link(span: &Span, traceparent: &str) {
    if let Some(cause) = parse(traceparent) {
        span.add_link(cause.span().span_context().clone());
    }
}

fn parse(traceparent: &str) -> Option<Context> {
    let headers = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    context.span().span_context().is_valid().then_some(context)
}

fn recorded(span: &Span) -> Option<String> {
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut headers);
    headers.remove(TRACEPARENT)
}

fn carried(span: &Span) -> Option<String> {
    span.with_subscriber(|(id, dispatch)| {
        let registry = dispatch.downcast_ref::<Registry>()?;
        let mut scope = registry.span(id)?.scope();
        scope.find_map(|span| span.extensions().get::<Carried>().map(|it| it.0.clone()))
    })
    .flatten()
}
