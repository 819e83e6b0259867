//! Reading whole tables through analysis, in pages of bounded size, as Arrow.
//!
//! Invariant: a scan shows every row of one version of its table exactly once, or fails: pages are cut by where rows
//! came from, each is counted beforehand, and a version that changes in between is an error of its own.
//! Deliberately absent: what the rows mean (`tables`).

use anyhow::{Context as _, anyhow, ensure};
use arrow::{
    array::{Array as _, AsArray as _, RecordBatch},
    buffer::Buffer,
    compute::cast,
    datatypes::{DataType, Int64Type},
    ipc::reader::StreamDecoder,
};
use futures::StreamExt as _;
use reqwest::{Method, Response};

use super::definitions::Target;
use crate::{client::Client, commands::Failure};

/// Rows of one page: what an answer may have, and what a query can do in its time.
const PAGE_ROWS: i64 = 100_000;

/// The table was committed to while it was read.
#[derive(Debug)]
pub(crate) struct Moved {
    table: String,
    before: Option<u64>,
    after: Option<u64>,
}

impl Moved {
    pub(crate) fn of(table: &str, before: Option<u64>, after: Option<u64>) -> Self {
        Self { table: table.to_owned(), before, after }
    }
}

impl std::error::Error for Moved {}

impl std::fmt::Display for Moved {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { table, before, after } = self;
        let version = |version: &Option<u64>| version.map_or_else(|| "none".to_owned(), |version| version.to_string());
        let (before, after) = (version(before), version(after));
        write!(formatter, "table `{table}` went from version {before} to {after} while it was read")
    }
}

/// A table to be read.
#[derive(Debug)]
pub(crate) struct Scan<'a> {
    pub(crate) client: &'a Client,
    pub(crate) target: &'a Target,
    /// Its name without the pipeline's.
    pub(crate) table: &'a str,
    /// Its columns, as SQL.
    pub(crate) columns: &'a str,
    /// Which rows, as SQL; empty for all.
    pub(crate) only: &'a str,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    pub(crate) version: Option<u64>,
    pub(crate) rows: u64,
}

/// Offsets `from..to` of one partition.
#[derive(Clone, Copy, Debug)]
struct Page {
    partition: i64,
    from: i64,
    to: i64,
    rows: i64,
}

impl Scan<'_> {
    /// Shows every row, in no order.
    pub(crate) async fn run(
        &self,
        mut show: impl FnMut(&RecordBatch) -> anyhow::Result<()>,
    ) -> Result<Scanned, Failure> {
        let (mut pages, version) = self.pages().await?;
        let mut scanned = Scanned { version, rows: 0 };
        while let Some(page) = pages.pop() {
            if page.rows > PAGE_ROWS && page.to - page.from > 1 {
                pages.extend(self.halves(page, version).await?);
                continue;
            }
            let sql = format!("SELECT {} FROM {} WHERE {}", self.columns, self.from(), self.of(page));
            let mut rows = 0;
            let answered = query(self.client, &sql, |batch| {
                rows += batch.num_rows() as u64;
                show(batch)
            })
            .await?;
            self.ensure_version(version, &answered)?;
            if rows != page.rows.cast_unsigned() {
                return Err(anyhow!("expected {} rows of {page:?}, found {rows}: {sql}", page.rows).into());
            }
            scanned.rows += rows;
        }
        Ok(scanned)
    }

    /// One page a partition.
    async fn pages(&self) -> Result<(Vec<Page>, Option<u64>), Failure> {
        let sql = format!(
            "SELECT __partition, min(__offset), max(__offset) + 1, count(*) FROM {} {} GROUP BY __partition",
            self.from(),
            if self.only.is_empty() { String::new() } else { format!("WHERE {}", self.only) }
        );
        let (numbers, answered) = numbers(self.client, &sql).await?;
        let page = |row: &Vec<i64>| Page { partition: row[0], from: row[1], to: row[2], rows: row[3] };
        Ok((numbers.iter().map(page).collect(), self.version(&answered)))
    }

    async fn halves(&self, page: Page, version: Option<u64>) -> Result<[Page; 2], Failure> {
        let middle = page.from + (page.to - page.from) / 2;
        let (first, second) = (Page { to: middle, ..page }, Page { from: middle, ..page });
        let sql = format!("SELECT count(*) FROM {} WHERE {}", self.from(), self.of(first));
        let (numbers, answered) = numbers(self.client, &sql).await?;
        self.ensure_version(version, &answered)?;
        let rows = numbers.first().and_then(|row| row.first()).copied().unwrap_or(0);
        Ok([Page { rows, ..first }, Page { rows: page.rows - rows, ..second }])
    }

    fn from(&self) -> String {
        self.target.table(&format!("{}$positions", self.table))
    }

    fn of(&self, page: Page) -> String {
        let Page { partition, from, to, .. } = page;
        let also = if self.only.is_empty() { String::new() } else { format!(" AND {}", self.only) };
        format!("__partition = {partition} AND __offset >= {from} AND __offset < {to}{also}")
    }

    fn version(&self, answered: &str) -> Option<u64> {
        version_of(answered, &format!("{}.{}", self.target.pipeline, self.table))
    }

    fn ensure_version(&self, before: Option<u64>, answered: &str) -> Result<(), Failure> {
        let after = self.version(answered);
        if after == before {
            return Ok(());
        }
        Err(anyhow::Error::from(Moved::of(self.table, before, after)).into())
    }
}

