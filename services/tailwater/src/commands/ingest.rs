//! `tailwater ingest`: a file or standard input to a source, in parts, each durable before the next is sent.
//!
//! Every part has an idempotency key, so one whose fate is not known is sent again without doubling a row. A second run
//! of the command is another producer: it sends everything anew.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher as _,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, anyhow, bail};
use bytes::{Bytes, BytesMut};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::Method;
use runtime::{
    config::Config,
    exit::{self, Code},
    retry::Backoff,
};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::{
    arguments::{Global, IngestFormat},
    client::{Client, Door, Refused},
    commands::Failure,
    output,
};

/// A part this large keeps the broker busy and the memory small.
const PART_BYTES: usize = 4 << 20;
/// How long a part is tried again before the command gives up: longer than a restart or a failover takes.
const RETRY_FOR: Duration = Duration::from_secs(60);
/// How long one try may take: longer than the door waits for catalog, room, topic and log together …
const ANSWER_WITHIN: Duration = Duration::from_secs(120);
/// … and as long as the part takes over a slow line.
const SLOWEST_BYTES_A_SECOND: u64 = 256 << 10;

pub(crate) async fn run(
    global: &Global,
    config: &Config,
    source: &str,
    file: &Path,
    format: Option<IngestFormat>,
) -> Result<(), Failure> {
    let client = Client::new(global.url.as_deref(), config, Door::Ingestion);
    let format = match format {
        Some(format) => format,
        None => format_of(source, file)?,
    };
    let wish = Wish { source, file, format };
    let bytes = if wish.is_stdin() { None } else { Some(size_of(file)?) };
    let bar = progress_bar(source, bytes);
    let mut sender = Sender::new(&client, source, content_type(format));
    let outcome = if wish.is_stdin() {
        send(&mut sender, tokio::io::stdin(), format, &bar).await
    } else {
        let input = tokio::fs::File::open(file).await.with_context(|| format!("file `{}`", file.display()))?;
        send(&mut sender, input, format, &bar).await
    };
    bar.finish_and_clear();
    outcome.map_err(|failure| wish.cut_short(failure, sender.progress))?;
    output::note(format!("{} bytes are durable in `{source}`", sender.progress.durable));
    Ok(())
}

/// What is to be sent.
#[derive(Clone, Copy)]
struct Wish<'a> {
    source: &'a str,
    file: &'a Path,
    format: IngestFormat,
}

/// How far the input has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    /// Bytes from its beginning that are durable.
    durable: u64,
    /// Bytes after those of which it is not known.
    open: u64,
}

impl Wish<'_> {
    fn is_stdin(&self) -> bool {
        self.file == Path::new("-")
    }

    /// The end of an input of which only a part is stored, perhaps. The same command again would be another producer
    /// and would double that part, so the code does not ask for it.
    fn cut_short(&self, failure: Failure, progress: Progress) -> Failure {
        if progress == Progress::default() {
            return failure;
        }
        let error = anyhow!("{}\n{}", exit::report(failure.error.as_ref()), self.going_on(progress));
        let code = if failure.code == Code::Unavailable { Code::Failure } else { failure.code };
        Failure { error, code }
    }

    /// What became of the input, and how to send what is left of it.
    fn going_on(&self, Progress { durable, open }: Progress) -> String {
        let source = self.source;
        let mut text = format!("{durable} bytes of the input are durable in `{source}`");
        if open > 0 {
            text += &format!("; of the {open} after them it is not known: ask the table before you send those again");
        }
        // In every other format all of the input is one request, and nothing is left of it.
        if self.format == IngestFormat::Ndjson {
            let next = durable + open + 1;
            let rest = if self.is_stdin() {
                format!("… | tail -c +{next}")
            } else {
                format!("tail -c +{next} {}", in_a_shell(self.file))
            };
            text += &format!("\nto send the rest: {rest} | tailwater ingest {source} -");
        }
        text
    }
}

/// A name as it is typed.
fn in_a_shell(file: &Path) -> String {
    let name = file.display().to_string();
    let plain = |letter: char| letter.is_alphanumeric() || "/._-+,:@".contains(letter);
    if name.chars().all(plain) { name } else { format!("'{}'", name.replace('\'', r"'\''")) }
}

fn size_of(file: &Path) -> Result<u64, Failure> {
    Ok(std::fs::metadata(file).with_context(|| format!("file `{}`", file.display()))?.len())
}

