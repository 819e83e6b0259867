//! The ingestion service on memory topics and a memory object store: real service, real lake, faults at the edges.
#![allow(clippy::unwrap_used)]

#[path = "suite/http.rs"]
mod http;
#[path = "suite/idempotency.rs"]
mod idempotency;
#[path = "suite/service.rs"]
mod service;
#[path = "suite/worker.rs"]
mod worker;
#[path = "suite/world.rs"]
mod world;
