//! The findings, for people and for programs, and what they mean for the exit code.

use anyhow::anyhow;
use serde::Serialize;

use super::{
    finding::{Finding, Id},
    judge::Counts,
};
use crate::{
    arguments::Format,
    commands::Failure,
    output::{self, Listing},
};

/// Everything a check found.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) ok: bool,
    /// Whether nothing was on its way when the tables were read.
    pub(crate) settled: bool,
    /// What was, if something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) missing: Option<String>,
    pub(crate) invariants: Vec<Finding>,
    /// Acknowledged rows, good and bad, that are nowhere.
    pub(crate) lost: u64,
    /// Copies too many.
    pub(crate) doubled: u64,
    pub(crate) phantoms: u64,
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
    pub(crate) failed: u64,
    pub(crate) unknown: u64,
    /// Rows of unknown fate that are there.
    pub(crate) unknown_found: u64,
    pub(crate) stored: u64,
    pub(crate) rejected: u64,
    /// Rows of runs no ledger was given for.
    pub(crate) others: u64,
    /// The version of the source's table that was read.
    pub(crate) version: Option<u64>,
}

impl Report {
    /// A report of findings in their usual order.
    pub(crate) fn new(mut invariants: Vec<Finding>, counts: Counts, missing: Option<String>) -> Self {
        invariants.sort_by_key(|finding| finding.id);
        let of = |id: Id| invariants.iter().find(|finding| finding.id == id).map_or(0, |finding| finding.violations);
        Self {
            ok: missing.is_none() && invariants.iter().all(|finding| finding.violations == 0),
            settled: missing.is_none(),
            missing,
            lost: of(Id::L) + counts.bad_lost,
            doubled: of(Id::D) + counts.bad_doubled,
            phantoms: of(Id::P),
            sent: counts.sent,
            acknowledged: counts.acked,
            failed: counts.failed,
            unknown: counts.unknown,
            unknown_found: counts.unknown_found,
            stored: 0,
            rejected: counts.rejected,
            others: counts.others,
            version: None,
            invariants,
        }
    }

    /// Prints it; an error where something is violated.
    pub(crate) fn print(&self, format: Format) -> Result<(), Failure> {
        match format {
            Format::Json => output::line(serde_json::to_string(self).map_err(anyhow::Error::from)?)?,
            other => self.print_listing(other)?,
        }
        self.verdict()
    }

    fn print_listing(&self, format: Format) -> Result<(), Failure> {
        const COLUMNS: &[&str] = &["id", "invariant", "checked", "violations"];
        let listing = Listing { columns: COLUMNS, rows: self.invariants.clone() };
        listing.print(format, |finding| {
            vec![
                format!("{:?}", finding.id),
                finding.meaning.to_owned(),
                finding.checked.to_string(),
                finding.violations.to_string(),
            ]
        })?;
        for finding in &self.invariants {
            for example in &finding.examples {
                output::note(format!("{:?}: {example}", finding.id));
            }
        }
        let Self { sent, acknowledged, unknown, unknown_found, failed, lost, doubled, .. } = self;
        if *sent > 0 {
            output::note(format!(
                "{sent} rows sent: {acknowledged} acknowledged, {unknown} of unknown fate ({unknown_found} of them arrived), \
                 {failed} failed; {lost} lost, {doubled} doubled"
            ));
        }
        Ok(())
    }

    fn verdict(&self) -> Result<(), Failure> {
        if let Some(missing) = &self.missing {
            return Err(anyhow!("not everything has arrived: {missing}; give it more time with --within").into());
        }
        let violated = self.invariants.iter().filter(|finding| finding.violations > 0);
        let violated: Vec<String> = violated.map(|finding| format!("{:?}", finding.id)).collect();
        if violated.is_empty() {
            return Ok(());
        }
        Err(anyhow!("invariants violated: {}", violated.join(", ")).into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::verify::finding::Example;

    #[test]
    fn a_violation_or_rows_on_their_way_make_the_report_not_ok() {
        let good = Report::new(vec![Finding::of(Id::L), Finding::of(Id::D)], Counts::default(), None);
        assert!(good.ok && good.verdict().is_ok());
        let mut lost = Finding::of(Id::L);
        lost.violate(|| Example::of("gone", "p", 1, 2));
        let bad = Report::new(vec![Finding::of(Id::D), lost], Counts::default(), None);
        assert_eq!((bad.ok, bad.lost, bad.invariants[0].id), (false, 1, Id::L));
        assert!(bad.verdict().unwrap_err().error.to_string().contains('L'));
        let waiting = Report::new(vec![], Counts::default(), Some("3 rows".into()));
        assert!(!waiting.ok && waiting.verdict().is_err());
    }

    #[test]
    fn json_is_as_programs_expect_it() {
        let mut lost = Finding::of(Id::L);
        lost.checked = 9;
        lost.violate(|| Example::of("gone", "p", 1, 2));
        let json = serde_json::to_value(Report::new(vec![lost], Counts::default(), None)).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!((&json["invariants"][0]["id"], &json["invariants"][0]["checked"]), (&"L".into(), &9.into()));
        assert_eq!(json["invariants"][0]["violations"], 1);
        assert_eq!(json["invariants"][0]["examples"][0]["seq"], 2);
        assert_eq!((&json["lost"], &json["doubled"]), (&1.into(), &0.into()));
    }
}
