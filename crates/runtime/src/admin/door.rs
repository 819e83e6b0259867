//! One address, two places that answer: health and metrics on a thread of their own, everything else on the workers.
//!
//! Invariant: a connection that first asks for health or metrics never waits for a worker. It is told apart by its
//! first bytes, which are looked at and left where they are; then the whole connection goes one way. A connection that
//! gets an answer here is closed after it, so that what its client asks next is sorted anew.
//! Deliberately absent: reading requests.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::connection::Connection;

/// Connections that wait for a worker. More are told to come back.
const WAITING_CONNECTIONS: usize = 4096;

/// A connection that has said nothing for so long is closed.
const FIRST_BYTES_WITHIN: Duration = Duration::from_secs(30);

/// After the operating system refused a connection: it is out of file handles, and others must end first.
const ACCEPT_AGAIN: Duration = Duration::from_millis(500);

/// As much of a request as tells a page from everything else.
const FIRST_BYTES: usize = 16;
/// How soon a request line that came in part is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// In the form of the services' own refusals.
const NOBODY_TAKES: &str = r#"{"error":"this process takes no requests now: it is stopping, or too many wait","hint":"try again, or another instance","retry":true}"#;

const PAGES: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// Connections that ask for something else than health and metrics, in the order they came.
#[derive(Debug)]
pub struct Visitors {
    address: SocketAddr,
    connections: mpsc::Receiver<std::net::TcpStream>,
    /// Ends when the thread that sorts connections is gone.
    sorting: Option<oneshot::Receiver<()>>,
}

impl Visitors {
    /// Ends with an error when no visitor can come any more. Callable once; later it never ends.
    pub(super) fn all_gone(&mut self) -> impl Future<Output = io::Error> + Send + use<> {
        let sorting = self.sorting.take();
        async move {
            match sorting {
                Some(sorting) => drop(sorting.await),
                None => std::future::pending().await,
            }
            io::Error::other("the thread that accepts connections is gone")
        }
    }
}

