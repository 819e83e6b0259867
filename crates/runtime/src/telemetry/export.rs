//! An exporter that says so in the log when traces cannot be delivered.
//!
//! Invariant: at most one line a minute, since a collector may be gone for days.

use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};

use super::throttle::Throttle;
use crate::clock::{Clock, SystemClock};

const LINE_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Loud<E> {
    exporter: E,
    throttle: Throttle,
}

impl<E> Loud<E> {
    pub(super) fn new(exporter: E) -> Loud<E> {
        Loud { exporter, throttle: Throttle::new(LINE_EVERY) }
    }

    fn tell(&self, result: &OTelSdkResult) {
        if let Err(error) = result
            && let Some(suppressed) = self.throttle.permit("export", SystemClock.now_ms())
        {
            tracing::warn!(%error, suppressed, "traces were not delivered");
        }
    }
}

impl<E: SpanExporter> SpanExporter for Loud<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        self.tell(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