/// What a file holds, by its name. What is certainly no lines of JSON is not sent as such: each would be rejected.
fn format_of(source: &str, file: &Path) -> anyhow::Result<IngestFormat> {
    let unpack = match extension_of(file) {
        "gz" => "zcat",
        "zst" => "zstdcat",
        "bz2" => "bzcat",
        "xz" => "xzcat",
        extension @ ("zip" | "parquet" | "avro" | "orc") => bail!(
            "`{}`: {extension} is not taken, but NDJSON, JSON, CSV and Arrow streams; say with --format if it is one",
            file.display()
        ),
        extension => return Ok(format_named(extension)),
    };
    let packed = Path::new(file.file_stem().unwrap_or_default());
    let format = match format_named(extension_of(packed)) {
        IngestFormat::Ndjson => "",
        IngestFormat::Json => " --format json",
        IngestFormat::Csv => " --format csv",
        IngestFormat::Arrow => " --format arrow",
    };
    let file = in_a_shell(file);
    bail!("{file} is packed; unpack it on the way: {unpack} {file} | tailwater ingest {source} -{format}")
}

fn format_named(extension: &str) -> IngestFormat {
    match extension {
        "csv" => IngestFormat::Csv,
        "json" => IngestFormat::Json,
        "arrow" | "arrows" | "ipc" => IngestFormat::Arrow,
        _ => IngestFormat::Ndjson,
    }
}

fn extension_of(file: &Path) -> &str {
    file.extension().and_then(|extension| extension.to_str()).unwrap_or_default()
}

fn content_type(format: IngestFormat) -> &'static str {
    match format {
        IngestFormat::Ndjson => "application/x-ndjson",
        IngestFormat::Json => "application/json",
        IngestFormat::Csv => "text/csv; header=present",
        IngestFormat::Arrow => "application/vnd.apache.arrow.stream",
    }
}

/// A bar on a terminal, nothing elsewhere.
pub(crate) fn progress_bar(name: &str, bytes: Option<u64>) -> ProgressBar {
    let bar = bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.set_draw_target(ProgressDrawTarget::stderr());
    let template = "{msg:24} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(name.to_owned());
    bar
}

/// Sends everything.
async fn send(
    sender: &mut Sender<'_>,
    mut input: impl AsyncRead + Unpin,
    format: IngestFormat,
    bar: &ProgressBar,
) -> Result<(), Failure> {
    let mut parts = Parts::new(format);
    loop {
        let ended = !parts.fill(&mut input).await?;
        while let Some(part) = parts.next(ended)? {
            sender.send(part, bar).await?;
            bar.set_position(sender.progress.durable);
        }
        if ended {
            return Ok(());
        }
    }
}

/// One producer: its parts are numbered.
struct Sender<'a> {
    client: &'a Client,
    source: &'a str,
    content_type: &'static str,
    producer: String,
    sequence: u64,
    progress: Progress,
    /// Whether a server was there at least once.
    reached: bool,
}

impl<'a> Sender<'a> {
    fn new(client: &'a Client, source: &'a str, content_type: &'static str) -> Self {
        // The keys of the hasher are random; what it hashes only has to be something.
        let random = RandomState::new().hash_one((std::process::id(), SystemTime::now()));
        let producer = format!("ingest-{random:016x}");
        Self { client, source, content_type, producer, sequence: 0, progress: Progress::default(), reached: false }
    }

    /// Sends one part, again while its fate is open; returns when it is durable.
    async fn send(&mut self, part: Bytes, bar: &ProgressBar) -> Result<(), Failure> {
        let key = format!("{}:{}", self.producer, self.sequence);
        let mut waits = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let bytes = part.len() as u64;
        let mut failing_since = None;
        while let Err(failure) = post_as(self.client, self.source, self.content_type, part.clone(), &key).await {
            if may_be_stored(&failure) {
                self.progress.open = bytes;
            }
            // From the first failure on: a try that takes long, at a server that is frozen, is not the only one.
            let since = *failing_since.get_or_insert_with(Instant::now);
            if !self.is_worth_retrying(&failure) || since.elapsed() >= RETRY_FOR {
                return Err(failure);
            }
            if waits.attempts() == 0 {
                bar.suspend(|| output::note(format!("{}; trying again", failure.error)));
            }
            tokio::time::sleep(waits.next()).await;
        }
        self.sequence += 1;
        self.progress = Progress { durable: self.progress.durable + bytes, open: 0 };
        self.reached = true;
        Ok(())
    }