impl axum::serve::Listener for Visitors {
    type Io = Connection<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection<TcpStream>, SocketAddr) {
        while let Some(connection) = self.connections.recv().await {
            // A connection that its client has closed meanwhile has no address any more.
            if let Ok(address) = connection.peer_addr()
                && let Ok(connection) = TcpStream::from_std(connection)
            {
                return (Connection::new(connection), address);
            }
        }
        std::future::pending().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// The sorting side of an address.
pub(super) struct Sorter {
    pages: mpsc::Sender<std::net::TcpStream>,
    visitors: mpsc::Sender<std::net::TcpStream>,
    _sorting: oneshot::Sender<()>,
}

/// A sorter, the connections that ask for pages, and all the others.
pub(super) fn sorter(address: SocketAddr) -> (Sorter, Visitors, Visitors) {
    let (pages, asking) = mpsc::channel(WAITING_CONNECTIONS);
    let (visitors, others) = mpsc::channel(WAITING_CONNECTIONS);
    let (_sorting, sorted) = oneshot::channel();
    let sorter = Sorter { pages, visitors, _sorting };
    let asking = Visitors { address, connections: asking, sorting: None };
    (sorter, asking, Visitors { address, connections: others, sorting: Some(sorted) })
}

impl Sorter {
    /// Accepts and sorts for ever.
    pub(super) async fn sort(self, listener: TcpListener) {
        // Owned here, so that whoever drops this future drops what has not spoken yet.
        let mut silent = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((connection, _)) => {
                        silent.spawn(place(connection, self.pages.clone(), self.visitors.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                },
                Some(_) = silent.join_next() => {}
            }
        }
    }
}

/// Waits for a connection's first bytes and sends it the way they ask for.
async fn place(
    connection: TcpStream,
    pages: mpsc::Sender<std::net::TcpStream>,
    visitors: mpsc::Sender<std::net::TcpStream>,
) {
    let Ok(Ok(asks_here)) = tokio::time::timeout(FIRST_BYTES_WITHIN, asks_here(&connection)).await else { return };
    let Ok(connection) = connection.into_std() else { return };
    keep_alive(&connection);
    let left = if asks_here { Some(connection) } else { not_taken(visitors.try_send(connection)) };
    // With nobody behind the door, or too many before it, the pages' fallback says so.
    if let Some(connection) = left {
        drop(pages.try_send(connection));
    }
}

/// Has the operating system ask a silent client now and then whether it is still there. A client that follows rows says
/// nothing more, and where none come nobody would notice that it is gone.
fn keep_alive(connection: &std::net::TcpStream) {
    // A second handle of the same connection: streams themselves do not offer the option.
    let same = connection.try_clone().map(TcpSocket::from_std_stream);
    if let Err(error) = same.and_then(|same| same.set_keepalive(true)) {
        tracing::debug!(%error, "a connection does without keepalive");
    }
}

/// Looks at the first bytes until they tell: a client may send its request line in pieces.
async fn asks_here(connection: &TcpStream) -> io::Result<bool> {
    let mut first = [0; FIRST_BYTES];
    loop {
        let seen = connection.peek(&mut first).await?;
        if seen == 0 || !may_yet_ask_for_page(&first[..seen]) {
            return Ok(asks_for_page(&first[..seen]));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Whether what has come so far is a beginning of asking for one of the pages, and no more.
fn may_yet_ask_for_page(first: &[u8]) -> bool {
    let asking = |method: &str| PAGES.iter().any(|page| format!("{method} {page}").as_bytes().starts_with(first));
    first.len() < FIRST_BYTES && (asking("GET") || asking("HEAD"))
}

fn not_taken<T>(sent: Result<(), mpsc::error::TrySendError<T>>) -> Option<T> {
    sent.err().map(mpsc::error::TrySendError::into_inner)
}

/// Whether the first bytes of a request ask for one of the pages.
fn asks_for_page(first: &[u8]) -> bool {
    let path = first.strip_prefix(b"GET ").or_else(|| first.strip_prefix(b"HEAD "));
    path.is_some_and(|path| {
        PAGES.iter().any(|page| {
            let rest = path.strip_prefix(page.as_bytes());
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b' ' | b'?')))
        })
    })
}

/// The pages as the thread of their own serves them: one answer a connection, and a word for visitors nobody takes.
pub(super) fn served_here(pages: Router) -> Router {
    pages.fallback(nobody_takes).layer(map_response(closing))
}

async fn nobody_takes() -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::RETRY_AFTER, "1")];
    (StatusCode::SERVICE_UNAVAILABLE, headers, NOBODY_TAKES).into_response()
}

async fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_line_in_pieces_is_waited_for() {
        for part in ["G", "GET ", "GET /", "GET /live", "HEAD /metric"] {
            assert!(may_yet_ask_for_page(part.as_bytes()), "{part}");
        }
        for whole in ["POST /v1", "GET /v1", "GET /livez?", "GET /livez HTTP/1.1"] {
            assert!(!may_yet_ask_for_page(&whole.as_bytes()[..whole.len().min(FIRST_BYTES)]), "{whole}");
        }
    }

    #[test]
    fn a_request_is_told_apart_by_its_first_bytes() {
        let first = |request: &str| asks_for_page(&request.as_bytes()[..request.len().min(FIRST_BYTES)]);
        for request in ["GET /livez HTTP/1.1", "GET /readyz?verbose", "HEAD /metrics HTTP/1.1", "GET /metrics HTTP/1.1"]
        {
            assert!(first(request), "{request}");
        }
        for request in
            ["GET /livezz HTTP/1.1", "POST /livez HTTP/1.1", "GET /v1/tables", "GET ", "", "GET /", "\x16\x03"]
        {
            assert!(!first(request), "{request}");
        }
    }
}
