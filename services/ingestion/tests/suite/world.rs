//! A log, a lake and a source made by the real parser; and a reader of channels that keeps the one rule.

use std::sync::Arc;

use arrow::{array::AsArray, record_batch::RecordBatch, util::display::array_value_to_string};
use batch::{Compression, Envelope, Limits, Port, decode_batch, decode_envelope, rows_from, without_offsets};
use delivery::{Ends, Position, Verdict};
use futures::TryStreamExt as _;
use ingestion::worker::Worker;
use lake::Lake;
use pipeline::SourceStage;
use runtime::{
    catalog::{self, ApplyFile, ApplyRequest},
    config::{Config, IngestionConfig},
    memory::Memory,
    retry::TaskError,
    supervisor::Settlements,
    tasks::Stop,
    units::{ByteSize, Duration},
};
use topics::{Log, NewMessage, TopicName, TopicSettings, memory::MemoryLog};

pub(crate) const ORDERS: &str = "CREATE SOURCE orders (
  id BIGINT NOT NULL, note VARCHAR, at TIMESTAMP, WATERMARK FOR at AS at - INTERVAL '5 seconds'
) WITH (topic = 'shop.orders', format = 'json', bounds = 'id');";

pub(crate) fn topic(name: &str) -> TopicName {
    TopicName::try_from(name.to_owned()).unwrap()
}

pub(crate) fn apply_request(sql: &str) -> ApplyRequest {
    let files = vec![ApplyFile { file: "shop.sql".into(), text: sql.into() }];
    ApplyRequest { pipeline: "shop".into(), files, replace: false, drop: false, dry_run: false }
}

/// One source, its topics, and where its tasks keep checkpoints.
pub(crate) struct World {
    pub(crate) log: Arc<MemoryLog>,
    pub(crate) lake: Lake,
    pub(crate) source: SourceStage,
    pub(crate) config: IngestionConfig,
}

impl World {
    pub(crate) async fn new(sql: &str) -> Self {
        let log = Arc::new(MemoryLog::new());
        catalog::apply(log.as_ref(), &apply_request(sql)).await.unwrap();
        let catalog = catalog::read_all(log.as_ref()).await.unwrap();
        let source = pipeline::compile(&catalog).unwrap().sources.remove(0);
        for name in [&source.topic, &source.channel, &source.rejected] {
            log.create(&topic(name), &TopicSettings::default()).await.unwrap();
        }
        let mut config = Config::default().ingestion;
        config.linger = Duration::millis(0);
        Self { log, lake: Lake::memory(), source, config }
    }

    pub(crate) async fn send<P: AsRef<[u8]>>(&self, payloads: &[P]) {
        for payload in payloads {
            self.send_with(payload.as_ref(), Vec::new()).await;
        }
    }

    pub(crate) async fn send_with(&self, payload: &[u8], headers: topics::Headers) {
        let payload = bytes::Bytes::copy_from_slice(payload);
        let message = NewMessage { payload, headers, timestamp_ms: Some(1_000), ..NewMessage::default() };
        self.log.appender().append(&topic(&self.source.topic), 0, message).await.unwrap().await.unwrap();
    }

    pub(crate) fn worker(&self) -> Arc<Worker> {
        self.worker_on(self.lake.clone(), self.config.clone())
    }

    pub(crate) fn worker_on(&self, lake: Lake, config: IngestionConfig) -> Arc<Worker> {
        Arc::new(Worker {
            source: self.source.clone(),
            topic: topic(&self.source.topic),
            partition: 0,
            log: Arc::clone(&self.log) as Arc<dyn Log>,
            lake,
            compression: Compression::None,
            config,
            settlements: Settlements::default(),
            memory: Memory::new(64 << 20),
        })
    }

    /// Runs one life until the data channel covers `until`, or the life ends by itself.
    pub(crate) async fn live_until(&self, worker: Arc<Worker>, until: Position) -> Result<(), TaskError> {
        let stop = Stop::new();
        let life = Arc::clone(&worker).run(stop.clone());
        tokio::pin!(life);
        tokio::select! {
            ended = &mut life => return ended,
            () = self.covered(until) => stop.request(),
        }
        life.await
    }

