//! The pipeline `verify`, inside the binary: the files under `pipelines/verify`, under the names the user wants.

use runtime::catalog::{ApplyFile, ApplyRequest};

const SOURCES: &str = include_str!("../../../../pipelines/verify/sources.sql");
const VIEWS: &str = include_str!("../../../../pipelines/verify/views.sql");

/// The pipeline and the source that are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) pipeline: String,
    pub(crate) source: String,
}

impl Target {
    /// `pipeline.source`.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        let (pipeline, source) = name.split_once('.')?;
        Some(Self { pipeline: pipeline.to_owned(), source: source.to_owned() })
    }

    /// A table of the pipeline, as SQL names it.
    pub(crate) fn table(&self, name: &str) -> String {
        format!("\"{}\".\"{name}\"", self.pipeline)
    }

    /// The wish to have the pipeline, its topic of so many partitions.
    pub(crate) fn definitions(&self, partitions: u32) -> ApplyRequest {
        let named = |text: &str| {
            text.replace("'verify.events'", &format!("'{self}'"))
                .replace("partitions = '4'", &format!("partitions = '{partitions}'"))
                .replace("SOURCE events (", &format!("SOURCE {} (", self.source))
                .replace("FROM events\n", &format!("FROM {}\n", self.source))
        };
        let file = |name: &str, text: &str| ApplyFile { file: name.to_owned(), text: named(text) };
        ApplyRequest {
            pipeline: self.pipeline.clone(),
            files: vec![file("verify/sources.sql", SOURCES), file("verify/views.sql", VIEWS)],
            replace: false,
            drop: false,
            dry_run: false,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}", self.pipeline, self.source)
    }
}

/// The views of the pipeline.
pub(crate) const VIEW_NAMES: [&str; 3] = ["even_events", "flows", "fifth_events"];

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pipeline::{Catalog, SourceText};

    use super::*;

    #[test]
    fn the_pipeline_can_be_planned_under_any_name() {
        for target in ["verify.events", "mine.rows"] {
            let target = Target::from_name(target).unwrap();
            let request = target.definitions(3);
            let files: Vec<_> =
                request.files.into_iter().map(|file| SourceText { file: file.file, text: file.text }).collect();
            assert!(
                files[0].text.contains(&format!("topic = '{target}'")) && files[0].text.contains("partitions = '3'")
            );
            assert_eq!(files[1].text.matches(&format!("FROM {}\n", target.source)).count(), 3);
            let statements = pipeline::parse(&files).unwrap();
            assert_eq!(statements.len(), 4);
            pipeline::plan_change(&Catalog::default(), &target.pipeline, statements).unwrap();
        }
    }
}
