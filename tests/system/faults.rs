//! Each of the four processes killed once while rows flow: none lost, none doubled.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::Result;
use testkit::{rows::Orders, seed::Seed};
use topics::{
    Log as _, NewMessage, TopicName, TopicSettings,
    kafka::{KafkaConfig, KafkaLog},
};

use crate::deployment::{Deployment, account, settled};

const PIPELINE: &str = "
CREATE SOURCE orders (
  order_id BIGINT NOT NULL, customer_id BIGINT, amount DECIMAL(12, 2), country VARCHAR, ordered_at TIMESTAMP,
  WATERMARK FOR ordered_at AS ordered_at - INTERVAL '5 seconds'
) WITH (topic = 'shop.orders', format = 'json');

CREATE MATERIALIZED VIEW odd_orders AS
SELECT order_id, amount, upper(country) AS country FROM orders WHERE order_id % 2 = 1;
";

/// Rows sent between one kill and the next.
const ROWS_PER_ROUND: usize = 20_000;

#[test]
fn killing_each_process_once_loses_and_doubles_nothing() -> Result<()> {
    let Some(mut deployment) = Deployment::prepare()? else { return Ok(()) };
    let seed = Seed::of("killing_each_process_once_loses_and_doubles_nothing");
    deployment.start_all()?;
    let folder = deployment.folder.path().join("pipelines/faults");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("orders.sql"), PIPELINE)?;
    let mut producer = Producer::connect(&deployment, seed.value())?;
    deployment.tailwater("", &["apply", &folder.display().to_string()])?;

    for victim in ["ingestion", "transformation-1", "storage-1", "analysis", "transformation-2", "storage-2"] {
        producer.send(ROWS_PER_ROUND)?;
        deployment.kill(victim)?;
        producer.send(ROWS_PER_ROUND)?;
        deployment.start(victim)?;
    }
    let sent = producer.sent;
    let ledger = deployment.wait_for_ledger(Duration::from_secs(120), |ledger| {
        settled(ledger)
            && account(ledger, "faults.orders")["stored"] == sent
            && account(ledger, "faults.odd_orders")["read"] == sent
    })?;
    assert_eq!(account(&ledger, "faults.orders")["rejected"], 0);
    assert_eq!(account(&ledger, "faults.odd_orders")["stored"], sent / 2);

    let question = "SELECT count(*), count(DISTINCT order_id), sum(order_id), sum(amount) FROM faults.orders";
    let answer = deployment.tailwater("analysis", &["sql", "-o", "csv", "-c", question])?;
    let expected = format!("{sent},{sent},{},{}", sent * (sent - 1) / 2, decimal(producer.cents));
    assert_eq!(answer.lines().nth(1), Some(expected.as_str()), "every order once, with its amount");
    let question = "SELECT count(DISTINCT order_id), sum(order_id) FROM faults.odd_orders";
    let answer = deployment.tailwater("analysis", &["sql", "-o", "csv", "-c", question])?;
    assert_eq!(answer.lines().nth(1), Some(format!("{},{}", sent / 2, (sent / 2) * (sent / 2)).as_str()));
    Ok(())
}

fn decimal(cents: u64) -> String {
    format!("{}.{:02}", cents / 100, cents % 100)
}

/// Sends orders, one JSON object a message, and waits until they are durable.
struct Producer {
    runtime: tokio::runtime::Runtime,
    log: KafkaLog,
    topic: TopicName,
    orders: Orders,
    sent: u64,
    cents: u64,
}

impl Producer {
    fn connect(deployment: &Deployment, seed: u64) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let topic = TopicName::try_from("shop.orders".to_owned())?;
        let config = KafkaConfig {
            brokers: deployment.kafka.brokers(),
            properties: BTreeMap::new(),
            max_inflight_bytes: 16 << 20,
            fetch_bytes_per_partition: 1 << 20,
            client_id: "test".to_owned(),
        };
        let log = runtime.block_on(async {
            let log = KafkaLog::connect(config).await?;
            log.create(&topic, &TopicSettings { partitions: 4, ..TopicSettings::default() }).await?;
            Ok::<_, anyhow::Error>(log)
        })?;
        Ok(Self { runtime, log, topic, orders: Orders::new(seed), sent: 0, cents: 0 })
    }

    fn send(&mut self, rows: usize) -> Result<()> {
        let appender = self.log.appender();
        let mut receipts = Vec::with_capacity(rows);
        for _ in 0..rows {
            let mut line = Vec::new();
            let order = self.orders.write_next(&mut line);
            let message = NewMessage { payload: line.into(), ..NewMessage::default() };
            let partition = (order.order_id % 4) as u32;
            receipts.push(self.runtime.block_on(appender.append(&self.topic, partition, message))?);
            self.sent += 1;
            self.cents += order.amount_cents;
        }
        self.runtime.block_on(async {
            for receipt in receipts {
                receipt.await?;
            }
            Ok(())
        })
    }
}