    /// All checkpoints are lost; where the task began is known.
    pub(crate) async fn forget_checkpoints(&self) {
        let store = self.lake.store();
        let all: Vec<_> = store.list(None).try_collect().await.unwrap();
        let mut forgotten = 0;
        for object in all.iter().filter(|object| object.location.as_ref().contains("/checkpoints/")) {
            object_store::ObjectStoreExt::delete(&store, &object.location).await.unwrap();
            forgotten += 1;
        }
        assert!(forgotten > 0, "there were checkpoints to forget");
    }

    /// Waits until some message of the data channel ends at or after `until`.
    pub(crate) async fn covered(&self, until: Position) {
        let channel = topic(&self.source.channel);
        let mut reader = self.log.reader(&channel, 0, 0).await.unwrap();
        loop {
            for message in reader.read(1 << 20).await.unwrap() {
                if decode_envelope(&message.headers).unwrap().origin.to >= until {
                    return;
                }
            }
        }
    }

    pub(crate) async fn input_end(&self) -> Position {
        Position::at(self.log.span(&topic(&self.source.topic), 0).await.unwrap().end)
    }

    pub(crate) async fn data(&self) -> Taken {
        self.take(&self.source.channel, Port::Data).await
    }

    pub(crate) async fn rejected(&self) -> Taken {
        self.take(&self.source.rejected, Port::Rejected).await
    }

    /// Reads a whole channel as every reader does: by the one rule.
    async fn take(&self, channel: &str, port: Port) -> Taken {
        let channel = topic(channel);
        let span = self.log.span(&channel, 0).await.unwrap();
        let mut taken = Taken::default();
        let mut next = span.start;
        let mut reader = self.log.reader(&channel, 0, span.start).await.unwrap();
        while next < span.end {
            for message in reader.read(1 << 20).await.unwrap() {
                next = message.offset + 1;
                assert!(message.payload.len() <= self.config.max_message_bytes.as_usize());
                let envelope = decode_envelope(&message.headers).unwrap();
                assert_eq!(envelope.port, port);
                let batch = decode_batch(&message.payload, &Limits::default()).unwrap();
                taken.take(envelope, &batch);
            }
        }
        taken
    }
}

/// What a reader has of a channel.
#[derive(Default)]
pub(crate) struct Taken {
    ends: Ends,
    /// (input offset, values) of each row taken.
    pub(crate) rows: Vec<(i64, String)>,
    pub(crate) envelopes: Vec<Envelope>,
    pub(crate) repeats: usize,
}

impl Taken {
    fn take(&mut self, envelope: Envelope, batch: &RecordBatch) {
        assert_eq!(envelope.rows as usize, batch.num_rows());
        assert!(envelope.totals.balanced());
        match self.ends.accept(&envelope.origin).expect("no gap") {
            Verdict::Take { from } => self.keep(&rows_from(batch, &envelope.origin, from), &envelope),
            Verdict::Heartbeat | Verdict::Repeat => self.repeats += 1,
        }
        self.envelopes.push(envelope);
    }

    fn keep(&mut self, batch: &RecordBatch, envelope: &Envelope) {
        let (batch, offsets) = without_offsets(batch).unwrap();
        let base = envelope.origin.from.offset as i64;
        for (row, offset) in offsets.values().iter().enumerate() {
            let shown = batch.columns().iter().map(|column| match column.as_binary_opt::<i32>() {
                Some(bytes) => String::from_utf8_lossy(bytes.value(row)).into_owned(),
                None => array_value_to_string(column, row).unwrap(),
            });
            self.rows.push((base + offset, shown.collect::<Vec<_>>().join("|")));
        }
    }

    pub(crate) fn end(&self) -> Position {
        self.ends.iter().next().map_or(Position::START, |(_, end)| *end)
    }
}

pub(crate) fn tiny(config: &IngestionConfig, rows: usize, bytes: u64, max_message_bytes: u64) -> IngestionConfig {
    let mut config = config.clone();
    config.batch_rows = rows;
    config.batch_bytes = ByteSize::bytes(bytes);
    config.max_message_bytes = ByteSize::bytes(max_message_bytes);
    config
}
