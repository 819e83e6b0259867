#![allow(clippy::unwrap_used)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tracing::dispatcher::with_default;
use tracing::{debug, error_span, info, info_span};

use super::*;

const INCOMING: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn config() -> TelemetryConfig {
    TelemetryConfig::default()
}

/// Runs the closure under telemetry as configured; gives what was logged.
fn logged(config: &TelemetryConfig, closure: impl FnOnce()) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let (dispatch, guard) = build(config, "test", move || writer.clone(), false).unwrap();
    with_default(&dispatch, closure);
    drop(guard);
    lines.text()
}

#[test]
fn human_lines_are_filtered_by_level_and_have_no_colour_unless_asked() {
    let text = logged(&config(), || {
        info!(rows = 7, "flushed");
        debug!("not shown");
    });
    assert!(text.contains("flushed rows=7"), "{text}");
    assert!(!text.contains("not shown") && !text.contains('\u{1b}'), "{text}");
}

#[test]
fn json_lines_are_one_object_each_with_fields_on_top() {
    let config = TelemetryConfig { logs: LogFormat::Json, level: "debug".to_owned(), ..config() };
    let text = logged(&config, || {
        let _inside = info_span!("task", task = "reader").entered();
        debug!(rows = 7, "flushed");
    });
    assert_eq!(text.lines().count(), 1);
    for part in ["\"rows\":7", "\"message\":\"flushed\"", "\"task\":\"reader\"", "\"level\":\"DEBUG\""] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
fn a_library_says_the_same_once_a_second_and_what_is_ours_or_asked_for_is_shown_each_time() {
    let config = TelemetryConfig { level: "info,hyper=debug".to_owned(), ..config() };
    let text = logged(&config, || {
        for attempt in 0..5 {
            info!(target: "object_store::client::retry", attempt, "of a library");
            info!(attempt, "of ours");
            debug!(target: "hyper::client", attempt, "asked for");
        }
    });
    let count = |part| text.lines().filter(|line| line.contains(part)).count();
    assert_eq!((count("of a library"), count("of ours"), count("asked for")), (1, 5, 5), "{text}");
}

#[test]
fn a_level_that_does_not_parse_names_the_key() {
    let config = TelemetryConfig { level: "info=loud".to_owned(), ..config() };
    let error = build(&config, "test", io::sink, false).unwrap_err();
    assert!(error.to_string().contains("`telemetry.level`"), "{error}");
}

#[test]
fn without_otlp_an_incoming_trace_is_handed_on_as_it_came() {
    // At `error`, neither span is wanted by the logs; the trace must pass all the same.
    let config = TelemetryConfig { level: "error".to_owned(), ..config() };
    logged(&config, || {
        assert_eq!(current_traceparent(), None);
        let span = span_from(Some(INCOMING), info_span!("process"));
        assert_eq!(traceparent_of(&span).as_deref(), Some(INCOMING));
        let _outer = span.entered();
        let _inner = info_span!("append").entered();
        assert_eq!(current_traceparent().as_deref(), Some(INCOMING));
    });
}

#[test]
fn a_span_without_a_trace_and_a_malformed_one_hand_on_nothing() {
    logged(&config(), || {
        let _outside = span_from(None, error_span!("process")).entered();
        assert_eq!(current_traceparent(), None);
        for malformed in [
            "",
            "hello",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            let span = span_from(Some(malformed), error_span!("process"));
            assert_eq!(traceparent_of(&span), None, "{malformed}");
        }
    });
}

#[test]
fn without_any_telemetry_nothing_is_handed_on() {
    let span = span_from(Some(INCOMING), info_span!("process"));
    assert_eq!(traceparent_of(&span), None);
}

/// An OTLP endpoint for one request, whose head and body come out before it is answered.
fn collector() -> (String, Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, requests) = sync_channel(1);
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        sender.send(request(&mut stream)).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    });
    (endpoint, requests)
}

fn request(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "the request ends early");
    }
    head.make_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    (head, body)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn with_otlp_spans_join_the_incoming_trace_and_the_guard_delivers_them() {
    let (endpoint, requests) = collector();
    let config = TelemetryConfig {
        otlp_endpoint: endpoint,
        // The sender sampled this trace, so it is recorded though no new one would be.
        trace_sample_ratio: 0.0,
        ..config()
    };
    logged(&config, || {
        let span = span_from(Some(INCOMING), info_span!("process clicks"));
        add_link(&span, "00-11111111111111111111111111111111-2222222222222222-01");
        let outgoing = traceparent_of(&span).unwrap();
        assert!(outgoing.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{outgoing}");
        assert!(outgoing.ends_with("-01") && outgoing != INCOMING, "{outgoing}");
        span.in_scope(|| assert_eq!(current_traceparent(), Some(outgoing)));
    });
    // Without waiting: the guard returns only after the answer, or the last traces would be lost.
    let (head, body) = requests.try_recv().unwrap();
    assert!(head.starts_with("post /v1/traces "), "{head}");
    assert!(contains(&body, b"process clicks"));
    assert!(contains(&body, b"service.name"));
    assert!(contains(&body, &[0x11; 16]), "the link is delivered");
}

#[test]
fn a_trace_that_is_not_sampled_is_handed_on_unsampled() {
    // Nothing is recorded, so nothing is sent to this address.
    let config =
        TelemetryConfig { otlp_endpoint: "http://127.0.0.1:9".to_owned(), trace_sample_ratio: 0.0, ..config() };
    logged(&config, || {
        let _root = info_span!("ingest").entered();
        let outgoing = current_traceparent().unwrap();
        assert!(outgoing.ends_with("-00"), "{outgoing}");
    });
}

#[test]
fn a_collector_that_never_answers_does_not_hold_up_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = TelemetryConfig {
        otlp_endpoint: format!("http://{}", listener.local_addr().unwrap()),
        trace_sample_ratio: 1.0,
        ..config()
    };
    let before = Instant::now();
    logged(&config, || drop(info_span!("ingest").entered()));
    assert!(before.elapsed() < LAST_FLUSH + Duration::from_secs(5), "{:?}", before.elapsed());
}

#[test]
fn the_traces_path_is_added_once() {
    for endpoint in ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"] {
        assert_eq!(traces_url(endpoint), "http://c:4318/v1/traces");
    }
}
