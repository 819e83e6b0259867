//! Health and metrics over HTTP: /livez, /readyz, /readyz?verbose and /metrics.
//!
//! Invariant: /livez says only that the process answers; it never depends on a broker or a store, so that their
//! outage restarts nobody. [`AdminServer`] answers from a thread of its own, however busy the workers are, and hands
//! every other request on the same address to whoever [`serve`]s its [`Visitors`].
//! Deliberately absent: logins, and anything that changes the process.

mod connection;
mod door;
mod health;
mod holder;
#[cfg(test)]
mod tests;

use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use axum::extract::RawQuery;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use thiserror::Error;
use tokio::net::TcpListener;

pub use connection::Connection;
pub use door::Visitors;
pub use health::{CheckHandle, CheckLine, CheckState, Health};

use crate::metrics::Metrics;
use crate::tasks::Stop;
use door::Sorter;

/// What Prometheus expects to be told about its text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long answers that were begun may take to end after the server was told to stop.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// An address that cannot be listened on.
#[derive(Debug, Error)]
pub enum BindError {
    #[error("address {listen} is in use by {holder}; stop it, or change `{key}`")]
    InUse {
        listen: String,
        /// "process 1234 (`java`)", or that it is unknown.
        holder: String,
        key: &'static str,
    },
    #[error("no right to listen on {listen}; ports below 1024 are the administrator's, change `{key}`")]
    NotAllowed { listen: String, key: &'static str },
    #[error("address {listen} cannot be listened on; give an address of this machine in `{key}`")]
    Unusable { listen: String, key: &'static str, source: io::Error },
    #[error("no thread to answer on {listen}")]
    NoThread { listen: String, source: io::Error },
}

impl BindError {
    /// Nothing here mends itself.
    pub fn class(&self) -> delivery::ErrorClass {
        delivery::ErrorClass::Stop
    }

    fn of(listen: &str, key: &'static str, source: io::Error) -> BindError {
        let listen = listen.to_owned();
        match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { holder: holder_of(&listen), listen, key },
            io::ErrorKind::PermissionDenied => BindError::NotAllowed { listen, key },
            _ => BindError::Unusable { listen, key, source },
        }
    }
}

fn holder_of(listen: &str) -> String {
    listen
        .rsplit_once(':')
        .and_then(|(_, port)| holder::of_port(port.parse().ok()?))
        .unwrap_or_else(|| "another process, perhaps a Tailwater that still runs".to_owned())
}

/// The admin pages, to serve alone or to merge into another router.
pub fn router(health: Health, metrics: Metrics) -> Router {
    let measured = health.clone();
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(move |RawQuery(query): RawQuery| async move { readyz(&health, query.as_deref()) }))
        .route("/metrics", get(move || async move { rendered(&metrics, &measured) }))
}

fn rendered(metrics: &Metrics, health: &Health) -> Response {
    let mut text = metrics.render();
    write!(
        text,
        "# HELP tailwater_runtime_ready Whether every check is ready: 1 or 0.\n\
         # TYPE tailwater_runtime_ready gauge\n\
         tailwater_runtime_ready {}\n",
        u8::from(health.is_ready())
    )
    .expect("text grows");
    ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response()
}

fn readyz(health: &Health, query: Option<&str>) -> Response {
    let report = health.report();
    let waiting: Vec<&CheckLine> = report.iter().filter(|line| !is_ready(line)).collect();
    let status = if waiting.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let text = match (wants_all(query), waiting.is_empty()) {
        (true, _) => lines(&report),
        (false, true) => "ok\n".to_owned(),
        (false, false) => lines(waiting),
    };
    (status, text).into_response()
}

fn is_ready(line: &CheckLine) -> bool {
    matches!(line.state, CheckState::Ready { .. })
}

fn wants_all(query: Option<&str>) -> bool {
    query.unwrap_or_default().split('&').any(|part| part.split('=').next() == Some("verbose"))
}

