#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;
use crate::metrics::BuildInfo;

fn metrics() -> Metrics {
    Metrics::detached(BuildInfo::of("test")).unwrap().1
}

fn start(health: &Health) -> AdminServer {
    AdminServer::start("127.0.0.1:0", "http.listen", router(health.clone(), metrics())).unwrap()
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
    let server = start(&Health::new());
    let (status, body) = fetch(server.address(), "/metrics");
    assert_eq!(status, 200);
    assert!(body.contains("tailwater_build_info{service=\"test\""), "{body}");
}

#[tokio::test]
async fn health_answers_while_every_worker_is_busy() {
    let health = Health::new();
    let server = start(&health);
    // This test holds the only worker of its runtime; the blocking read would never end if the server ran on it.
    assert_eq!(fetch(server.address(), "/livez").0, 200);
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
    let server = AdminServer::start("127.0.0.1:0", "http.listen", Router::new().route("/", get(endless))).unwrap();
    let address = server.address();
    let mut held = TcpStream::connect(address).unwrap();
    held.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
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
