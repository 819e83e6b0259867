//! Bad input and bad days of the whole program: a clear answer, nothing lost, bounded memory, no crash.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use testkit::{
    http,
    kafka::Kafka,
    ports::free_port,
    process::{Process, Program},
    s3::VersityGateway,
};
use topics::{
    Log as _, NewMessage, TopicName, TopicSettings,
    embedded::{EmbeddedLog, EmbeddedOptions},
};

use crate::deployment::START_LIMIT;

const PIPELINE: &str = "
CREATE SOURCE orders (id BIGINT NOT NULL, note VARCHAR) WITH (format = 'json');
CREATE SOURCE strict (id BIGINT NOT NULL) WITH (format = 'json', unknown_columns = 'reject');
CREATE SOURCE huge (id BIGINT NOT NULL, note VARCHAR) WITH (topic = 'user.huge', format = 'json');
";

/// A small container.
const SMALL: [&str; 3] =
    ["ingestion.memory=64MiB", "ingestion.max_body_bytes=64MiB", "ingestion.max_decompressed_bytes=64MiB"];

const MIB: u64 = 1 << 20;
/// Long enough for anything on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// `tailwater up` with one pipeline, `shop`.
struct Up {
    process: Process,
    url: String,
    folder: tempfile::TempDir,
    settings: Vec<String>,
}

impl Up {
    fn start(settings: &[&str]) -> Result<Self> {
        Self::start_in(tempfile::tempdir()?, settings)
    }

    fn start_in(folder: tempfile::TempDir, settings: &[&str]) -> Result<Self> {
        let pipeline = folder.path().join("pipelines/shop");
        fs::create_dir_all(&pipeline)?;
        fs::write(pipeline.join("shop.sql"), PIPELINE)?;
        let url = format!("http://127.0.0.1:{}", free_port()?);
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let process = Self::process(folder.path(), &url, &settings)?;
        let mut up = Self { process, url, folder, settings };
        up.wait_until_ready()?;
        Ok(up)
    }

