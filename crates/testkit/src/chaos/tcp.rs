//! A TCP proxy whose link can be slow, narrow, silent in one direction, cut, or closed to new connections.
//!
//! Invariant: bytes are never lost or reordered within a connection; they come late, or the connection ends. A silent
//! direction keeps what was sent into it, as TCP does, and delivers it once healed, unless the connection is cut first.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Background, listen};
use crate::seed::Random;

const CHUNK_BYTES: usize = 32 << 10;
/// What is on its way in one direction of one connection.
const CHUNKS_UNDER_WAY: usize = 64;

/// A way through the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What clients send.
    ToServer,
    /// What the server answers.
    ToClient,
    /// Both.
    Both,
}

/// What the proxy has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpCounts {
    /// Connections passed on.
    pub accepted: u64,
    /// Connections reset at once because new ones were refused or the server was away.
    pub refused: u64,
    /// Connections reset by [`TcpProxy::cut`].
    pub cut: u64,
    /// Bytes handed to the server, or on their way there.
    pub bytes_to_server: u64,
    /// Bytes handed to clients, or on their way there.
    pub bytes_to_client: u64,
}

/// A proxy in front of one server. Without orders it only passes on.
pub struct TcpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    // The thread ends with the proxy.
    _background: Background,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    latency: Duration,
    jitter: Duration,
    bytes_per_second: Option<u64>,
    to_server_silent: bool,
    to_client_silent: bool,
    refusing: bool,
    /// Connections of an older generation are cut.
    generation: u64,
}

struct Shared {
    server: Mutex<SocketAddr>,
    link: watch::Sender<Link>,
    accepted: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    bytes_to_server: AtomicU64,
    bytes_to_client: AtomicU64,
}

impl TcpProxy {
    /// Listens on a port of its own and passes connections on to `server`, which need not be up yet.
    pub fn start(server: SocketAddr, seed: u64) -> Result<TcpProxy> {
        let background = Background::start("chaos-tcp")?;
        let (listener, address) = listen()?;
        let shared = Arc::new(Shared {
            server: Mutex::new(server),
            link: watch::Sender::new(Link::default()),
            accepted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            bytes_to_server: AtomicU64::new(0),
            bytes_to_client: AtomicU64::new(0),
        });
        let task = accept(listener, Arc::clone(&shared), Random::new(seed));
        background.spawn(async move {
            if let Err(error) = task.await {
                eprintln!("the TCP proxy on {address} ended: {error:#}");
            }
        });
        Ok(TcpProxy { address, shared, _background: background })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Passes new connections on to another server.
    pub fn forward_to(&self, server: SocketAddr) {
        *self.shared.server.lock().unwrap_or_else(PoisonError::into_inner) = server;
    }

    /// Delays everything by `latency` and up to `jitter` more, in each direction.
    pub fn slow(&self, latency: Duration, jitter: Duration) {
        self.order(|link| (link.latency, link.jitter) = (latency, jitter));
    }

    /// Bounds what one connection carries in each direction.
    pub fn narrow(&self, bytes_per_second: u64) {
        self.order(|link| link.bytes_per_second = Some(bytes_per_second.max(1)));
    }

    /// Delivers nothing more in this direction; connections stay open.
    pub fn silence(&self, direction: Direction) {
        self.order(|link| {
            link.to_server_silent |= direction != Direction::ToClient;
            link.to_client_silent |= direction != Direction::ToServer;
        });
    }

    /// Resets every new connection at once.
    pub fn refuse(&self) {
        self.order(|link| link.refusing = true);
    }

    /// Resets every connection there is; what was on its way is lost. New ones are taken as before.
    pub fn cut(&self) {
        self.order(|link| link.generation += 1);
    }

    /// Makes the link whole again: what was held back is delivered.
    pub fn heal(&self) {
        self.order(|link| *link = Link { generation: link.generation, ..Link::default() });
    }

    /// What it has done so far.
    pub fn counts(&self) -> TcpCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let shared = &self.shared;
        TcpCounts {
            accepted: read(&shared.accepted),
            refused: read(&shared.refused),
            cut: read(&shared.cut),
            bytes_to_server: read(&shared.bytes_to_server),
            bytes_to_client: read(&shared.bytes_to_client),
        }
    }

