//! Each stage by itself, on data that stays in memory: ceilings, not promises.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use arrow::array::{Int64Array, RecordBatch};
use batch::{Compression, Limits, decode_batch, encode_stream, with_offsets};
use bytes::Bytes;
use engine::RowProgram;
use ingestion::decode::Decoder;
use lake::{Advance, Commit, FileWriter, Lake, StoreConfig, Table, TableSpec, WriterOptions};
use pipeline::{Catalog, Graph, Permissions, SourceText};
use testkit::{
    kafka::Kafka,
    rows::{Bids, TimeStyle},
};
use tokio::runtime::Runtime;
use topics::{
    Appender, Log, Message, NewMessage, TopicName, TopicSettings,
    embedded::{EmbeddedLog, EmbeddedOptions},
    kafka::{KafkaConfig, KafkaLog},
    memory::MemoryLog,
};

use crate::{
    limit::Limit,
    stopwatch::{Figure, print_head, repeat},
};

/// Rows of one batch.
pub(crate) const ROWS: usize = 8192;

/// The pipeline of all benches: bids as they come, and a view that computes and filters.
pub(crate) const PIPELINE: &str = "
CREATE SOURCE bids (
  auction BIGINT NOT NULL, bidder BIGINT, price BIGINT, channel VARCHAR, url VARCHAR, date_time TIMESTAMP, extra VARCHAR,
  WATERMARK FOR date_time AS date_time - INTERVAL '4 seconds'
) WITH (topic = 'bids', format = 'json');
";

/// A view over the bids; its rows go to a table of their own.
pub(crate) const VIEW: &str = "
CREATE MATERIALIZED VIEW euro_bids AS
SELECT auction, bidder, CAST(price * 0.908 AS DECIMAL(23, 3)) AS price, date_time FROM bids WHERE auction % 123 = 0;
";

pub(crate) fn run(runtime: &Runtime) -> Result<()> {
    let graph = graph()?;
    let mut bids = Bids::with_time(1, TimeStyle::EpochMicros);
    let lines = bids.lines(ROWS);
    let batch = decoded(&graph, &lines)?;
    let limit = Limit::measure()?;
    print_head();
    decode(&graph, &lines, limit)?;
    codec(&batch, limit)?;
    transform(&graph, &batch)?;
    parquet(runtime, &graph, &mut bids, limit)?;
    commit(runtime, &batch)?;
    topics(runtime, &batch)
}

/// A batch as ingestion makes it.
#[cfg(feature = "stores")]
pub(crate) fn sample() -> Result<RecordBatch> {
    decoded(&graph()?, &Bids::with_time(1, TimeStyle::EpochMicros).lines(ROWS))
}

fn graph() -> Result<Graph> {
    let file = SourceText { file: "bench.sql".into(), text: format!("{PIPELINE}{VIEW}") };
    let statements = pipeline::parse(&[file])?;
    let mut catalog = Catalog::default();
    let plan = pipeline::plan_change(&catalog, "bench", statements)?;
    let change =
        plan.into_change(Permissions { replace: false, drop: false })?.context("a new pipeline is a change")?;
    catalog.replay(&change.to_bytes())?;
    Ok(pipeline::compile(&catalog)?)
}

/// The lines as messages of `rows` objects each.
fn messages(lines: &[u8], rows: usize) -> Vec<Message> {
    let lines: Vec<&[u8]> = lines.split_inclusive(|&byte| byte == b'\n').collect();
    let payload = |chunk: &[&[u8]]| Bytes::from(chunk.concat());
    let message = |(offset, chunk)| Message {
        offset: offset as u64,
        timestamp_ms: 0,
        key: None,
        payload: payload(chunk),
        headers: Vec::new(),
    };
    lines.chunks(rows).enumerate().map(message).collect()
}

