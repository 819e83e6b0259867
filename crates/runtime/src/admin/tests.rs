#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;
use crate::metrics::BuildInfo;
use crate::tasks::{Fate, TaskGroup};

fn metrics() -> Metrics {
    Metrics::detached(BuildInfo::of("test")).unwrap().1
}

fn start(health: &Health) -> AdminServer {
    AdminServer::start("127.0.0.1:0", "http.listen", router(health.clone(), metrics())).unwrap().0
}

/// Status and body of one GET, over a connection of its own.
fn fetch(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[test]
fn a_process_is_live_at_once_and_ready_only_when_every_check_is() {
    let health = Health::new();
    let server = start(&health);
    let get = |path| fetch(server.address(), path);
    assert_eq!(get("/livez"), (200, "ok\n".to_owned()));
    assert_eq!(get("/readyz"), (503, "[-] process starting\n".to_owned()));
    let log = health.check("log");
    let store = health.check("store");
    log.set_ready("3 brokers");
    store.set_waiting("bucket `lake`\nis missing");
    assert_eq!(get("/readyz"), (503, "[-] store bucket `lake` is missing\n".to_owned()));
    assert_eq!(get("/readyz?verbose"), (503, "[+] log ok: 3 brokers\n[-] store bucket `lake` is missing\n".to_owned()));
    store.set_ready("");
    assert_eq!(get("/readyz"), (200, "ok\n".to_owned()));
    assert_eq!(get("/readyz?verbose=1"), (200, "[+] log ok: 3 brokers\n[+] store ok\n".to_owned()));
    log.set_waiting("lost the brokers");
    assert_eq!(get("/readyz").0, 503);
    assert_eq!(get("/livez").0, 200);
    log.remove();
    assert_eq!(get("/readyz").0, 200);
}

#[test]
fn a_stopping_process_is_live_but_not_ready() {
    let stop = Stop::new();
    let health = Health::with_stop(stop.clone());
    health.check("log").set_ready("");
    assert!(health.is_ready());
    stop.request();
    let server = start(&health);
    assert_eq!(fetch(server.address(), "/livez").0, 200);
    assert_eq!(fetch(server.address(), "/readyz?verbose"), (503, "[+] log ok\n[-] process stopping\n".to_owned()));
}

#[test]
fn metrics_are_served_as_prometheus_text() {
    let health = Health::new();
    let server = start(&health);
    let (status, body) = fetch(server.address(), "/metrics");
    assert_eq!(status, 200);
    assert!(body.contains("tailwater_build_info{service=\"test\""), "{body}");
    assert!(body.contains("\ntailwater_runtime_ready 0\n"), "{body}");
    health.check("log").set_ready("");
    assert!(fetch(server.address(), "/metrics").1.contains("\ntailwater_runtime_ready 1\n"));
}

#[tokio::test]
async fn health_answers_while_every_worker_is_busy() {
    let health = Health::new();
    let server = start(&health);
    // This test holds the only worker of its runtime; the blocking read would never end if the server ran on it.
    assert_eq!(fetch(server.address(), "/livez").0, 200);
}

/// One answer from a connection that is kept.
fn one_answer(stream: &mut TcpStream) -> String {
    let mut answer = String::new();
    loop {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).unwrap();
        assert_ne!(read, 0, "closed after: {answer}");
        answer += std::str::from_utf8(&chunk[..read]).unwrap();
        let Some((head, body)) = answer.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() == length.parse::<usize>().unwrap() {
            return answer;
        }
    }
}

/// The process as services run it: pages on their own thread, `POST /work` on the workers of a runtime.
struct TwoSided {
    server: AdminServer,
    workers: tokio::runtime::Runtime,
    serving: TaskGroup,
}

impl TwoSided {
    fn start() -> TwoSided {
        let workers = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let pages = router(Health::new(), metrics());
        let (server, visitors) = AdminServer::start("127.0.0.1:0", "http.listen", pages.clone()).unwrap();
        let work = Router::new().route("/work", get(|| async { thread::current().name().unwrap_or("").to_owned() }));
        let serving = TaskGroup::new();
        let stop = serving.stop();
        {
            let _inside = workers.enter();
            let served = async move { Ok(serve_visitors(visitors, work.merge(pages), stop).await?) };
            serving.spawn("http", Fate::Critical, served);
        }
        TwoSided { server, workers, serving }
    }