    /// A server that was never reached is probably not there; one that was may come back.
    fn is_worth_retrying(&mut self, failure: &Failure) -> bool {
        self.reached |= unanswered(failure).is_none_or(|error| !error.is_connect());
        self.reached && may_succeed_later(failure)
    }
}

/// What became of a request that has no answer; nothing where there was one, or no request.
fn unanswered(failure: &Failure) -> Option<&reqwest::Error> {
    failure.error.chain().find_map(|cause| cause.downcast_ref())
}

/// What a proxy says in the place of a door that is gone or slow counts as well: the key makes it safe.
fn may_succeed_later(failure: &Failure) -> bool {
    let refused = failure.error.downcast_ref::<Refused>();
    refused.map_or(failure.code == Code::Unavailable, Refused::may_succeed_later)
}

/// Whether rows of a request that failed may be stored all the same.
fn may_be_stored(failure: &Failure) -> bool {
    match failure.error.downcast_ref::<Refused>() {
        Some(refused) => refused.may_be_stored(),
        None => unanswered(failure).is_some_and(|error| !error.is_connect() && !error.is_builder()),
    }
}

/// Sends one part under its key; returns when it is durable.
pub(crate) async fn post_as(
    client: &Client,
    source: &str,
    content_type: &str,
    part: Bytes,
    key: &str,
) -> Result<(), Failure> {
    let (pipeline, name) =
        source.split_once('.').ok_or_else(|| anyhow!("expected pipeline.source, found `{source}`"))?;
    let path = format!("/v1/ingest/{pipeline}/{name}");
    let within = ANSWER_WITHIN + Duration::from_secs(part.len() as u64 / SLOWEST_BYTES_A_SECOND);
    let request = client.request(Method::POST, &path).timeout(within);
    let request = request.header("content-type", content_type).header("idempotency-key", key).body(part);
    client.send(request).await?;
    Ok(())
}

/// Cuts a stream of bytes where rows end. Formats that cannot be cut at line ends go
/// whole.
struct Parts {
    format: IngestFormat,
    held: BytesMut,
}

impl Parts {
    fn new(format: IngestFormat) -> Self {
        Self { format, held: BytesMut::new() }
    }

    /// Reads more; false at the end of the input.
    async fn fill(&mut self, input: &mut (impl AsyncRead + Unpin)) -> Result<bool, Failure> {
        let target = self.held.len() + PART_BYTES;
        self.held.reserve(PART_BYTES);
        while self.held.len() < target {
            if input.read_buf(&mut self.held).await.context("input")? == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next part to send, if one is complete.
    fn next(&mut self, ended: bool) -> Result<Option<Bytes>, Failure> {
        match self.format {
            IngestFormat::Ndjson => Ok(self.take_lines(ended)),
            // A quoted field may hold newlines, so only a whole file is safe to cut by the server.
            IngestFormat::Csv | IngestFormat::Json | IngestFormat::Arrow => {
                Ok((ended && !self.held.is_empty()).then(|| self.held.split().freeze()))
            }
        }
    }

    fn take_lines(&mut self, ended: bool) -> Option<Bytes> {
        let end = if ended { self.held.len() } else { self.held.iter().rposition(|&byte| byte == b'\n')? + 1 };
        let end = end.min(self.first_cut(end));
        (end > 0).then(|| self.held.split_to(end).freeze())
    }

    /// The last line end within one part's size, so that parts stay small however much is held.
    fn first_cut(&self, end: usize) -> usize {
        if end <= 2 * PART_BYTES {
            return end;
        }
        self.held[..2 * PART_BYTES].iter().rposition(|&byte| byte == b'\n').map_or(end, |place| place + 1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read, Write as _},
        net::TcpListener,
        thread::JoinHandle,
    };

    use super::*;

    /// A server that gives these answers, one a connection; the keys of what it was sent.
    fn scripted(answers: &'static [(u16, &'static str)]) -> (String, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serve = move || answers.iter().map(|(status, body)| answer(&listener, *status, body)).collect::<Vec<_>>();
        (url, std::thread::spawn(serve))
    }

