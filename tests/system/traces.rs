//! A request's trace, from HTTP to the Delta commit, as an independent decoder of OTLP sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::OpenOptions,
    io::Write as _,
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testkit::{ports::free_port, python, repository};

use crate::deployment::{Deployment, START_LIMIT};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// Collects what is sent to port 1 of trace 2, until spans of all services 3 are there and every parent is known.
const COLLECTOR: &str = r#"
import gzip, json, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest as Request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse as Response

port, trace, client, wanted = int(sys.argv[1]), sys.argv[2], sys.argv[3], set(sys.argv[4].split(","))
found = []

class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        for resource in Request.FromString(body).resource_spans:
            about = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                if span.trace_id.hex() == trace:
                    found.append({"service": about["service.name"], "name": span.name, "id": span.span_id.hex(),
                                  "parent": span.parent_span_id.hex(),
                                  "took": span.end_time_unix_nano - span.start_time_unix_nano})
        answer = Response().SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    def log_message(self, *_):
        pass

def complete():
    known = {span["id"] for span in found} | {client}
    # Each table commits at its own time: the last of a source, a view and a view on a view.
    commits = {f"settle tailwater.channel.shop.{name}.1" for name in ("lines", "line_amounts", "large_lines")}
    return (wanted <= {span["service"] for span in found} and commits <= {span["name"] for span in found}
            and all(span["parent"] in known for span in found))

server = HTTPServer(("127.0.0.1", port), Collector)
server.timeout = 0.5
deadline = time.monotonic() + 90
while not complete() and time.monotonic() < deadline:
    server.handle_request()
print(json.dumps(found))
"#;

#[test]
fn a_trace_goes_from_the_request_to_the_delta_commit() -> Result<()> {
    // Before anything is sent: what arrives while Python is being set up would be lost.
    let Some(_) = python::run("import opentelemetry.proto.trace.v1.trace_pb2", &[])? else { return Ok(()) };
    let Some(mut deployment) = Deployment::prepare()? else { return Ok(()) };
    let port = free_port()?;
    let mut config = OpenOptions::new().append(true).open(deployment.folder.path().join("tailwater.toml"))?;
    // Nothing but what comes with a trace is sampled.
    writeln!(config, "\n[telemetry]\notlp_endpoint = \"http://127.0.0.1:{port}\"\ntrace_sample_ratio = 0.0")?;
    let collector = std::thread::spawn(move || {
        python::run(COLLECTOR, &[&port.to_string(), TRACE, CLIENT_SPAN, "ingestion,transformation,storage"])
    });
    deployment.start_all()?;
    deployment.tailwater("", &["apply", &repository("pipelines/shop").display().to_string()])?;
    deployment.wait_until_ready()?;
    wait_for(port)?;
    post(&deployment)?;
    let printed = collector.join().map_err(|_| anyhow::anyhow!("the collector panicked"))??;
    let Some(printed) = printed else { return Ok(()) };
    let spans: Vec<Value> = serde_json::from_str(&printed)?;
    holds_together(&spans).with_context(|| format!("{spans:#?}\n{}", deployment.logs()))
}

/// The collector is another process: there is no event to await.
fn wait_for(port: u16) -> Result<()> {
    let started = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(started.elapsed() < START_LIMIT, "nothing collects at port {port}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// One order line, with the trace of the client's request.
fn post(deployment: &Deployment) -> Result<()> {
    let line =
        "{\"order_number\":1,\"product_code\":\"x\",\"quantity_ordered\":100,\"price_each\":99.5,\"line_number\":1}";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let address = deployment.url("ingestion");
        let stream = tokio::net::TcpStream::connect(address.trim_start_matches("http://")).await?;
        let request = format!(
            "POST /v1/ingest/shop/lines HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
             traceparent: 00-{TRACE}-{CLIENT_SPAN}-01\r\ncontent-length: {}\r\n\r\n{line}",
            line.len()
        );
        let (mut answer, mut sending) = stream.into_split();
        tokio::io::AsyncWriteExt::write_all(&mut sending, request.as_bytes()).await?;
        let mut text = String::new();
        let read = tokio::io::AsyncReadExt::read_to_string(&mut answer, &mut text);
        tokio::time::timeout(Duration::from_secs(30), read).await??;
        ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
        Ok(())
    })
}

/// Each service's part is there, and each hangs on the one before it.
fn holds_together(spans: &[Value]) -> Result<()> {
    let text = |span: &Value, key: &str| span[key].as_str().unwrap_or_default().to_owned();
    let by_id: BTreeMap<String, &Value> = spans.iter().map(|span| (text(span, "id"), span)).collect();
    let chain = |span: &Value| {
        let mut services = Vec::new();
        let mut next = Some(span);
        while let Some(span) = next {
            services.push(format!(
                "{} {}",
                text(span, "service"),
                text(span, "name").split(' ').next().unwrap_or_default()
            ));
            next = by_id.get(&text(span, "parent")).copied();
        }
        services.reverse();
        services.join(" > ")
    };
    let chains: BTreeSet<String> = spans.iter().map(chain).collect();
    for wanted in [
        "ingestion send > ingestion process > storage settle",
        "ingestion send > ingestion process > transformation process > storage settle",
        "ingestion send > ingestion process > transformation process > transformation process > storage settle",
    ] {
        ensure!(chains.contains(wanted), "no `{wanted}` among {chains:#?}");
    }
    let roots: Vec<&Value> = spans.iter().filter(|span| !by_id.contains_key(&text(span, "parent"))).collect();
    ensure!(roots.len() == 1 && roots[0]["parent"] == CLIENT_SPAN, "all hang on the client's span: {roots:?}");
    ensure!(spans.iter().all(|span| span["took"].as_u64().is_some_and(|took| took > 0)), "a span takes time");
    Ok(())
}
