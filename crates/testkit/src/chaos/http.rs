//! An HTTP proxy in front of an S3 server that follows rules: refuse, apply and lose the reply, tear, delay, hang.
//!
//! Invariants: a request that no rule takes is passed on byte for byte, host header included, since that is what its
//! signature covers; of several rules the first that takes a request decides; each rule counts what it took.
//! Absent on purpose: streaming. Requests and answers are held whole, which the objects of tests allow.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1 as client;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Background, listen};
use crate::seed::Random;

/// What happens to a request that a rule takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answered here, with no effect on the server: `503 SlowDown`, `409 ConditionalRequestConflict`, …
    Answer(u16, &'static str),
    /// The server carries it out; after a while, in which others may act, the reply is lost. What the server refuses has
    /// no effect: that answer gets through, and does not count as taken.
    LoseReply {
        /// How long the reply is held before it is lost.
        hold: Duration,
        /// What the client sees instead.
        seen: Loss,
    },
    /// The server carries it out; half of its answer arrives.
    Tear,
    /// The server carries it out; its answer arrives this much later.
    Delay(Duration),
    /// Nothing happens and no answer ever comes.
    Hang,
}

/// What a client sees of a lost reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The connection ends without an answer.
    Disconnect,
    /// An answer of `500 InternalError`.
    Error,
}

/// Which requests are taken, and what happens to them.
#[derive(Clone, Debug)]
pub struct Rule {
    method: Option<Method>,
    path: String,
    skip: u64,
    times: u64,
    percent: u64,
    action: Action,
}

impl Rule {
    /// Takes every request.
    pub fn new(action: Action) -> Rule {
        Rule { method: None, path: "*".to_owned(), skip: 0, times: u64::MAX, percent: 100, action }
    }

    /// Only requests of this method.
    pub fn method(mut self, method: Method) -> Rule {
        self.method = Some(method);
        self
    }

    /// Only requests whose path (`/bucket/key`) matches; `*` stands for any text.
    pub fn path(mut self, pattern: &str) -> Rule {
        pattern.clone_into(&mut self.path);
        self
    }

    /// Lets so many matching requests pass first.
    pub fn skip(mut self, requests: u64) -> Rule {
        self.skip = requests;
        self
    }

    /// Takes so many requests at most.
    pub fn times(mut self, requests: u64) -> Rule {
        self.times = requests;
        self
    }

    /// Takes a matching request in so many of a hundred cases.
    pub fn percent(mut self, percent: u64) -> Rule {
        self.percent = percent;
        self
    }
}

/// Names a rule of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(u64);

/// A proxy in front of one server. Without rules it only passes on.
pub struct HttpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    // The thread ends with the proxy.
    _background: Background,
}

struct Shared {
    server: SocketAddr,
    state: Mutex<State>,
}

struct State {
    random: Random,
    rules: Vec<Active>,
    next: u64,
    requests: u64,
}

struct Active {
    id: RuleId,
    rule: Rule,
    /// Off, it stays for its count.
    on: bool,
    skipped: u64,
    taken: u64,
    /// With the server, which has not said yet whether it carries them out.
    asked: u64,
}

impl HttpProxy {
    /// Listens on a port of its own and passes requests on to `server` (`host:port`).
    pub fn start(server: SocketAddr, seed: u64) -> Result<HttpProxy> {
        let background = Background::start("chaos-http")?;
        let (listener, address) = listen()?;
        let state = State { random: Random::new(seed), rules: Vec::new(), next: 0, requests: 0 };
        let shared = Arc::new(Shared { server, state: Mutex::new(state) });
        let task = accept(listener, Arc::clone(&shared));
        background.spawn(async move {
            if let Err(error) = task.await {
                eprintln!("the HTTP proxy on {address} ended: {error:#}");
            }
        });
        Ok(HttpProxy { address, shared, _background: background })
    }

