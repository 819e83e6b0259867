//! Each fault of the proxies, against tiny servers of this file: it happens, it is counted, and healing ends it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hyper::Method;
use testkit::chaos::{Action, Direction, HttpProxy, Loss, Rule, TcpProxy};

const SOON: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_secs(20);

/// Answers every line with the same line.
fn echo_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut writer = stream.try_clone().expect("a second handle");
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    writer.write_all(format!("{line}\n").as_bytes()).ok();
                }
            });
        }
    });
    address
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(proxy: &TcpProxy) -> Client {
        let stream = TcpStream::connect(proxy.address()).expect("the proxy listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit can be set");
        Client(BufReader::new(stream))
    }

    fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).expect("the proxy takes it");
    }

    fn hear(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    fn hears_nothing(&mut self, for_so_long: Duration) -> bool {
        self.0.get_ref().set_read_timeout(Some(for_so_long)).expect("a limit can be set");
        let heard = self.hear();
        self.0.get_ref().set_read_timeout(Some(LIMIT)).expect("a limit can be set");
        heard.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }
}

#[test]
fn a_tcp_proxy_without_orders_passes_on_and_counts() {
    let proxy = TcpProxy::start(echo_server(), 1).expect("it starts");
    let mut client = Client::connect(&proxy);
    client.say("hello");
    assert_eq!(client.hear().expect("an echo"), "hello");
    let counts = proxy.counts();
    assert_eq!((counts.accepted, counts.bytes_to_server, counts.bytes_to_client), (1, 6, 6));
}

#[test]
fn a_slow_link_delays_both_ways_and_a_healed_one_does_not() {
    let proxy = TcpProxy::start(echo_server(), 1).expect("it starts");
    proxy.slow(Duration::from_millis(100), Duration::from_millis(50));
    let mut client = Client::connect(&proxy);
    let started = Instant::now();
    client.say("late");
    assert_eq!(client.hear().expect("an echo"), "late");
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
    proxy.heal();
    let started = Instant::now();
    client.say("soon");
    assert_eq!(client.hear().expect("an echo"), "soon");
    assert!(started.elapsed() < Duration::from_millis(200), "{:?}", started.elapsed());
}

#[test]
fn a_narrow_link_carries_no_more_than_it_was_given() {
    let proxy = TcpProxy::start(echo_server(), 1).expect("it starts");
    proxy.narrow(100_000);
    let mut client = Client::connect(&proxy);
    let line = "x".repeat(20_000);
    let started = Instant::now();
    client.say(&line);
    assert_eq!(client.hear().expect("an echo"), line);
    // Both directions at once, and the last chunks of each add up to at least the time of one.
    assert!(started.elapsed() >= Duration::from_millis(200), "{:?}", started.elapsed());
}

#[test]
fn a_silent_direction_holds_what_is_sent_and_delivers_it_once_healed() {
    for (direction, reaches_server) in
        [(Direction::ToServer, false), (Direction::ToClient, true), (Direction::Both, false)]
    {
        let proxy = TcpProxy::start(echo_server(), 1).expect("it starts");
        let mut client = Client::connect(&proxy);
        client.say("one");
        assert_eq!(client.hear().expect("an echo"), "one");
        proxy.silence(direction);
        client.say("two");
        assert!(client.hears_nothing(SOON), "{direction:?}");
        assert_eq!(proxy.counts().bytes_to_server > 4, reaches_server, "{direction:?}");
        proxy.heal();
        assert_eq!(client.hear().expect("what was held"), "two");
    }
}

#[test]
fn a_cut_resets_what_there_is_and_new_connections_are_taken() {
    let proxy = TcpProxy::start(echo_server(), 1).expect("it starts");
    let mut client = Client::connect(&proxy);
    client.say("one");
    assert_eq!(client.hear().expect("an echo"), "one");
    proxy.cut();
    assert_eq!(client.hear().expect_err("it was cut").kind(), ErrorKind::ConnectionReset);
    let mut next = Client::connect(&proxy);
    next.say("two");
    assert_eq!(next.hear().expect("an echo"), "two");
    assert_eq!(proxy.counts().cut, 1);
}

