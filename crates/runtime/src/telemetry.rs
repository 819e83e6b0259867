//! Logs to stderr, and traces by OTLP when an endpoint is set.
//!
//! Invariant: telemetry never stops the work: a collector that is slow or gone costs traces, and leaving the process
//! waits for it only a bounded time.
//! Deliberately absent: metrics (see `metrics`). Nothing is sent anywhere unless `telemetry.otlp_endpoint` is set.

pub mod names;
pub mod throttle;
pub mod trace;

mod export;
mod libraries;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, Metadata};
use tracing_subscriber::filter::{EnvFilter, FilterExt as _, FilterFn, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Identity, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{self, LogFormat, TelemetryConfig};
use export::Loud;
use libraries::Libraries;

pub use trace::{add_link, current_traceparent, set_parent, span_from, traceparent_of};

/// How long one delivery to the collector may take.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the end of the process waits for the last traces.
const LAST_FLUSH: Duration = Duration::from_secs(3);

/// The path of traces under an OTLP endpoint. **Source**: OTLP specification, "OTLP/HTTP Request".
const TRACES_PATH: &str = "v1/traces";

/// Libraries that deliver our traces; tracing them would make a trace of every delivery.
const NOT_TRACED: [&str; 5] = ["hyper", "reqwest", "h2", "opentelemetry", "rustls"];

/// The span around a task, which names it in the log. It lives as long as the process: no part of any trace.
const TASK_SPAN: &str = "task";

/// Every layer has its own filter: one without would switch everything on for all.
type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Telemetry cannot be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    #[error("`telemetry.level` is `{level}`; write it like `info,storage=debug`")]
    Level { level: String, source: ParseError },
    #[error("traces cannot be sent to `{endpoint}`; check `telemetry.otlp_endpoint`")]
    Exporter { endpoint: String, source: ExporterBuildError },
    #[error("logging was already set up in this process")]
    AlreadyStarted(#[from] TryInitError),
}

impl TelemetryError {
    /// A matter of config or of the program; neither mends itself.
    pub fn class(&self) -> delivery::ErrorClass {
        delivery::ErrorClass::Stop
    }
}

/// Keeps telemetry going. Dropping it sends the last traces, waiting a bounded time. Keep it in `main`.
#[derive(Debug)]
#[must_use = "dropping the guard ends telemetry"]
pub struct Guard {
    provider: Option<SdkTracerProvider>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider
            && let Err(error) = provider.shutdown_with_timeout(LAST_FLUSH)
        {
            tracing::warn!(%error, "the last traces were not delivered");
        }
    }
}

/// Sets up logs and traces for the whole process. Call once, in `main`.
///
/// **Errors**: logging was set up before; or the level or the endpoint is not usable, which a loaded config rules out.
pub fn start(config: &TelemetryConfig, service: &str) -> Result<Guard, TelemetryError> {
    let colour = std::io::stderr().is_terminal() && !config::colour_refused();
    let (dispatch, guard) = build(config, service, std::io::stderr, colour)?;
    dispatch.try_init()?;
    Ok(guard)
}

/// The same without installing it, with another place for the lines; for tests and for embedding.
///
/// **Errors**: as [`start`].
pub fn build<W>(
    config: &TelemetryConfig,
    service: &str,
    lines: W,
    colour: bool,
) -> Result<(Dispatch, Guard), TelemetryError>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let level = EnvFilter::try_new(&config.level)
        .map_err(|source| TelemetryError::Level { level: config.level.clone(), source })?;
    let provider = provider(config, service)?;
    let shown = level.and(Libraries::default());
    let mut layers = vec![format(config.logs, lines, colour).with_filter(shown).boxed(), carrier()];
    layers.extend(provider.as_ref().map(recorder));
    Ok((Dispatch::new(Registry::default().with(layers)), Guard { provider }))
}

/// Keeps spans that carry a trace alive where neither logs nor traces want them; see `trace`.
fn carrier() -> BoxedLayer {
    let spans = FilterFn::new(|metadata| metadata.is_span()).with_max_level_hint(LevelFilter::INFO);
    Identity::new().with_filter(spans).boxed()
}

fn recorder(provider: &SdkTracerProvider) -> BoxedLayer {
    let traced = FilterFn::new(is_traced).with_max_level_hint(LevelFilter::INFO);
    tracing_opentelemetry::layer().with_tracer(provider.tracer("tailwater")).with_filter(traced).boxed()
}

fn format<W>(format: LogFormat, lines: W, colour: bool) -> BoxedLayer
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(lines);
    match format {
        LogFormat::Human => layer.with_ansi(colour).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    }
}

fn is_traced(metadata: &Metadata<'_>) -> bool {
    let krate = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= LevelFilter::INFO && !NOT_TRACED.contains(&krate) && metadata.name() != TASK_SPAN
}

fn provider(config: &TelemetryConfig, service: &str) -> Result<Option<SdkTracerProvider>, TelemetryError> {
    if config.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(traces_url(&config.otlp_endpoint))
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|source| TelemetryError::Exporter { endpoint: config.otlp_endpoint.clone(), source })?;
    // A message that came with a trace keeps its sender's decision, so traces are whole or absent.
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.trace_sample_ratio)));
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(Loud::new(exporter))
        .with_sampler(sampler)
        .with_resource(resource(service))
        .build();
    Ok(Some(provider))
}

fn resource(service: &str) -> Resource {
    // Without the detectors of the library, which read the environment.
    Resource::builder_empty()
        .with_attributes([
            KeyValue::new(names::SERVICE_NAME, service.to_owned()),
            KeyValue::new(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
        ])
        .build()
}

fn traces_url(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    if endpoint.ends_with(TRACES_PATH) { endpoint.to_owned() } else { format!("{endpoint}/{TRACES_PATH}") }
}
