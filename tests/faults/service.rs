//! The four services and how many instances of each take part.

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

    /// Names of its instances.
    pub(crate) fn instances(self) -> Vec<String> {
        (1..=2).map(|number| format!("{}-{number}", self.name())).collect()
    }

    /// The service an instance belongs to.
    pub(crate) fn of(instance: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| instance.split('-').next() == Some(service.name()))
    }
}