#[test]
fn what_is_held_back_is_lost_with_a_cut_that_is_healed_at_once() {
    let proxy = TcpProxy::start(echo_server(), 1).expect("it starts");
    // Both orders may be seen at the same moment, or one after the other: neither lets anything through.
    for _ in 0..30 {
        let mut client = Client::connect(&proxy);
        client.say("one");
        assert_eq!(client.hear().expect("an echo"), "one");
        let delivered = proxy.counts().bytes_to_server;
        proxy.silence(Direction::ToServer);
        client.say("two");
        assert!(client.hears_nothing(Duration::from_millis(20)));
        proxy.cut();
        proxy.heal();
        client.hear().expect_err("it was cut");
        assert_eq!(proxy.counts().bytes_to_server, delivered);
    }
}

#[test]
fn new_connections_are_reset_while_refused_or_while_the_server_is_away() {
    let proxy = TcpProxy::start(echo_server(), 1).expect("it starts");
    proxy.refuse();
    Client::connect(&proxy).hear().expect_err("it was reset");
    proxy.heal();
    let mut client = Client::connect(&proxy);
    client.say("one");
    assert_eq!(client.hear().expect("an echo"), "one");
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port is free");
    proxy.forward_to(nobody);
    Client::connect(&proxy).hear().expect_err("there is nobody");
    assert_eq!(proxy.counts().refused, 2);
}

/// Keeps objects by path: PUT stores (412 where `if-none-match` is violated), GET answers. One request a connection.
#[derive(Clone, Default)]
struct Objects(Arc<Mutex<BTreeMap<String, Vec<u8>>>>);

impl Objects {
    fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let objects = self.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                objects.answer(stream).ok();
            }
        });
        address
    }

    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut first, mut length, mut only_new) = (String::new(), 0, false);
        reader.read_line(&mut first)?;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
            only_new |= line.starts_with("if-none-match:");
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or("").to_owned());
        let mut objects = self.0.lock().expect("nobody panicked");
        let (status, answer) = match (method, objects.get(&path)) {
            ("PUT", Some(_)) if only_new => ("412 Precondition Failed", Vec::new()),
            ("PUT", _) => {
                objects.insert(path, body);
                ("200 OK", Vec::new())
            }
            (_, Some(object)) => ("200 OK", object.clone()),
            _ => ("404 Not Found", Vec::new()),
        };
        let mut stream = stream;
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len())?;
        stream.write_all(&answer)
    }

    fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.0.lock().expect("nobody panicked").get(path).cloned()
    }
}

