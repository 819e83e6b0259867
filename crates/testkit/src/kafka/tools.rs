//! What an administrator does to topics, by Kafka's own command line tools.
//!
//! Each call starts a virtual machine: 2 to 7 s. The tools go the direct way, past every door.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::Kafka;
use crate::peers::{self, Missing};

const POM: &str = include_str!("tools-pom.xml");

impl Kafka {
    /// Creates a topic.
    pub fn create_topic(&self, topic: &str, partitions: u32) -> Result<()> {
        self.topics(&["--create", "--topic", topic, "--partitions", &partitions.to_string()]).map(drop)
    }

    /// Gives a topic more partitions.
    pub fn grow_topic(&self, topic: &str, partitions: u32) -> Result<()> {
        self.topics(&["--alter", "--topic", topic, "--partitions", &partitions.to_string()]).map(drop)
    }

    /// Deletes a topic with all it holds, and waits until it is no longer listed.
    pub fn delete_topic(&self, topic: &str) -> Result<()> {
        self.topics(&["--delete", "--topic", topic])?;
        while self.topics(&["--list"])?.lines().any(|listed| listed == topic) {}
        Ok(())
    }

    /// All topics, one a line.
    pub fn list_topics(&self) -> Result<String> {
        self.topics(&["--list"])
    }

    /// Deletes what lies before `offset` in a partition, as retention would.
    pub fn delete_records(&self, topic: &str, partition: u32, offset: u64) -> Result<()> {
        let request = self.folder.path().join(format!("delete-{topic}-{partition}.json"));
        let places =
            json!({ "version": 1, "partitions": [{ "topic": topic, "partition": partition, "offset": offset }] });
        fs::write(&request, places.to_string())?;
        let file = request.display().to_string();
        self.tool("org.apache.kafka.tools.DeleteRecordsCommand", &["--offset-json-file", &file]).map(drop)
    }

    /// The broker (from 0) that leads a partition now.
    pub fn leader(&self, topic: &str, partition: u32) -> Result<usize> {
        let described = self.topics(&["--describe", "--topic", topic])?;
        let place = format!("Partition: {partition}\t");
        let line = described.lines().find(|line| line.contains(&place)).context("no such partition")?;
        let leader = line.split("Leader: ").nth(1).and_then(|rest| rest.split_whitespace().next());
        let id: usize =
            leader.context("a leader")?.parse().with_context(|| format!("partition without leader: {line}"))?;
        Ok(id - 1)
    }

    fn topics(&self, arguments: &[&str]) -> Result<String> {
        self.tool("org.apache.kafka.tools.TopicCommand", arguments)
    }

    /// Runs one of Kafka's tools by its class; its standard output.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> Result<String> {
        let jars = jars().map_err(|Missing(reason)| anyhow::anyhow!(reason))?;
        let mut command = Command::new("java");
        command
            .args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=ERROR", "-cp"])
            .arg(format!("{}/*", jars.display()))
            .arg(class)
            .args(["--bootstrap-server", &self.brokers()])
            .args(arguments);
        peers::run(&mut command)
    }
}

fn jars() -> Result<PathBuf, Missing> {
    Ok(peers::jars("kafka-tools-4.3.1", POM)?)
}
