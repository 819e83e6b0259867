//! Faults between our programs and their peers: a TCP proxy for Kafka, an HTTP proxy for S3.
//!
//! Invariants: a proxy without orders passes everything on unchanged, keeps its port as long as it lives, draws all its
//! chances from one seed, and counts what it did, so that a test can tell a fault that happened from one that did not.
//! Each proxy runs on a thread of its own; every call here returns at once.
//! Absent on purpose: TLS, and the loss or reordering of single packets, which TCP hides from programs anyway.

mod http;
mod tcp;

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};
use tokio::runtime::Runtime;

pub use hyper::Method;

pub use http::{Action, HttpProxy, Loss, Rule, RuleId};
pub use tcp::{Direction, TcpCounts, TcpProxy};

use crate::ports::free_port;

/// Two test processes may have picked the same free port.
const BIND_ATTEMPTS: usize = 20;

/// The thread a proxy runs on; it ends with the value, whatever the proxy is doing.
struct Background(Option<Runtime>);

impl Background {
    fn start(name: &str) -> Result<Background> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(name)
            .enable_all()
            .build()
            .with_context(|| format!("start the thread of {name}"))?;
        Ok(Background(Some(runtime)))
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.0 {
            drop(runtime.spawn(task));
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Listens on a port below the ephemeral range, see [`free_port`].
fn listen() -> Result<(TcpListener, SocketAddr)> {
    let mut last = None;
    for _ in 0..BIND_ATTEMPTS {
        match TcpListener::bind(("127.0.0.1", free_port()?)) {
            Ok(listener) => {
                listener.set_nonblocking(true)?;
                let address = listener.local_addr()?;
                return Ok((listener, address));
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.context("no attempt was made")?).context("find a port for a proxy")
}
