//! A log that can only be opened anew says so to whoever waits for it.

use std::sync::Arc;

use tokio::sync::watch;

use crate::TopicError;

/// Set once, by whoever finds out; clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Broken(Arc<watch::Sender<Option<TopicError>>>);

impl Broken {
    /// From now on it is; the first reason stays.
    pub(crate) fn set(&self, reason: impl FnOnce() -> TopicError) {
        self.0.send_if_modified(|known| {
            let is_new = known.is_none();
            known.get_or_insert_with(reason);
            is_new
        });
    }

    /// Waits until it is.
    pub(crate) async fn wait(&self) -> TopicError {
        let mut reasons = self.0.subscribe();
        let known = reasons.wait_for(Option::is_some).await;
        known.ok().and_then(|reason| reason.clone()).unwrap_or(TopicError::Closed)
    }
}