/// Status and body of one request; an error where the connection ended early.
fn ask(proxy: &HttpProxy, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(proxy.endpoint().trim_start_matches("http://"))?;
    stream.set_read_timeout(Some(SOON * 3))?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nIf-None-Match: *\r\nConnection: close\r\n");
    stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    let announced =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    if announced.is_some_and(|announced: usize| announced > body.len()) {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}

fn proxied() -> (Objects, HttpProxy) {
    let objects = Objects::default();
    let proxy = HttpProxy::start(objects.serve(), 1).expect("it starts");
    (objects, proxy)
}

#[test]
fn an_http_proxy_without_rules_passes_on() {
    let (objects, proxy) = proxied();
    assert_eq!(ask(&proxy, "PUT", "/lake/a", "one").expect("an answer").0, 200);
    assert_eq!(ask(&proxy, "GET", "/lake/a", "").expect("an answer"), (200, "one".to_owned()));
    assert_eq!(ask(&proxy, "PUT", "/lake/a", "two").expect("an answer").0, 412);
    assert_eq!((objects.get("/lake/a").as_deref(), proxy.requests()), (Some(b"one".as_slice()), 3));
}

#[test]
fn an_answer_of_the_proxy_has_no_effect_and_a_rule_takes_what_it_names() {
    let (objects, proxy) = proxied();
    let slow_down =
        Rule::new(Action::Answer(503, "SlowDown")).method(Method::PUT).path("/lake/*.json").skip(1).times(2);
    let rule = proxy.add(slow_down);
    let status = |path: &str| ask(&proxy, "PUT", path, "x").expect("an answer").0;
    assert_eq!(["/lake/1.json", "/lake/2.json", "/lake/x.parquet", "/lake/3.json"].map(status), [200, 503, 200, 503]);
    assert!(ask(&proxy, "PUT", "/lake/2.json", "x").is_ok_and(|(status, _)| status == 200), "two times only");
    assert_eq!((proxy.taken(rule), objects.get("/lake/3.json")), (2, None));
    assert!(ask(&proxy, "GET", "/lake/2.json", "").is_ok_and(|(status, _)| status == 200), "PUT only");
}

#[test]
fn a_lost_reply_has_its_effect() {
    for (seen, path) in [(Loss::Disconnect, "/lake/a"), (Loss::Error, "/lake/b")] {
        let (objects, proxy) = proxied();
        let rule = proxy.add(Rule::new(Action::LoseReply { hold: Duration::ZERO, seen }).times(1));
        match ask(&proxy, "PUT", path, "one") {
            Ok((status, body)) => assert!(seen == Loss::Error && status == 500 && body.contains("InternalError")),
            Err(_) => assert_eq!(seen, Loss::Disconnect),
        }
        assert_eq!(objects.get(path).as_deref(), Some(b"one".as_slice()), "{seen:?}");
        assert_eq!(ask(&proxy, "PUT", path, "two").expect("an answer").0, 412, "as the client's retry finds out");
        assert_eq!(proxy.taken(rule), 1);
    }
}

#[test]
fn only_the_reply_of_what_the_server_has_carried_out_is_lost() {
    let (_objects, proxy) = proxied();
    assert_eq!(ask(&proxy, "PUT", "/lake/a", "one").expect("an answer").0, 200);
    let lost = Action::LoseReply { hold: Duration::ZERO, seen: Loss::Error };
    let rule = proxy.add(Rule::new(lost).method(Method::PUT).times(1));
    assert_eq!(ask(&proxy, "PUT", "/lake/a", "two").expect("an answer").0, 412, "a refusal has no effect to hide");
    assert_eq!(proxy.taken(rule), 0);
    assert_eq!(ask(&proxy, "PUT", "/lake/b", "one").expect("an answer").0, 500);
    assert_eq!((ask(&proxy, "PUT", "/lake/c", "one").expect("an answer").0, proxy.taken(rule)), (200, 1));
}

#[test]
fn a_torn_answer_ends_in_the_middle_a_delayed_one_is_late_and_a_hanging_one_never_comes() {
    let (_objects, proxy) = proxied();
    assert_eq!(ask(&proxy, "PUT", "/lake/a", "0123456789").expect("an answer").0, 200);
    proxy.add(Rule::new(Action::Tear));
    assert_eq!(ask(&proxy, "GET", "/lake/a", "").expect_err("half of it").kind(), ErrorKind::UnexpectedEof);
    proxy.heal();
    proxy.add(Rule::new(Action::Delay(SOON)));
    let started = Instant::now();
    assert_eq!(ask(&proxy, "GET", "/lake/a", "").expect("an answer").1, "0123456789");
    assert!(started.elapsed() >= SOON);
    proxy.heal();
    proxy.add(Rule::new(Action::Hang));
    ask(&proxy, "GET", "/lake/a", "").expect_err("no answer comes");
    proxy.heal();
    assert_eq!(ask(&proxy, "GET", "/lake/a", "").expect("an answer").1, "0123456789");
}

#[test]
fn chances_come_from_the_seed() {
    let pattern = |seed| {
        let proxy = HttpProxy::start(Objects::default().serve(), seed).expect("it starts");
        proxy.add(Rule::new(Action::Answer(503, "SlowDown")).percent(50));
        (0..40).map(|_| ask(&proxy, "GET", "/lake/a", "").expect("an answer").0).collect::<Vec<_>>()
    };
    let first = pattern(7);
    assert!(first.contains(&503) && first.contains(&404), "{first:?}");
    assert_eq!(first, pattern(7));
    assert_ne!(first, pattern(8));
}