/// The version of a table in an `X-Snapshot` header.
pub(crate) fn version_of(snapshot: &str, table: &str) -> Option<u64> {
    let mut named = snapshot.split(", ").filter_map(|entry| entry.rsplit_once('@'));
    named.find(|(name, _)| *name == table)?.1.parse().ok()
}

/// Asks a question and shows the answer batch by batch; the `X-Snapshot` it was answered from.
pub(crate) async fn query(
    client: &Client,
    sql: &str,
    mut show: impl FnMut(&RecordBatch) -> anyhow::Result<()>,
) -> Result<String, Failure> {
    let body = serde_json::json!({ "sql": sql, "format": "arrow" });
    let response = client.send(client.request(Method::POST, "/v1/sql").json(&body)).await?;
    let snapshot = snapshot_of(&response);
    let mut chunks = response.bytes_stream();
    let mut decoder = StreamDecoder::new();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            Failure::unavailable(anyhow!(error).context("the answer broke off; the server's log says why"))
        })?;
        let mut buffer = Buffer::from(chunk);
        while !buffer.is_empty() {
            if let Some(batch) =
                decoder.decode(&mut buffer).context("the answer is not the Arrow stream it says it is")?
            {
                show(&batch)?;
            }
        }
    }
    decoder.finish().context("the answer ends in the middle of a batch")?;
    Ok(snapshot)
}

fn snapshot_of(response: &Response) -> String {
    let header = response.headers().get("x-snapshot").and_then(|value| value.to_str().ok());
    header.unwrap_or_default().to_owned()
}

/// A small answer of whole numbers.
pub(crate) async fn numbers(client: &Client, sql: &str) -> Result<(Vec<Vec<i64>>, String), Failure> {
    let mut rows = Vec::new();
    let snapshot = query(client, sql, |batch| {
        let columns =
            batch.columns().iter().map(|column| cast(column, &DataType::Int64)).collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            let value = |column: &arrow::array::ArrayRef| {
                ensure!(column.is_valid(row), "a number is missing in the answer to: {sql}");
                Ok(column.as_primitive::<Int64Type>().value(row))
            };
            rows.push(columns.iter().map(value).collect::<anyhow::Result<Vec<_>>>()?);
        }
        Ok(())
    })
    .await?;
    Ok((rows, snapshot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_table_is_found_among_others() {
        let snapshot = "verify.even@3, verify.events@12, verify.events_rejected@none";
        assert_eq!(version_of(snapshot, "verify.events"), Some(12));
        assert_eq!(version_of(snapshot, "verify.events_rejected"), None);
        assert_eq!(version_of(snapshot, "verify.flows"), None);
    }
}