    fn process(folder: &Path, url: &str, settings: &[String]) -> Result<Process> {
        let listen = url.trim_start_matches("http://");
        let mut program = Program::named("tailwater")?.args(["up", "--set", "storage.flush_age=100ms", "--set"]);
        program = program.arg(format!("http.listen={listen}")).in_folder(folder).log_to(folder.join("up.log"));
        for setting in settings {
            program = program.args(["--set", setting]);
        }
        program.start()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        self.process.wait_until_ready(&format!("{}/readyz?verbose", self.url), START_LIMIT)?;
        let started = Instant::now();
        // The pipeline is applied once the program runs, and seen by the door a moment later.
        while !http::get(&format!("{}/v1/sources", self.url)).is_ok_and(|(_, body)| body.contains("\"huge\"")) {
            ensure!(started.elapsed() < START_LIMIT, "the pipeline is not there: {}", self.process.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// As after a crash of the machine.
    fn kill_and_start(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process = Self::process(self.folder.path(), &self.url, &self.settings)?;
        self.wait_until_ready()
    }

    fn ingest(&self, source: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
        post(&format!("{}/v1/ingest/shop/{source}", self.url), headers, body.len(), |stream| stream.write_all(body))
    }

    /// The first row of an answer, comma-separated.
    fn sql(&self, question: &str) -> Result<String> {
        let output = Program::named("tailwater")?
            .args(["--url", &self.url, "sql", "-o", "csv", "-c", question])
            .in_folder(self.folder.path())
            .run()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{question}: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text.lines().nth(1).unwrap_or_default().to_owned())
    }

    fn wait_for(&self, question: &str, expected: &str) -> Result<()> {
        let started = Instant::now();
        loop {
            let found = self.sql(question);
            match &found {
                Ok(found) if found == expected => return Ok(()),
                _ if started.elapsed() > LIMIT => {
                    bail!("{question}: {found:?}, expected {expected}\n{}", self.process.log())
                }
                _ => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    fn is_alive(&mut self) -> Result<bool> {
        Ok(self.process.exit()?.is_none() && http::get(&format!("{}/livez", self.url))?.0 == 200)
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    body: Value,
}

/// Posts a body that `write` produces; a server that answers early and closes is heard all the same.
fn post(
    url: &str,
    headers: &[(&str, &str)],
    length: usize,
    write: impl FnOnce(&mut TcpStream) -> std::io::Result<()>,
) -> Result<Answer> {
    let rest = url.trim_start_matches("http://");
    let (host, path) = rest.split_at(rest.find('/').context("a path")?);
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    write(&mut stream).ok();
    let mut answer = Vec::new();
    // A reset after the answer does not take the answer back.
    stream.read_to_end(&mut answer).ok();
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no HTTP status line")?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    // The body may be chunked; the JSON in it is one object.
    let json = body.find('{').zip(body.rfind('}')).map(|(from, to)| &body[from..=to]);
    Ok(Answer { status, body: json.and_then(|json| serde_json::from_str(json).ok()).unwrap_or(Value::Null) })
}

/// A zstd frame of 10 kB that unpacks to `blocks` times 128 KiB of blanks: each block is one byte and how often.
fn zstd_bomb(blocks: usize, window: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
    for block in 0..blocks {
        let header = (128_u32 << 10) << 3 | 1 << 1 | u32::from(block + 1 == blocks);
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(b' ');
    }
    frame
}

/// The window descriptor of 8 MiB.
const WINDOW_8_MIB: u8 = 13 << 3;
/// … and of 2 GiB.
const WINDOW_2_GIB: u8 = 21 << 3;

/// A gzip member of about `megabytes` MB of blanks: the same copy of 258 bytes again and again.
fn gzip_bomb(megabytes: usize) -> Vec<u8> {
    let mut bits = BitWriter { bytes: vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255], held: 0, count: 0 };
    bits.put(1, 1);
    bits.put(1, 2);
    bits.put_code(0x30 + u32::from(b' '), 8);
    for _ in 0..megabytes * 1_000_000 / 258 {
        bits.put_code(0b1100_0101, 8);
        bits.put_code(0, 5);
    }
    bits.put_code(0, 7);
    bits.finish()
}

/// Bits as deflate wants them.
struct BitWriter {
    bytes: Vec<u8>,
    held: u32,
    count: u32,
}

impl BitWriter {
    fn put(&mut self, value: u32, bits: u32) {
        self.held |= value << self.count;
        self.count += bits;
        while self.count >= 8 {
            self.bytes.push(self.held.to_le_bytes()[0]);
            self.held >>= 8;
            self.count -= 8;
        }
    }

    /// Codes stand with their first bit first.
    fn put_code(&mut self, code: u32, bits: u32) {
        self.put(code.reverse_bits() >> (32 - bits), bits);
    }

    /// Ends with the checksum of something else: nobody should get that far.
    fn finish(mut self) -> Vec<u8> {
        self.put(0, 7);
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes
    }
}

#[test]
fn bombs_are_stopped_at_the_limit_and_the_process_stays_small() -> Result<()> {
    let mut up = Up::start(&SMALL)?;
    let before = up.process.usage()?;
    let started = Instant::now();
    for (packing, bomb, status, says) in [
        ("zstd", zstd_bomb(2_500, WINDOW_8_MIB), 413, "at most"),
        ("zstd", zstd_bomb(40_000, WINDOW_8_MIB), 413, "memory"),
        ("zstd", zstd_bomb(2_500, WINDOW_2_GIB), 400, "Zstd"),
        ("gzip", gzip_bomb(4_000), 413, "memory"),
    ] {
        let answer = up.ingest("orders", &[("content-encoding", packing)], &bomb)?;
        let body = answer.body.to_string();
        assert_eq!(answer.status, status, "{packing}: {body}");
        assert!(status == 413 || body.contains(says), "{packing}: {body}");
        assert_eq!(answer.body["stored"], "nothing");
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let grown = up.process.usage()?.peak_resident_bytes.saturating_sub(before.resident_bytes);
    // The budget for bodies and what the allocator keeps for a while; a bomb would be tens of times that.
    assert!(grown < 400 * MIB, "bombs of 10 GB took {} MiB", grown / MIB);
    assert_eq!(up.ingest("orders", &[], b"{\"id\":1}")?.status, 200);
    up.wait_for("SELECT count(*) FROM shop.orders", "1")?;
    assert!(up.is_alive()?);
    Ok(())
}

#[test]
fn a_json_object_of_200_mb_is_refused_over_http_and_a_dead_letter_in_a_topic() -> Result<()> {
    let folder = tempfile::tempdir()?;
    fill_huge_topic(&folder.path().join(".tailwater/log"))?;
    let mut up = Up::start_in(folder, &SMALL)?;
    let blanks = vec![b'x'; 1 << 20];
    let answer = post(&format!("{}/v1/ingest/shop/orders", up.url), &[], 200 << 20, |stream| {
        stream.write_all(b"{\"id\":1,\"note\":\"")?;
        (0..200).try_for_each(|_| stream.write_all(&blanks))
    })?;
    assert_eq!((answer.status, &answer.body["stored"]), (413, &"nothing".into()), "{}", answer.body);
    assert!(answer.body["hint"].as_str().unwrap_or_default().contains("ingestion.max_body_bytes"), "{}", answer.body);

    up.wait_for("SELECT count(*), sum(id) FROM shop.huge", "2,4")?;
    let question = "SELECT count(DISTINCT \"offset\"), min(\"offset\") FROM shop.huge_rejected WHERE reason LIKE '%at most 67108864%'";
    up.wait_for(question, "1,1")?;
    let peak = up.process.usage()?.peak_resident_bytes;
    // A few copies of it, in the log's pages and its readers: no more than that.
    assert!(peak < 1_500 * MIB, "one message of 200 MB made the process {} MiB large", peak / MIB);
    assert!(up.is_alive()?);
    Ok(())
}

/// A row, 200 MB in one message, and a row.
fn fill_huge_topic(folder: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let options = EmbeddedOptions { max_inflight_bytes: 300 << 20, ..EmbeddedOptions::default() };
        let log = EmbeddedLog::open(folder, options)?;
        let topic = TopicName::try_from("user.huge".to_owned())?;
        log.create(&topic, &TopicSettings { max_message_bytes: 256 << 20, ..TopicSettings::default() }).await?;
        let huge = format!("{{\"id\":2,\"note\":\"{}\"}}", "x".repeat(200_000_000));
        for payload in ["{\"id\":1}".to_owned(), huge, "{\"id\":3}".to_owned()] {
            log.appender().append(&topic, 0, NewMessage::of(payload)).await?.await?;
        }
        Ok(())
    })
}

#[test]
fn what_does_not_fit_a_source_is_named_and_kept() -> Result<()> {
    let mut up = Up::start(&[])?;
    let answer = up.ingest("ordrs", &[], b"{\"id\":1}")?;
    assert_eq!(answer.status, 404);
    assert!(answer.body.to_string().contains("did you mean `orders`"), "{}", answer.body);
    let body =
        b"{\"id\":1}\n{\"id\":\"one\"}\n{\"note\":\"no id\"}\n{\"id\":2,\"extra\":7}\n{\"id\":3,\"note\":\"cut off";
    assert_eq!(up.ingest("orders", &[("content-type", "application/x-ndjson")], body)?.status, 200);
    assert_eq!(up.ingest("strict", &[], b"{\"id\":1,\"extra\":7}{\"id\":2}")?.status, 200);
    let arrow = [("content-type", "application/vnd.apache.arrow.stream")];
    for stream in [&b"ARROW1\0\0"[..], &[0xff; 64], &[0xff, 0xff, 0xff, 0xff, 0xf0, 0xff, 0xff, 0x7f, 0, 0]] {
        let answer = up.ingest("orders", &arrow, stream)?;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert_eq!(answer.body["stored"], "nothing");
    }
    up.wait_for("SELECT count(*), sum(id) FROM shop.orders", "2,3")?;
    up.wait_for("SELECT count(*), min(\"column\") FROM shop.orders_rejected", "3,id")?;
    up.wait_for("SELECT count(*), min(\"column\") FROM shop.strict_rejected", "1,extra")?;
    up.wait_for("SELECT count(*) FROM shop.strict", "1")?;
    assert!(up.is_alive()?);
    Ok(())
}

#[test]
fn a_missing_bucket_is_named_by_every_service() -> Result<()> {
    let Some(store) = VersityGateway::start()? else { return Ok(()) };
    for name in ["tailwater", "ingestion", "transformation", "analysis"] {
        let folder = tempfile::tempdir()?;
        let mut program = Program::named(name)?;
        if name == "tailwater" {
            program = program.args(["up", "--set", "http.listen=127.0.0.1:0"]);
        } else {
            program = program.args(["--set".to_owned(), format!("{name}.listen=127.0.0.1:0")]);
        }
        program = program.args(["--set", "store.url=s3://nowhere/lake"]);
        for (key, value) in store.options() {
            program = program.args(["--set".to_owned(), format!("store.options.{key}={value}")]);
        }
        let output = program.in_folder(folder.path()).run()?;
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{name}");
        assert!(text.contains("nowhere") && text.contains("bucket"), "{name}: {text}");
    }
    Ok(())
}

#[test]
fn a_broker_that_comes_up_later_is_all_that_was_missing() -> Result<()> {
    let Some(mut kafka) = Kafka::start()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    kafka.stop()?;
    let port = free_port()?;
    let program = Program::named("ingestion")?
        .args(["--set", "log.kind=kafka", "--set"])
        .arg(format!("log.brokers={}", kafka.brokers()))
        .arg("--set")
        .arg(format!("ingestion.listen=127.0.0.1:{port}"))
        .in_folder(folder.path());
    let output = program.run()?;
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "a supervisor starts it again: {text}");
    assert!(text.contains(&kafka.brokers()) && text.contains("start it"), "{text}");
    kafka.restart()?;
    let mut process = program.start()?;
    process.wait_until_ready(&format!("http://127.0.0.1:{port}/readyz?verbose"), START_LIMIT)
}

/// A disk of its own, as small as one likes. `None`, loudly, where this user may not make one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path, mebibytes: u32) -> Result<Option<Self>> {
        fs::create_dir_all(folder)?;
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: a full disk needs the right to mount a tmpfs (run as root)");
            return Ok(None);
        }
        Ok(Some(Self(folder.to_owned())))
    }