fn decoded(graph: &Graph, lines: &[u8]) -> Result<RecordBatch> {
    let source = graph.sources.first().context("the pipeline has a source")?;
    let parts = Decoder::new(source, 900_000).decode(&messages(lines, 1)).parts;
    let batches: Vec<_> = parts.into_iter().map(|part| part.batch).collect();
    Ok(arrow::compute::concat_batches(&source.schema, &batches)?)
}

fn decode(graph: &Graph, lines: &[u8], limit: Limit) -> Result<()> {
    let source = graph.sources.first().context("the pipeline has a source")?;
    for rows in [1, 100] {
        let run = messages(lines, rows);
        let mut decoder = Decoder::new(source, 900_000);
        let name = format!("decode JSON, {rows} a message");
        repeat(&name, ROWS as u64, lines.len() as u64, || {
            let decoded = decoder.decode(&run);
            anyhow::ensure!(decoded.rejected.is_empty(), "the bids are sound");
            Ok(())
        })?
        .print(Some(limit.json));
    }
    Ok(())
}

fn codec(batch: &RecordBatch, limit: Limit) -> Result<()> {
    for (name, compression, out, back) in [
        ("LZ4", Compression::Lz4, Some(limit.ipc_out), Some(limit.ipc_in)),
        ("uncompressed", Compression::None, None, None),
    ] {
        let payload = encode_stream(batch, compression)?;
        let bytes = payload.len() as u64;
        repeat(&format!("encode, {name}"), ROWS as u64, bytes, || {
            encode_stream(batch, compression)?;
            Ok(())
        })?
        .print(out);
        repeat(&format!("decode, {name}"), ROWS as u64, bytes, || {
            decode_batch(&payload, &Limits::default())?;
            Ok(())
        })?
        .print(back);
    }
    Ok(())
}

fn transform(graph: &Graph, batch: &RecordBatch) -> Result<()> {
    let view = graph.views.first().context("the pipeline has a view")?;
    let program = RowProgram::compile(&view.branches[0], &view.schema)?;
    repeat("transform: filter and decimal projection", ROWS as u64, 0, || {
        program.run(batch.clone())?;
        Ok(())
    })?
    .print(None);
    Ok(())
}

/// The bids with the hidden columns of a table.
fn table_rows(batch: &RecordBatch) -> Result<RecordBatch> {
    let with_offsets = with_offsets(batch, Int64Array::from_iter_values(0..batch.num_rows() as i64))?;
    Ok(with_offsets)
}

fn spec(rows: &RecordBatch) -> TableSpec {
    TableSpec {
        folder: "bench".into(),
        name: "bench".into(),
        schema: rows.schema(),
        partition_by: vec![],
        statistics: vec!["date_time".into(), "auction".into()],
    }
}

/// Different rows in every batch: the same ones again would all but vanish in the dictionaries.
fn parquet(runtime: &Runtime, graph: &Graph, bids: &mut Bids, limit: Limit) -> Result<()> {
    const BATCHES: usize = 64;
    let batches: Vec<RecordBatch> =
        (0..BATCHES).map(|_| table_rows(&decoded(graph, &bids.lines(ROWS))?)).collect::<Result<_>>()?;
    let lake = Lake::memory();
    let _entered = runtime.enter();
    let write = || -> Result<u64> {
        let mut writer = FileWriter::new(&lake, &spec(&batches[0]), WriterOptions::default())?;
        for batch in &batches {
            writer.write(batch)?;
        }
        Ok(writer.close()?.iter().map(|file| file.bytes.len() as u64).sum())
    };
    let bytes = write()?;
    repeat("write Parquet, ZSTD 1", (ROWS * BATCHES) as u64, bytes, || {
        write()?;
        Ok(())
    })?
    .print(Some(limit.parquet));
    Ok(())
}