    /// Takes one request whole, and says what is to be said; its key.
    fn answer(listener: &TcpListener, status: u16, body: &str) -> String {
        let mut connection = BufReader::new(listener.accept().unwrap().0);
        let (mut key, mut length) = (String::new(), 0_usize);
        let mut line = "begins".to_owned();
        while !line.trim().is_empty() {
            line.clear();
            connection.read_line(&mut line).unwrap();
            match line.trim().split_once(": ") {
                Some(("idempotency-key", value)) => key = value.to_owned(),
                Some(("content-length", value)) => length = value.parse().unwrap(),
                _ => {}
            }
        }
        Read::read_exact(&mut connection, &mut vec![0; length]).unwrap();
        let length = body.len();
        let said = format!("HTTP/1.1 {status} said\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        connection.get_mut().write_all(said.as_bytes()).unwrap();
        key
    }

    #[tokio::test]
    async fn what_may_succeed_later_is_sent_again_under_its_key_and_nothing_else_is() {
        let (url, keys) = scripted(&[
            (502, ""),
            (408, r#"{"error":"silent","retry":true}"#),
            (200, "{}"),
            (500, r#"{"error":"a defect","retry":false,"stored":"unknown"}"#),
        ]);
        let client = Client::new(Some(&url), &Config::default(), Door::Ingestion);
        let mut sender = Sender::new(&client, "shop.orders", "application/x-ndjson");
        let bar = ProgressBar::hidden();
        sender.send(Bytes::from_static(b"{}\n"), &bar).await.unwrap();
        let failure = sender.send(Bytes::from_static(b"{ }\n"), &bar).await.unwrap_err();
        assert_eq!(failure.error.to_string(), "a defect");
        assert_eq!(sender.progress, Progress { durable: 3, open: 4 });
        let expected = [0, 0, 0, 1].map(|sequence| format!("{}:{sequence}", sender.producer));
        assert_eq!(keys.join().unwrap(), expected);
    }

    #[test]
    fn an_early_end_says_how_to_go_on_and_asks_for_the_same_again_only_where_nothing_is_stored() {
        let wish = Wish { source: "shop.orders", file: Path::new("my orders.ndjson"), format: IngestFormat::Ndjson };
        let ended = |wish: Wish<'_>, durable, open| {
            let failure = wish.cut_short(Failure::unavailable(anyhow!("gone")), Progress { durable, open });
            (failure.code, failure.error.to_string())
        };
        assert_eq!(ended(wish, 0, 0), (Code::Unavailable, "gone".to_owned()));
        let (code, text) = ended(wish, 10, 5);
        assert_eq!(code, Code::Failure);
        assert!(text.starts_with("gone\n10 bytes") && text.contains("of the 5 after them"), "{text}");
        assert!(text.ends_with("tail -c +16 'my orders.ndjson' | tailwater ingest shop.orders -"), "{text}");
        let (code, text) = ended(Wish { format: IngestFormat::Csv, ..wish }, 0, 5);
        assert_eq!(code, Code::Failure);
        assert!(text.contains("of the 5 after them") && !text.contains("the rest"), "{text}");
    }

    #[test]
    fn what_is_packed_or_of_another_kind_is_not_taken_for_lines() {
        let format = |file: &str| format_of("shop.orders", Path::new(file)).map_err(|error| error.to_string());
        assert_eq!(format("-"), Ok(IngestFormat::Ndjson));
        assert_eq!(format("data/orders.csv"), Ok(IngestFormat::Csv));
        for (file, fix) in [
            ("orders.ndjson.gz", "zcat orders.ndjson.gz | tailwater ingest shop.orders -"),
            ("data/orders.csv.zst", "zstdcat data/orders.csv.zst | tailwater ingest shop.orders - --format csv"),
            ("orders.parquet", "say with --format if it is one"),
        ] {
            assert!(format(file).is_err_and(|error| error.ends_with(fix)), "{file}");
        }
    }

    #[tokio::test]
    async fn lines_are_never_cut_and_nothing_is_lost() {
        let line = format!("{}\n", "x".repeat(1000));
        let input = line.repeat(10_000) + "last line without an end";
        let mut parts = Parts::new(IngestFormat::Ndjson);
        let mut reader = input.as_bytes();
        let mut joined = Vec::new();
        loop {
            let ended = !parts.fill(&mut reader).await.unwrap();
            while let Some(part) = parts.next(ended).unwrap() {
                assert!(ended || part.ends_with(b"\n"), "a part ends where a line ends");
                joined.extend_from_slice(&part);
            }
            if ended {
                break;
            }
        }
        assert_eq!(joined, input.as_bytes());
    }
}
