//! The object store as one process sees it: slow, failing before and after the effect, and with places to die at.
//!
//! What lies below is always a correct store, so what is there can be compared with what was answered.

use std::{fmt, ops::Range, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

use crate::{faults::PutFault, process::Process};

/// See the module.
#[derive(Clone)]
pub(crate) struct StoreEdge {
    store: Arc<InMemory>,
    process: Process,
}

impl StoreEdge {
    pub(crate) fn new(store: &Arc<InMemory>, process: Process) -> Self {
        Self { store: Arc::clone(store), process }
    }

    async fn before(&self, doing: &str) -> Result<()> {
        self.process.place(&format!("before it {doing}")).await;
        self.process.faults().store_pause().await;
        if self.process.faults().store_fails() {
            self.process.note(&format!("fails where it {doing}"));
            return Err(unavailable());
        }
        Ok(())
    }

    async fn delete_one(&self, location: Path) -> Result<Path> {
        self.before(&format!("deletes {location}")).await?;
        self.store.delete(&location).await?;
        self.process.place("after it deleted").await;
        if self.process.faults().delete_reply_is_lost() { Err(reset()) } else { Ok(location) }
    }
}

fn unavailable() -> Error {
    Error::Generic { store: "simulated", source: "503 slow down".into() }
}

fn reset() -> Error {
    Error::Generic { store: "simulated", source: "connection reset".into() }
}

fn taken(location: &Path) -> Error {
    Error::AlreadyExists { path: location.to_string(), source: "409 or 412".into() }
}

impl fmt::Display for StoreEdge {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the store of {}", self.process.name())
    }
}

impl fmt::Debug for StoreEdge {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

#[async_trait]
impl ObjectStore for StoreEdge {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.process.place(&format!("before it puts {location}")).await;
        self.process.faults().store_pause().await;
        let fault = self.process.faults().put();
        if fault != PutFault::None {
            self.process.note(&format!("puts {location}: {fault:?}"));
        }
        match fault {
            PutFault::Before => return Err(unavailable()),
            PutFault::Taken => return Err(taken(location)),
            PutFault::None | PutFault::After | PutFault::Own => {}
        }
        let put = self.store.put_opts(location, payload, options).await;
        self.process.place(&format!("after it put {location}")).await;
        self.process.faults().store_pause().await;
        let put = put?;
        match fault {
            PutFault::After => Err(reset()),
            PutFault::Own => Err(taken(location)),
            _ => Ok(put),
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.before("begins an upload").await?;
        self.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.before("gets").await?;
        self.store.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.before("gets").await?;
        self.store.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let edge = self.clone();
        locations
            .then(move |location| {
                let edge = edge.clone();
                async move { edge.delete_one(location?).await }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (edge, listed) = (self.clone(), self.store.list(prefix));
        stream::once(async move { edge.before("lists").await.map(|()| listed) }).try_flatten().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (edge, listed) = (self.clone(), self.store.list_with_offset(prefix, offset));
        stream::once(async move { edge.before("lists").await.map(|()| listed) }).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.before("lists").await?;
        self.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.before("copies").await?;
        self.store.copy_opts(from, to, options).await
    }
}