    fn grow(&self, mebibytes: u32) -> Result<()> {
        let options = format!("remount,size={mebibytes}m");
        let done = Command::new("mount").args(["-o", &options]).arg(&self.0).status()?;
        ensure!(done.success(), "the disk did not grow");
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_disk_is_said_and_what_was_acknowledged_stays() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::mount(&folder.path().join(".tailwater"), 32)? else { return Ok(()) };
    let mut up = Up::start_in(folder, &[])?;
    let body = |request: u64| -> String {
        let note = "x".repeat(1000);
        (0..500).map(|row| format!("{{\"id\":{},\"note\":\"{note}\"}}\n", 1000 * request + row)).collect()
    };
    let send = |up: &Up, request: u64| {
        let key = format!("till:{request}");
        let headers = [("content-type", "application/x-ndjson"), ("idempotency-key", key.as_str())];
        up.ingest("orders", &headers, body(request).as_bytes())
    };
    let mut request = 0;
    let refusal = loop {
        let answer = send(&up, request)?;
        if answer.status != 200 {
            break answer;
        }
        request += 1;
        ensure!(request < 100, "50 MB fit a disk of 32 MB");
    };
    assert_eq!((refusal.status, &refusal.body["retry"]), (503, &true.into()), "{}", refusal.body);
    assert_eq!(refusal.body["stored"], "unknown");
    assert!(refusal.body["error"].as_str().unwrap_or_default().contains("disk is full"), "{}", refusal.body);
    assert!(up.process.log().contains("is full"), "{}", up.process.log());
    assert!(up.is_alive()?);

    disk.grow(512)?;
    let started = Instant::now();
    while send(&up, request)?.status != 200 {
        ensure!(started.elapsed() < LIMIT, "it does not go on: {}", up.process.log());
    }
    let rows = 500 * (request + 1);
    let ids = (0..=request).map(|request| 500 * 1000 * request + 499 * 500 / 2).sum::<u64>();
    let question = "SELECT count(*), count(DISTINCT id), sum(id) FROM shop.orders";
    up.wait_for(question, &format!("{rows},{rows},{ids}"))?;
    up.kill_and_start()?;
    up.wait_for(question, &format!("{rows},{rows},{ids}"))?;
    // The process before its disk.
    up.process.kill()
}

#[test]
fn a_file_that_is_ingested_while_the_program_is_killed_is_stored_once() -> Result<()> {
    let mut up = Up::start(&[])?;
    let file = up.folder.path().join("orders.ndjson");
    let note = "a note that makes the row longer ".repeat(6);
    let rows = 150_000_u64;
    fs::write(&file, (0..rows).map(|id| format!("{{\"id\":{id},\"note\":\"{note}\"}}\n")).collect::<String>())?;
    let mut ingest = Program::named("tailwater")?
        .args(["--url", &up.url, "ingest", "shop.orders"])
        .arg(file.as_os_str())
        .in_folder(up.folder.path())
        .start()?;
    let metrics = format!("{}/metrics", up.url);
    let started = Instant::now();
    while !http::get(&metrics).is_ok_and(|(_, text)| text.contains("http_requests_total{status=\"200\"}")) {
        ensure!(started.elapsed() < LIMIT, "no part was sent: {}", ingest.log());
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(ingest.exit()?.is_none(), "the kill must come while the file is on its way");
    up.kill_and_start()?;
    let ended = ingest.wait(LIMIT)?;
    assert!(ended.success(), "{}", ingest.log());
    assert!(ingest.log().contains("trying again"), "{}", ingest.log());
    let expected = format!("{rows},{rows},{}", rows * (rows - 1) / 2);
    up.wait_for("SELECT count(*), count(DISTINCT id), sum(id) FROM shop.orders", &expected)
}

#[test]
fn a_change_that_needs_a_permission_is_left_to_apply_and_the_program_is_up() -> Result<()> {
    let mut up = Up::start(&[])?;
    let changed =
        PIPELINE.replace("CREATE SOURCE orders (id BIGINT NOT NULL, note", "CREATE SOURCE orders (id INT, note");
    fs::write(up.folder.path().join("pipelines/shop/shop.sql"), changed)?;
    up.kill_and_start()?;
    let started = Instant::now();
    while !up.process.log().contains("changing `orders` needs --replace") {
        ensure!(started.elapsed() < LIMIT, "{}", up.process.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    let apply = ["--url", &up.url, "apply", "pipelines/shop", "--replace"];
    let applied = Program::named("tailwater")?.args(apply).in_folder(up.folder.path()).run()?;
    ensure!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    Ok(())
}
