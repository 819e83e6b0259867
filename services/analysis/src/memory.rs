//! Memory of queries: a limit for each, in front of a limit for all.
//!
//! The invariant: what a query has reserved counts in both pools, and goes back to both when the query ends.
//! Nothing spills to disk: in DataFusion 55 two inputs spilling at once can wait for each other for ever
//! (apache/datafusion issue 24883), and a clear error is better than that. Deliberately absent: fairness between
//! operators of one query, which only matters where they could spill.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use datafusion::{
    common::{DataFusionError, Result},
    execution::memory_pool::{
        GreedyMemoryPool, MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, human_readable_size,
    },
};

/// Which limit refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryScope {
    /// The query's own.
    Query,
    /// That of all queries together.
    Process,
}

/// Why memory was refused, for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Which limit.
    pub(crate) scope: MemoryScope,
    /// The sentence.
    pub(crate) message: String,
}

/// The pool of one query. See the module.
#[derive(Debug)]
pub(crate) struct QueryPool {
    own: GreedyMemoryPool,
    process: Arc<ProcessPool>,
    refusal: Mutex<Option<Refusal>>,
}

/// The pool all queries share.
#[derive(Debug)]
pub(crate) struct ProcessPool {
    pool: GreedyMemoryPool,
}

impl ProcessPool {
    /// A pool of `bytes` for all queries together.
    pub(crate) fn new(bytes: usize) -> Self {
        Self { pool: GreedyMemoryPool::new(bytes) }
    }

    /// Bytes reserved by all running queries.
    pub(crate) fn reserved(&self) -> usize {
        self.pool.reserved()
    }
}

impl QueryPool {
    /// A query's pool of `bytes` in front of the process's.
    pub(crate) fn new(bytes: usize, process: Arc<ProcessPool>) -> Self {
        Self { own: GreedyMemoryPool::new(bytes), process, refusal: Mutex::default() }
    }

    /// The last refusal. An operator may recover from one, so it explains a failure and is none by itself.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refuse(&self, scope: MemoryScope, consumer: &MemoryConsumer, bytes: usize) -> DataFusionError {
        let refusal = Refusal { scope, message: self.sentence(scope, consumer, bytes) };
        let error = DataFusionError::ResourcesExhausted(refusal.message.clone());
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
        error
    }

    fn sentence(&self, scope: MemoryScope, consumer: &MemoryConsumer, bytes: usize) -> String {
        let asked = human_readable_size(bytes);
        let name = consumer.name();
        let used = human_readable_size(self.own.reserved());
        match scope {
            MemoryScope::Query => format!(
                "query is over its memory limit of {}: `{name}` asked for {asked} with {used} in use",
                limit_of(&self.own)
            ),
            MemoryScope::Process => format!(
                "queries are over their common memory limit of {}: `{name}` asked for {asked} with {} in use, {used} of \
                 them by this query",
                limit_of(&self.process.pool),
                human_readable_size(self.process.reserved()),
            ),
        }
    }
}

fn limit_of(pool: &GreedyMemoryPool) -> String {
    match pool.memory_limit() {
        MemoryLimit::Finite(bytes) => human_readable_size(bytes),
        MemoryLimit::Infinite | MemoryLimit::Unknown => "unlimited".to_owned(),
    }
}

impl fmt::Display for QueryPool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "query({} within {})", self.own, self.process.pool)
    }
}

impl MemoryPool for QueryPool {
    fn name(&self) -> &str {
        "query"
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        self.own.grow(reservation, additional);
        self.process.pool.grow(reservation, additional);
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        self.own.shrink(reservation, shrink);
        self.process.pool.shrink(reservation, shrink);
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        self.own
            .try_grow(reservation, additional)
            .map_err(|_| self.refuse(MemoryScope::Query, reservation.consumer(), additional))?;
        self.process.pool.try_grow(reservation, additional).map_err(|_| {
            self.own.shrink(reservation, additional);
            self.refuse(MemoryScope::Process, reservation.consumer(), additional)
        })
    }

    fn reserved(&self) -> usize {
        self.own.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.own.memory_limit()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn reservation(pool: &Arc<QueryPool>) -> MemoryReservation {
        let pool: Arc<dyn MemoryPool> = Arc::clone(pool) as _;
        MemoryConsumer::new("sort").register(&pool)
    }

    #[test]
    fn a_query_is_held_to_its_own_limit_and_to_the_common_one() {
        let process = Arc::new(ProcessPool::new(150));
        let first = Arc::new(QueryPool::new(100, Arc::clone(&process)));
        let second = Arc::new(QueryPool::new(100, Arc::clone(&process)));
        let (one, two) = (reservation(&first), reservation(&second));
        one.try_grow(90).unwrap();
        one.try_grow(20).unwrap_err();
        assert_eq!(first.refusal().unwrap().scope, MemoryScope::Query);
        two.try_grow(70).unwrap_err();
        assert_eq!(second.refusal().unwrap().scope, MemoryScope::Process);
        assert_eq!((first.reserved(), second.reserved(), process.reserved()), (90, 0, 90));
        two.try_grow(60).unwrap();
        drop((one, two));
        assert_eq!((first.reserved(), second.reserved(), process.reserved()), (0, 0, 0));
    }
}