    /// Returns when no worker is free; they are again once the senders are dropped.
    fn block_all_workers(&self) -> Vec<std::sync::mpsc::SyncSender<()>> {
        let hold = |_| {
            let (release, released) = std::sync::mpsc::sync_channel::<()>(1);
            let (begun, begins) = std::sync::mpsc::sync_channel(1);
            let _inside = self.workers.enter();
            self.serving.spawn("busy", Fate::Detached, async move {
                begun.send(()).unwrap();
                released.recv().unwrap_err();
                Ok(())
            });
            begins.recv().unwrap();
            release
        };
        (0..2).map(hold).collect()
    }
}

#[test]
fn health_and_metrics_answer_while_every_worker_computes_and_other_requests_wait() {
    let process = TwoSided::start();
    let address = process.server.address();
    assert_eq!(fetch(address, "/work").0, 200);
    let releases = process.block_all_workers();
    for (path, status) in [("/livez", 200), ("/readyz?verbose", 503), ("/metrics", 200)] {
        assert_eq!(fetch(address, path).0, status, "{path}");
    }
    let mut waiting = TcpStream::connect(address).unwrap();
    waiting.write_all(b"GET /work HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
    waiting.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let early = waiting.read(&mut [0]).unwrap_err().kind();
    assert!(matches!(early, io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut), "the workers were busy: {early}");
    assert_eq!(fetch(address, "/livez").0, 200);
    drop(releases);
    waiting.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("tokio-rt-worker"), "{answer}");
}

#[test]
fn a_client_that_asked_for_health_can_ask_for_work_next() {
    let process = TwoSided::start();
    let mut stream = TcpStream::connect(process.server.address()).unwrap();
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    let mut answer = String::new();
    // Ends, though the client would keep the connection: it is told to open another.
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("connection: close") && answer.ends_with("ok\n"), "{answer}");
    let mut stream = TcpStream::connect(process.server.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    for path in ["/work", "/livez", "/work"] {
        write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
        let answer = one_answer(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "a visitor's connection is kept, whatever it asks: {answer}");
    }
}

#[test]
fn a_process_that_drains_is_alive_and_sends_visitors_elsewhere() {
    let process = TwoSided::start();
    let address = process.server.address();
    process.workers.block_on(process.serving.finish(Duration::from_secs(10))).unwrap();
    assert_eq!(fetch(address, "/livez").0, 200);
    let (status, body) = fetch(address, "/work");
    assert_eq!(status, 503);
    assert!(body.contains("\"retry\":true") && body.contains("stopping"), "{body}");
    drop(process.server);
    assert!(TcpStream::connect(address).is_err(), "the port is free");
}

#[test]
fn a_taken_address_names_its_holder_and_the_key_to_change() {
    let server = start(&Health::new());
    let listen = server.address().to_string();
    let error = AdminServer::start(&listen, "storage.listen", router(Health::new(), metrics())).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&listen) && text.contains("`storage.listen`"), "{text}");
    if cfg!(target_os = "linux") {
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    }
}

#[tokio::test]
async fn an_address_of_another_machine_is_refused_with_the_key() {
    let error = bind("192.0.2.1:1", "http.listen").await.unwrap_err();
    assert!(error.to_string().contains("`http.listen`"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn dropping_the_server_frees_its_port_though_an_answer_never_ends() {
    let (begun, begins) = std::sync::mpsc::sync_channel(1);
    let endless = move || async move {
        begun.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    let server =
        AdminServer::start("127.0.0.1:0", "http.listen", Router::new().route("/livez", get(endless))).unwrap().0;
    let address = server.address();
    let mut held = TcpStream::connect(address).unwrap();
    held.write_all(b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
    begins.recv().unwrap();
    drop(server);
    std::net::TcpListener::bind(address).unwrap();
}

#[tokio::test]
async fn serve_ends_at_the_word_to_stop() {
    let stop = Stop::new();
    let listener = bind("127.0.0.1:0", "http.listen").await.unwrap();
    assert_ne!(listener.local_addr().unwrap().port(), 0);
    let serving = serve(listener, router(Health::new(), metrics()), stop.clone());
    stop.request();
    serving.await.unwrap();
}