fn lines<'a>(report: impl IntoIterator<Item = &'a CheckLine>) -> String {
    let mut text = String::new();
    for CheckLine { name, state } in report {
        match state {
            CheckState::Ready { detail } if detail.is_empty() => writeln!(text, "[+] {name} ok"),
            CheckState::Ready { detail } => writeln!(text, "[+] {name} ok: {}", one_line(detail)),
            CheckState::Waiting { reason } => writeln!(text, "[-] {name} {}", one_line(reason)),
        }
        .expect("text grows");
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Takes an address. `key` is the config key it came from, for the error. Port 0 takes any free port;
/// `local_addr()` of the listener tells which.
///
/// **Errors**: the address is taken, forbidden or not of this machine; the text says what to change.
pub async fn bind(listen: &str, key: &'static str) -> Result<TcpListener, BindError> {
    TcpListener::bind(listen).await.map_err(|source| BindError::of(listen, key, source))
}

/// Answers on the caller's runtime until the word to stop, then ends the answers that were begun.
///
/// **Errors**: the listener broke.
pub async fn serve<L>(listener: L, router: Router, stop: Stop) -> io::Result<()>
where
    L: Listener<Addr: std::fmt::Debug>,
{
    axum::serve(listener, router).with_graceful_shutdown(stop.into_stopped()).await
}

/// As [`serve`], for the visitors of an [`AdminServer`].
///
/// **Errors**: no visitor can come any more, because the server's thread is gone.
pub async fn serve_visitors(mut visitors: Visitors, router: Router, stop: Stop) -> io::Result<()> {
    let all_gone = visitors.all_gone();
    tokio::select! {
        served = serve(visitors, router, stop) => served,
        error = all_gone => Err(error),
    }
}

/// Health and metrics on an OS thread and a runtime of their own. Dropping it stops it.
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl AdminServer {
    /// Listens at once and answers for `pages` until dropped; everything else that is asked comes out as visitors.
    /// Whatever nobody takes is told to try again. `key` is the config key `listen` came from, for the error.
    /// Blocks for the binding only; a host name is looked up first.
    ///
    /// **Errors**: as [`bind`]; or the operating system gives no thread.
    pub fn start(listen: &str, key: &'static str, pages: Router) -> Result<(AdminServer, Visitors), BindError> {
        let no_thread = |source| BindError::NoThread { listen: listen.to_owned(), source };
        let unusable = |source| BindError::of(listen, key, source);
        let listener = std::net::TcpListener::bind(listen).map_err(unusable)?;
        listener.set_nonblocking(true).map_err(unusable)?;
        let address = listener.local_addr().map_err(unusable)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(no_thread)?;
        let (sorter, asking, visitors) = door::sorter(address);
        let stop = Stop::new();
        let heard = stop.clone();
        let thread = thread::Builder::new()
            .name("admin".to_owned())
            .spawn(move || {
                if let Err(error) = runtime.block_on(answer(listener, sorter, asking, pages, heard)) {
                    tracing::error!(%error, "health and metrics are not served any more");
                }
            })
            .map_err(no_thread)?;
        Ok((AdminServer { address, stop, thread: Some(thread) }, visitors))
    }

    /// Where it listens, with the real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread for health and metrics panicked");
        }
    }
}

async fn answer(
    listener: std::net::TcpListener,
    sorter: Sorter,
    asking: Visitors,
    pages: Router,
    stop: Stop,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let served = serve(asking, door::served_here(pages), stop.clone());
    // Sorting ends first, which frees the port and refuses new connections while the last answers go out.
    let sorted = async {
        tokio::select! {
            () = sorter.sort(listener) => {}
            () = stop.stopped() => {}
        }
        tokio::time::sleep(LAST_ANSWERS).await;
    };
    tokio::select! {
        served = served => served,
        () = sorted => Ok(()),
    }
}