    /// `http://host:port`, where clients send requests.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on this rule counts, after those that are there.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut state = self.shared.state();
        state.next += 1;
        let id = RuleId(state.next);
        state.rules.push(Active { id, rule, on: true, skipped: 0, taken: 0, asked: 0 });
        id
    }

    /// Takes every rule away; their counts stay.
    pub fn heal(&self) {
        self.shared.state().rules.iter_mut().for_each(|active| active.on = false);
    }

    /// How many requests a rule has taken.
    pub fn taken(&self, id: RuleId) -> u64 {
        self.shared.state().rules.iter().find(|active| active.id == id).map_or(0, |active| active.taken)
    }

    /// How many requests have come.
    pub fn requests(&self) -> u64 {
        self.shared.state().requests
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What happens to this request, by which rule; `None`: it is passed on.
    fn judge(&mut self, method: &Method, path: &str) -> Option<(RuleId, Action)> {
        self.requests += 1;
        for active in &mut self.rules {
            let rule = &active.rule;
            let matching = active.on
                && active.taken + active.asked < rule.times
                && rule.method.as_ref().is_none_or(|wanted| wanted == method)
                && matches(&rule.path, path);
            if !matching {
                continue;
            }
            if active.skipped < rule.skip {
                active.skipped += 1;
            } else if self.random.chance(rule.percent) {
                match rule.action {
                    Action::LoseReply { .. } => active.asked += 1,
                    _ => active.taken += 1,
                }
                return Some((active.id, rule.action));
            }
        }
        None
    }

    /// The server has answered a request whose reply is to be lost.
    fn answered(&mut self, id: RuleId, carried_out: bool) {
        if let Some(active) = self.rules.iter_mut().find(|active| active.id == id) {
            active.asked -= 1;
            active.taken += u64::from(carried_out);
        }
    }
}

/// Whether `text` is `pattern`, where `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|text| {
            let ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.into_iter().any(|at| matches(rest, &text[at..]))
        }),
    }
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) -> Result<()> {
    let listener = TcpListener::from_std(listener).context("take over the listener")?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, Arc::clone(&shared)));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection of a client. An error of a request ends it without an answer.
async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    stream.set_nodelay(true).ok();
    let service = service_fn(move |request| handle(request, Arc::clone(&shared)));
    server::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
}

async fn handle(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Answer>> {
    let judged = shared.state().judge(request.method(), request.uri().path());
    let Some((rule, action)) = judged else {
        return Ok(forward(request, shared.server).await?.map(Answer::whole));
    };
    match action {
        Action::Answer(status, code) => {
            // Read first: an answer into the middle of a request is a fault of another kind.
            request.into_body().collect().await.context("read a request")?;
            error_answer(status, code)
        }
        Action::LoseReply { hold, seen } => {
            let answer = forward(request, shared.server).await;
            let carried_out = answer.as_ref().is_ok_and(|answer| answer.status().is_success());
            shared.state().answered(rule, carried_out);
            if !carried_out {
                return Ok(answer?.map(Answer::whole));
            }
            tokio::time::sleep(hold).await;
            match seen {
                Loss::Disconnect => Err(anyhow!("the reply is lost")),
                Loss::Error => error_answer(500, "InternalError"),
            }
        }
        Action::Tear => Ok(forward(request, shared.server).await?.map(Answer::torn)),
        Action::Delay(by) => {
            let answer = forward(request, shared.server).await?;
            tokio::time::sleep(by).await;
            Ok(answer.map(Answer::whole))
        }
        Action::Hang => {
            request.into_body().collect().await.context("read a request")?;
            std::future::pending().await
        }
    }
}

/// Carries a request to the server and the whole answer back, each over a connection of its own.
async fn forward(request: Request<Incoming>, server: SocketAddr) -> Result<Response<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.context("read a request")?.to_bytes();
    let stream = TcpStream::connect(server).await.with_context(|| format!("reach the server at {server}"))?;
    stream.set_nodelay(true).ok();
    let (mut sender, connection) = client::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let (head, body) = sender.send_request(Request::from_parts(head, Full::new(body))).await?.into_parts();
        let body = body.collect().await.context("read an answer")?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    let mut exchange = std::pin::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // The last bytes of an answer may be read after the connection itself has ended.
        ended = &mut connection => {
            ended.context("talk to the server")?;
            exchange.await
        }
    }
}

fn error_answer(status: u16, code: &str) -> Result<Response<Answer>> {
    let text = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>by a test</Message></Error>");
    let mut answer = Response::new(Answer::whole(text.into()));
    *answer.status_mut() = StatusCode::from_u16(status).context("a status code")?;
    answer.headers_mut().insert("content-type", "application/xml".parse()?);
    Ok(answer)
}

/// The body of an answer: all of it, or half of what was announced.
struct Answer {
    data: Option<Bytes>,
    announced: u64,
    torn: bool,
}

impl Answer {
    fn whole(data: Bytes) -> Answer {
        Answer { announced: data.len() as u64, data: Some(data), torn: false }
    }

    fn torn(data: Bytes) -> Answer {
        Answer { announced: data.len() as u64, data: Some(data.slice(..data.len() / 2)), torn: true }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = anyhow::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, anyhow::Error>>> {
        Poll::Ready(match self.data.take() {
            Some(data) if !data.is_empty() => Some(Ok(Frame::data(data))),
            _ if self.torn => Some(Err(anyhow!("the answer is torn"))),
            _ => None,
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |_| self.announced))
    }
}
