//! `tailwater verify check`: wait, read everything twice, compare, report.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow};
use lake::{
    Lake,
    audit::{self, Audit, Holds, Rows},
};
use reqwest::Method;
use runtime::{config::Config, edges};
use serde::Deserialize;

use super::{
    books::Books,
    definitions::{Target, VIEW_NAMES},
    finding::{Example, Finding, Id},
    judge::Judge,
    ledger, reader,
    report::Report,
    scan::{Moved, Scanned, numbers},
    settle, tables,
};
use crate::{
    arguments::{Format, Global},
    client::{Client, Door},
    commands::Failure,
    output,
};

/// How often the tables are read anew when somebody commits to one meanwhile.
const READINGS: u32 = 5;
/// Columns of data files that tell the order of rows in a request.
const FILE_COLUMNS: [&str; 4] = ["run_id", "producer", "key", "seq"];

/// What was asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) ledgers: Vec<PathBuf>,
    pub(crate) within: Duration,
    pub(crate) reader_command: Option<String>,
    pub(crate) other_runs: bool,
    pub(crate) output: Format,
}

pub(crate) async fn run(global: &Global, config: &Config, wish: Wish) -> Result<(), Failure> {
    let books = load(&wish)?;
    let target = common_target(&books)?;
    let client = Client::new(global.url.as_deref(), config, Door::Analysis);
    let lake = edges::open_lake(config)?;
    let missing = settle::wait(&client, &target, wish.within).await?;
    let check = Check { client: &client, target: &target, lake: &lake, wish: &wish };
    let (mut next, mut readings) = (Some(books), 0);
    let mut report = loop {
        readings += 1;
        let books = next.take().map_or_else(|| load(&wish), Ok)?;
        match check.read(books, &missing).await {
            Err(failure) if failure.error.chain().any(|link| link.is::<Moved>()) && readings < READINGS => {
                output::note(format!("{:#}; reading again", failure.error));
            }
            outcome => break outcome?,
        }
    };
    if let Some(command) = &wish.reader_command {
        report = check.read_independently(command, config, report).await?;
    }
    report.report.print(wish.output)
}

fn load(wish: &Wish) -> anyhow::Result<Vec<Books>> {
    wish.ledgers.iter().map(|path| ledger::read(path)).collect()
}

/// All ledgers are of one source, and no two of one producer.
fn common_target(books: &[Books]) -> anyhow::Result<Target> {
    let first = books.first().ok_or_else(|| anyhow!("give at least one --ledger"))?;
    for (index, other) in books.iter().enumerate() {
        anyhow::ensure!(
            other.begin.target == first.begin.target,
            "the ledgers are of different sources, `{}` and `{}`; check one source at a time",
            first.begin.target,
            other.begin.target
        );
        let twice = books[..index].iter().any(|before| before.sender == other.sender);
        anyhow::ensure!(!twice, "the ledger of producer `{}` is given twice", other.sender.producer);
    }
    let target = Target::from_name(&first.begin.target);
    target.ok_or_else(|| anyhow!("the ledger's source `{}` is not pipeline.source", first.begin.target))
}

struct Check<'a> {
    client: &'a Client,
    target: &'a Target,
    lake: &'a Lake,
    wish: &'a Wish,
}

/// A report, and what an independent reader must see.
struct Read {
    report: Report,
    sums: super::judge::Sums,
    folder: Option<String>,
}

/// What analysis tells of a table.
#[derive(Clone, Debug, Deserialize)]
struct Described {
    pipeline: String,
    name: String,
    folder: String,
}

