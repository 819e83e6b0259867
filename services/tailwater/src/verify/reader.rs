//! The second reading: a program by other people reads the same table and must see the same.
//!
//! The program gets one JSON object on standard input: `url` of the table, the store's `options` under their
//! object_store names, and the `version` to read. It prints one with `rows`, `distinct` (of run_id, producer, key and
//! seq), `sums` of `key`, `seq` and `crc` as text, and `checksum`: the sum modulo 2^64, as text, of the CRC-32 that it
//! works out itself for each row, over the text of run_id, producer, key, seq, batch, batch_rows, sent_at (microseconds)
//! and payload, with the character U+001F between them. `pipelines/verify/readers` has two such programs.

use std::process::Stdio;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{
    finding::{Example, Finding, Id},
    judge::Sums,
};

#[derive(Debug, Deserialize)]
struct Answer {
    rows: u64,
    distinct: u64,
    sums: AnsweredSums,
    checksum: String,
}

#[derive(Debug, Deserialize)]
struct AnsweredSums {
    key: String,
    seq: String,
    crc: String,
}

/// What is asked.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Question {
    pub(crate) url: String,
    pub(crate) options: std::collections::BTreeMap<String, String>,
    pub(crate) version: Option<u64>,
}

/// Runs a reader through the shell; secrets go by its standard input, never by its arguments.
pub(crate) async fn ask(command: &str, question: &Question, ours: Sums) -> anyhow::Result<Finding> {
    let printed = run(command, &serde_json::to_vec(question)?).await.with_context(|| format!("reader `{command}`"))?;
    let answer: Answer = serde_json::from_slice(&printed)
        .with_context(|| format!("reader `{command}` printed `{}`", String::from_utf8_lossy(&printed).trim_end()))?;
    Ok(compare(&answer, ours))
}

async fn run(command: &str, input: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A reader that does not look at its input is told nothing, which shows in its answer.
        let _unread = stdin.write_all(input).await;
    }
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("it ended with {}", output.status);
    }
    Ok(output.stdout)
}

fn compare(answer: &Answer, ours: Sums) -> Finding {
    let mut finding = Finding::of(Id::I);
    finding.checked = ours.rows;
    let pairs = [
        ("rows", ours.rows.to_string(), answer.rows.to_string()),
        ("distinct rows", ours.distinct.unwrap_or(answer.distinct).to_string(), answer.distinct.to_string()),
        ("the sum of key", ours.key.to_string(), answer.sums.key.clone()),
        ("the sum of seq", ours.seq.to_string(), answer.sums.seq.clone()),
        ("the sum of crc", ours.crc.to_string(), answer.sums.crc.clone()),
        ("the checksum of all rows", ours.checksum.to_string(), answer.checksum.clone()),
    ];
    for (name, ours, theirs) in pairs.iter().filter(|(_, ours, theirs)| ours != theirs) {
        finding.violate(|| Example::plain(format!("{name}: analysis sees {ours}, the reader {theirs}")));
    }
    finding
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const OURS: Sums = Sums { rows: 3, distinct: Some(3), key: -1, seq: 7, crc: 900, checksum: u64::MAX };

    fn question() -> Question {
        Question { url: "file:///t".into(), options: [("k".to_owned(), "v".to_owned())].into(), version: Some(4) }
    }

    fn printing(rows: u64) -> String {
        format!(
            r#"echo '{{"rows":{rows},"distinct":3,"sums":{{"key":"-1","seq":"7","crc":"900"}},"checksum":"18446744073709551615"}}'"#
        )
    }

    #[tokio::test]
    async fn a_reader_that_sees_the_same_agrees_and_another_does_not() {
        let good = ask(&printing(3), &question(), OURS).await.unwrap();
        assert_eq!((good.checked, good.violations), (3, 0));
        let other = ask(&printing(2), &question(), OURS).await.unwrap();
        assert_eq!(other.violations, 1);
        assert!(other.examples[0].what.contains("analysis sees 3, the reader 2"));
        let twice = ask(&printing(3), &question(), Sums { distinct: Some(2), ..OURS }).await.unwrap();
        assert_eq!(twice.violations, 1);
        let among_strangers = ask(&printing(3), &question(), Sums { distinct: None, ..OURS }).await.unwrap();
        assert_eq!(among_strangers.violations, 0);
    }

    #[tokio::test]
    async fn a_reader_gets_the_table_on_its_standard_input() {
        let command = "grep -q '\"url\":\"file:///t\",\"options\":{\"k\":\"v\"},\"version\":4' && ".to_owned();
        assert!(ask(&(command + &printing(3)), &question(), OURS).await.is_ok());
    }

    #[tokio::test]
    async fn a_reader_that_fails_or_babbles_is_an_error() {
        assert!(ask("exit 3", &question(), OURS).await.unwrap_err().chain().any(|link| link.to_string().contains('3')));
        assert!(ask("echo hello", &question(), OURS).await.unwrap_err().to_string().contains("hello"));
    }
}
