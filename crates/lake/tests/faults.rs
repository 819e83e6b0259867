//! An object store that fails as real ones do, by script or by chance.
//!
//! Faults hit requests for objects whose name ends as told; what lies below is always a correct store, so what was
//! really written can be compared with what the client was told.

use std::{
    collections::VecDeque,
    fmt,
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart, memory::InMemory, path::Path,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// What happens to one put, or, where it is `After`, to one upload in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Nothing is written, an error is returned.
    Before,
    /// It is written, and the answer is lost.
    After,
    /// Nothing is written, "already exists" is returned (S3's 409).
    FalseExists,
    /// It is written, and a repetition inside the client finds its own object.
    OwnExists,
}

/// How often each fault happens, in a hundred.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chances {
    pub(crate) before: u32,
    pub(crate) after: u32,
    pub(crate) false_exists: u32,
    pub(crate) own_exists: u32,
    /// Reads and listings that fail.
    pub(crate) reads: u32,
    /// The longest a request takes, in milliseconds.
    pub(crate) delay_ms: u64,
}

#[derive(Clone)]
pub(crate) struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    script: Arc<Mutex<VecDeque<Fault>>>,
    dice: Arc<Mutex<StdRng>>,
    chances: Chances,
    suffix: &'static str,
}

impl FaultStore {
    pub(crate) fn over(inner: Arc<dyn ObjectStore>, seed: u64, chances: Chances) -> Self {
        let dice = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        Self { inner, script: Arc::default(), dice, chances, suffix: ".json" }
    }

    /// Faults hit only objects with this ending.
    pub(crate) fn on(mut self, suffix: &'static str) -> Self {
        self.suffix = suffix;
        self
    }

    /// A correct store but for the given faults, which hit the next puts in order.
    pub(crate) fn scripted(faults: &[Fault]) -> Self {
        let store = Self::over(Arc::new(InMemory::new()), 0, Chances::default());
        store.then(faults);
        store
    }

    pub(crate) fn then(&self, faults: &[Fault]) {
        self.script.lock().unwrap().extend(faults);
    }

    pub(crate) fn inner(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.inner)
    }

    fn next_put(&self) -> Fault {
        if let Some(fault) = self.script.lock().unwrap().pop_front() {
            return fault;
        }
        let mut roll = self.dice.lock().unwrap().random_range(0..100);
        let Chances { before, after, false_exists, own_exists, .. } = self.chances;
        let faults = [
            (before, Fault::Before),
            (after, Fault::After),
            (false_exists, Fault::FalseExists),
            (own_exists, Fault::OwnExists),
        ];
        for (chance, fault) in faults {
            if roll < chance {
                return fault;
            }
            roll -= chance;
        }
        Fault::None
    }

    async fn delay(&self) {
        if self.chances.delay_ms > 0 {
            let pause = self.dice.lock().unwrap().random_range(0..=self.chances.delay_ms);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    fn read_fails(&self) -> bool {
        self.chances.reads > 0 && self.dice.lock().unwrap().random_range(0..100) < self.chances.reads
    }
}

fn unavailable() -> Error {
    Error::Generic { store: "fault", source: "503 slow down".into() }
}

fn exists(location: &Path) -> Error {
    Error::AlreadyExists { path: location.to_string(), source: "409 or 412".into() }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "faulty {}", self.inner)
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

#[async_trait]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if !location.as_ref().ends_with(self.suffix) {
            return self.inner.put_opts(location, payload, options).await;
        }
        let fault = self.next_put();
        self.delay().await;
        match fault {
            Fault::None => {
                let result = self.inner.put_opts(location, payload, options).await;
                self.delay().await;
                result
            }
            Fault::Before => Err(unavailable()),
            Fault::FalseExists => Err(exists(location)),
            Fault::After => {
                self.inner.put_opts(location, payload, options).await?;
                self.delay().await;
                Err(Error::Generic { store: "fault", source: "connection reset".into() })
            }
            Fault::OwnExists => {
                self.inner.put_opts(location, payload, options).await?;
                self.delay().await;
                Err(exists(location))
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.inner.put_multipart_opts(location, options).await?;
        if !location.as_ref().ends_with(self.suffix) || self.next_put() != Fault::After {
            return Ok(inner);
        }
        Ok(Box::new(LostCompletion { inner, location: location.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.delay().await;
        if self.read_fails() {
            return Err(unavailable());
        }
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.read_fails() {
            return Box::pin(futures::stream::iter([Err(unavailable())]));
        }
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// An upload that is completed with the answer lost, and whose completion is not found when the client repeats it.
#[derive(Debug)]
struct LostCompletion {
    inner: Box<dyn MultipartUpload>,
    location: Path,
}

#[async_trait]
impl MultipartUpload for LostCompletion {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.inner.complete().await?;
        Err(Error::NotFound { path: self.location.to_string(), source: "NoSuchUpload".into() })
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

/// Passes everything to a good store until the switch is turned, and to a bad one from then on.
pub(crate) struct Switched {
    good: Arc<dyn ObjectStore>,
    bad: FaultStore,
    switch: Arc<std::sync::atomic::AtomicBool>,
}

impl Switched {
    pub(crate) fn new(good: Arc<dyn ObjectStore>, bad: FaultStore, switch: Arc<std::sync::atomic::AtomicBool>) -> Self {
        Self { good, bad, switch }
    }

    fn store(&self) -> &dyn ObjectStore {
        if self.switch.load(std::sync::atomic::Ordering::SeqCst) { &self.bad } else { self.good.as_ref() }
    }
}

impl fmt::Display for Switched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "switched {}", self.good)
    }
}

impl fmt::Debug for Switched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self}")
    }
}

#[async_trait]
impl ObjectStore for Switched {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.store().put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.store().put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.store().get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store().delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store().list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store().list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.store().list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.store().copy_opts(from, to, options).await
    }
}
