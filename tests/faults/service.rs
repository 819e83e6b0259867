//! The four services and how many instances of each take part.

use runtime::config::Config;

/// A service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Service {
    Ingestion,
    Transformation,
    Storage,
    Analysis,
}

impl Service {
    pub(crate) const ALL: [Service; 4] = [Self::Ingestion, Self::Transformation, Self::Storage, Self::Analysis];
    /// Those that move rows.
    pub(crate) const HOPS: [Service; 3] = [Self::Ingestion, Self::Transformation, Self::Storage];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ingestion => "ingestion",
            Self::Transformation => "transformation",
            Self::Storage => "storage",
            Self::Analysis => "analysis",
        }
    }

    /// The memory it is configured to in a field, in bytes.
    pub(crate) fn memory(self) -> u64 {
        let config = Config::default();
        let memory = match self {
            Self::Ingestion => config.ingestion.memory,
            Self::Transformation => config.transformation.memory,
            Self::Storage => config.storage.memory,
            Self::Analysis => config.analysis.memory,
        };
        memory.as_usize() as u64
    }

    /// Names of its instances.
    pub(crate) fn instances(self) -> Vec<String> {
        (1..=2).map(|number| format!("{}-{number}", self.name())).collect()
    }

    /// The service an instance belongs to.
    pub(crate) fn of(instance: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| instance.split('-').next() == Some(service.name()))
    }
}