impl Check<'_> {
    /// Reads everything once and compares.
    async fn read(&self, books: Vec<Books>, missing: &Option<String>) -> Result<Read, Failure> {
        let mut judge = Judge::new(books, self.wish.other_runs);
        let stored = tables::show_stored(self.client, self.target, &mut judge).await?;
        tables::show_rejected(self.client, self.target, &mut judge).await?;
        for view in VIEW_NAMES {
            tables::show_view(self.client, self.target, view, &mut judge).await?;
        }
        let rejected_by_views = self.rejected_by_views().await?;
        let sums = judge.sums();
        let (log, folder) = self.audit_all(&mut judge, stored).await?;
        let (mut findings, counts) = judge.verdict();
        if let Some(derived) = findings.iter_mut().find(|finding| finding.id == Id::A) {
            rejected_by_views.into_iter().for_each(|example| derived.violate(|| example));
        }
        findings.push(log);
        let mut report = Report::new(findings, counts, missing.clone());
        (report.stored, report.version) = (sums.rows, stored.version);
        Ok(Read { report, sums, folder })
    }

    /// The views reject nothing.
    async fn rejected_by_views(&self) -> Result<Vec<Example>, Failure> {
        let mut examples = Vec::new();
        for view in VIEW_NAMES {
            let sql = format!("SELECT count(*) FROM {}", self.target.table(&format!("{view}_rejected")));
            let (counted, _) = numbers(self.client, &sql).await?;
            if let Some(count) = counted.first().and_then(|row| row.first()).filter(|&&count| count != 0) {
                examples.push(Example::plain(format!("{view}: {count} rows were rejected")));
            }
        }
        Ok(examples)
    }

    /// Audits the log of every table of the pipeline; also says where the source's table lies.
    async fn audit_all(&self, judge: &mut Judge, stored: Scanned) -> Result<(Finding, Option<String>), Failure> {
        let mut finding = Finding::of(Id::T);
        let mut folder = None;
        for table in self.tables().await? {
            let holds = if table.name.ends_with("_rejected") { Holds::Rejected } else { Holds::Emitted };
            let audit = if table.name == self.target.source {
                folder = Some(table.folder.clone());
                let audit = self.audit_source(&table.folder, judge).await?;
                if let Some(audit) = &audit {
                    compare_with_sql(audit, stored, &mut finding)?;
                }
                audit
            } else {
                audit::audit(self.lake, &table.folder, holds, None).await.map_err(unavailable)?
            };
            if let Some(audit) = audit {
                book(&table.name, &audit, &mut finding);
            }
        }
        Ok((finding, folder))
    }

    async fn audit_source(&self, folder: &str, judge: &mut Judge) -> Result<Option<Audit>, Failure> {
        let mut broken = None;
        let mut show = |batch: &arrow::array::RecordBatch| {
            if let Err(error) = tables::show_file(batch, judge) {
                broken.get_or_insert(error);
            }
        };
        let rows = Rows { columns: &FILE_COLUMNS, show: &mut show };
        let audit = audit::audit(self.lake, folder, Holds::Emitted, Some(rows)).await.map_err(unavailable)?;
        match broken {
            Some(error) => Err(error.into()),
            None => Ok(audit),
        }
    }

    async fn tables(&self) -> Result<Vec<Described>, Failure> {
        #[derive(Deserialize)]
        struct Listed {
            tables: Vec<Described>,
        }
        let answer = self.client.send(self.client.short_request(Method::GET, "/v1/tables")).await?;
        let listed: Listed = answer.json().await.context("the list of tables")?;
        Ok(listed.tables.into_iter().filter(|table| table.pipeline == self.target.pipeline).collect())
    }

    async fn read_independently(&self, command: &str, config: &Config, read: Read) -> Result<Read, Failure> {
        let Read { report, sums, folder } = read;
        let found = folder.clone().ok_or_else(|| anyhow!("table `{}` is not there", self.target))?;
        let question = reader::Question {
            url: self.lake.table_url(&found).to_string(),
            options: config.store.options.clone().into_map(),
            version: report.version,
        };
        let second = reader::ask(command, &question, sums).await?;
        let ok = report.ok && second.violations == 0;
        let mut invariants = report.invariants.clone();
        invariants.push(second);
        invariants.sort_by_key(|finding| finding.id);
        Ok(Read { report: Report { ok, invariants, ..report }, sums, folder })
    }
}

fn unavailable(error: lake::LakeError) -> Failure {
    Failure::unavailable(anyhow!(error).context("the store of the tables; check runs under the config of the cluster"))
}

/// The files have as many rows as SQL counts, at the version SQL read.
fn compare_with_sql(audit: &Audit, stored: Scanned, finding: &mut Finding) -> anyhow::Result<()> {
    if stored.version != Some(audit.version) {
        return Err(Moved::of("the source's", stored.version, Some(audit.version)).into());
    }
    if stored.rows != audit.rows {
        let (files, sql) = (audit.rows, stored.rows);
        finding.violate(|| Example::plain(format!("files have {files} rows, SQL reads {sql}")));
    }
    Ok(())
}

fn book(table: &str, audit: &Audit, finding: &mut Finding) {
    finding.checked += audit.commits + audit.files + audit.positions;
    let told = audit.told.len() as u64;
    for fault in &audit.told {
        finding.violate(|| Example::plain(format!("table `{table}`, {fault}")));
    }
    finding.violations += audit.faults - told;
}
