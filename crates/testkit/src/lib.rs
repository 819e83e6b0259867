//! What tests and benches share: real peers to start, our own programs to start and kill, and seeded rows.
//!
//! Invariant: whatever is started here dies with the test, also when the test process itself is killed.
//! Everything blocks and nothing needs an async runtime; inside one, call it through `tokio::task::spawn_blocking`
//! (or `block_in_place`) where other tasks have to go on meanwhile.
//! Absent on purpose: any dependency on the other crates, and any fake. Fakes live beside the traits they implement.

pub mod chaos;
pub mod kafka;
pub mod peers;
pub mod ports;
pub mod process;
pub mod python;
mod repository;
pub mod rows;
pub mod s3;
pub mod seed;

mod child;
pub mod http;

pub use kafka::Kafka;
pub use process::{Process, Program};
pub use repository::repository;
pub use s3::VersityGateway;
pub use seed::{Random, Seed};