fn commit(runtime: &Runtime, batch: &RecordBatch) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = StoreConfig { url: folder.path().display().to_string(), options: Default::default() };
    let lake = Lake::open(&store)?;
    let rows = table_rows(&batch.slice(0, 100))?;
    let mut table = runtime.block_on(Table::open_or_create(&lake, &spec(&rows)))?;
    let mut next = 0;
    let _entered = runtime.enter();
    let figure = repeat("commit of one small file, local folder", 1, 0, || {
        let mut writer = FileWriter::new(&lake, &spec(&rows), WriterOptions::default())?;
        writer.write(&rows)?;
        let files = writer.close()?;
        runtime.block_on(async {
            let mut uploaded = Vec::new();
            for file in files {
                uploaded.push(file.upload(&lake).await?);
            }
            let advances = vec![Advance { app_id: "bench".into(), from: next, to: next + 1 }];
            table.commit(Commit { files: uploaded, advances, info: Default::default() }).await?;
            next += 1;
            Ok(())
        })
    })?;
    println!(
        "| {} | {:.0} commits/s, {:.2} ms CPU each | | | | |",
        figure.name,
        figure.rows as f64 / figure.wall.as_secs_f64(),
        figure.cpu.as_secs_f64() * 1000.0 / figure.rows as f64
    );
    Ok(())
}

fn topics(runtime: &Runtime, batch: &RecordBatch) -> Result<()> {
    let folder = tempfile::tempdir()?;
    measure_topic(runtime, "memory", Arc::new(MemoryLog::new()), batch, Compression::None)?;
    let embedded = EmbeddedLog::open(folder.path(), EmbeddedOptions::default())?;
    measure_topic(runtime, "embedded", Arc::new(embedded), batch, Compression::None)?;
    let Some(kafka) = Kafka::start()? else { return Ok(()) };
    let config = KafkaConfig {
        brokers: kafka.brokers(),
        properties: Default::default(),
        max_inflight_bytes: 64 << 20,
        fetch_bytes_per_partition: 8 << 20,
        client_id: "bench".into(),
    };
    let log = runtime.block_on(KafkaLog::connect(config))?;
    measure_topic(runtime, "Kafka", Arc::new(log), batch, Compression::Lz4)
}

/// Appends about half a gigabyte of channel messages, then reads them back.
fn measure_topic(
    runtime: &Runtime,
    name: &str,
    log: Arc<dyn Log>,
    batch: &RecordBatch,
    compression: Compression,
) -> Result<()> {
    const MESSAGES: u64 = 600;
    let half = batch.slice(0, ROWS / 2);
    let payload = encode_stream(&half, compression)?;
    let topic = TopicName::try_from("bench".to_owned())?;
    runtime.block_on(log.create(&topic, &TopicSettings::default()))?;
    let (rows, bytes) = (MESSAGES * half.num_rows() as u64, MESSAGES * payload.len() as u64);
    timed(&format!("append, {name}"), rows, bytes, || {
        runtime.block_on(append_all(log.appender(), &topic, &payload, MESSAGES))
    })?;
    timed(&format!("read, {name}"), rows, bytes, || {
        runtime.block_on(async {
            let mut reader = log.reader(&topic, 0, 0).await?;
            let mut read = 0;
            while read < MESSAGES {
                read += reader.read(4 << 20).await?.len() as u64;
            }
            Ok(())
        })
    })
}

async fn append_all(appender: Arc<dyn Appender>, topic: &TopicName, payload: &Bytes, messages: u64) -> Result<()> {
    let mut receipts = Vec::new();
    for _ in 0..messages {
        receipts.push(appender.append(topic, 0, NewMessage::of(payload.clone())).await?);
    }
    for receipt in receipts {
        receipt.await?;
    }
    Ok(())
}

/// Does `work` once and prints what it took.
pub(crate) fn timed(name: &str, rows: u64, bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = testkit::process::Usage::of(std::process::id())?.cpu;
    let started = std::time::Instant::now();
    work()?;
    let wall = started.elapsed();
    let cpu = testkit::process::Usage::of(std::process::id())?.cpu - before;
    Figure { name: name.to_owned(), rows, bytes, wall, cpu }.print(None);
    Ok(())
}