    fn order(&self, change: impl FnOnce(&mut Link)) {
        self.shared.link.send_modify(change);
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>, mut random: Random) -> Result<()> {
    let listener = TcpListener::from_std(listener).context("take over the listener")?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            client = listener.accept() => match client {
                Ok((client, _)) => {
                    connections.spawn(serve(client, Arc::clone(&shared), random.fork()));
                }
                // A client that gave up in between, or no file left for the moment.
                Err(_) => sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, until both sides are done or it is cut.
async fn serve(mut client: TcpStream, shared: Arc<Shared>, mut random: Random) {
    let link = *shared.link.borrow();
    let address = *shared.server.lock().unwrap_or_else(PoisonError::into_inner);
    let server = if link.refusing { None } else { TcpStream::connect(address).await.ok() };
    let Some(mut server) = server else {
        count(&shared.refused, 1);
        reset(&client);
        return;
    };
    count(&shared.accepted, 1);
    client.set_nodelay(true).ok();
    server.set_nodelay(true).ok();
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let up = pump(from_client, to_server, &shared, Direction::ToServer, link.generation, random.fork());
    let down = pump(from_server, to_client, &shared, Direction::ToClient, link.generation, random.fork());
    let mut orders = shared.link.subscribe();
    tokio::select! {
        _ = orders.wait_for(|now| now.generation != link.generation) => {}
        _ = async { tokio::join!(up, down) } => {}
    }
    if shared.link.borrow().generation != link.generation {
        count(&shared.cut, 1);
        reset(&client);
        reset(&server);
    }
}

/// Makes the coming close a reset, so that the other side cannot take it for a good end.
fn reset(stream: &TcpStream) {
    stream.set_zero_linger().ok();
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Carries one direction of one connection to its end.
async fn pump(
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    shared: &Shared,
    direction: Direction,
    generation: u64,
    random: Random,
) {
    let (queue, queued) = mpsc::channel(CHUNKS_UNDER_WAY);
    tokio::join!(take(from, queue, shared, random), deliver(to, queued, shared, direction, generation));
}

/// Reads, and says when each chunk is due.
async fn take(
    mut from: impl AsyncRead + Unpin,
    queue: mpsc::Sender<(Instant, Vec<u8>)>,
    shared: &Shared,
    mut random: Random,
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut last = Instant::now();
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let link = *shared.link.borrow();
        if let Some(rate) = link.bytes_per_second {
            sleep(Duration::from_secs_f64(read as f64 / rate as f64)).await;
        }
        last = last.max(Instant::now() + link.latency + link.jitter.mul_f64(random.fraction()));
        if queue.send((last, buffer[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

/// Writes what is due, unless the direction is silent. A cut is seen before a heal that follows it at once.
async fn deliver(
    mut to: impl AsyncWrite + Unpin,
    mut queued: mpsc::Receiver<(Instant, Vec<u8>)>,
    shared: &Shared,
    direction: Direction,
    generation: u64,
) {
    let mut orders = shared.link.subscribe();
    let (delivered, silent): (_, fn(&Link) -> bool) = match direction {
        Direction::ToServer => (&shared.bytes_to_server, |link| link.to_server_silent),
        _ => (&shared.bytes_to_client, |link| link.to_client_silent),
    };
    let mut audible = async || {
        let link = orders.wait_for(|link| !silent(link) || link.generation != generation).await;
        link.is_ok_and(|link| link.generation == generation)
    };
    while let Some((due, chunk)) = queued.recv().await {
        sleep_until(due).await;
        if !audible().await {
            return;
        }
        // Before they are there: whoever has received them finds them counted.
        count(delivered, chunk.len() as u64);
        if to.write_all(&chunk).await.is_err() {
            return;
        }
    }
    // The end of a stream is silent too.
    if audible().await {
        to.shutdown().await.ok();
    }
}
