//! The probe passes good stores, refuses weak ones, explains unreachable ones, and leaves nothing behind.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
};

use async_trait::async_trait;
use delivery::ErrorClass;
use futures::{TryStreamExt, stream::BoxStream};
use lake::{Lake, LakeError, StoreConfig};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, memory::InMemory, path::Path,
};

use crate::{
    faults::{Chances, FaultStore},
    support::{lake_over, now_ms},
};

/// What is there beside the note that the probe was passed.
async fn left_behind(store: &dyn ObjectStore) -> usize {
    let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
    objects.iter().filter(|object| object.location != Path::from("_tailwater/probe/passed")).count()
}

#[tokio::test]
async fn a_good_store_passes_and_is_left_clean() {
    let lake = Lake::memory();
    lake.probe().await.unwrap();
    assert_eq!(left_behind(lake.store().as_ref()).await, 0);
}

#[tokio::test]
async fn a_store_that_passed_within_a_day_is_raced_for_a_few_keys_only() {
    let now = Arc::new(AtomicI64::new(1_000_000));
    let store = Odd::new(Oddity::None);
    let clock = Arc::clone(&now);
    let lake = lake_over(Arc::clone(&store) as Arc<dyn ObjectStore>);
    let lake = lake.with_clock(Arc::new(move || clock.load(Ordering::Relaxed)));
    let mut creations = Vec::new();
    let hour = 60 * 60 * 1000;
    for passed_at in [0, hour, 25 * hour, 24 * hour] {
        now.store(1_000_000 + passed_at, Ordering::Relaxed);
        lake.probe().await.unwrap();
        creations.push(store.creations.swap(0, Ordering::Relaxed));
    }
    let (full, few) = (creations[0], creations[1]);
    assert!(few * 10 < full, "{creations:?}");
    // A day later it counts no more, and neither does a note from the future.
    assert_eq!(creations, [full, few, full, full]);
}

#[tokio::test]
async fn a_store_that_turned_weak_since_it_passed_is_refused_where_it_shows_at_once() {
    let store = Odd::new(Oddity::SecondWinner { every: 1 });
    let now = now_ms().to_string();
    store.inner.put(&Path::from("_tailwater/probe/passed"), now.into()).await.unwrap();
    let error = lake_over(Arc::clone(&store) as Arc<dyn ObjectStore>).probe().await.unwrap_err();
    assert!(matches!(error, LakeError::UnsafeStore { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_folder_passes_and_is_left_clean() {
    let folder = tempfile::tempdir().unwrap();
    let url = folder.path().to_str().unwrap().to_owned();
    let lake = Lake::open(&StoreConfig { url, ..StoreConfig::default() }).unwrap();
    lake.probe().await.unwrap();
    assert_eq!(left_behind(lake.store().as_ref()).await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_some_requests_passes_in_the_end() {
    let mut passed = 0;
    for seed in 0..10 {
        let chances = Chances { before: 5, after: 3, own_exists: 2, delay_ms: 20, ..Chances::default() };
        let store = FaultStore::over(Arc::new(InMemory::new()), seed, chances).on("");
        match lake_over(Arc::new(store.clone())).probe().await {
            Ok(()) => passed += 1,
            Err(error) => assert_eq!(error.class(), ErrorClass::Retry, "seed {seed}: {error}"),
        }
        assert_eq!(left_behind(store.inner().as_ref()).await, 0, "seed {seed}");
    }
    assert!(passed >= 8, "{passed} of 10");
}

#[tokio::test]
async fn a_store_that_lets_two_creators_win_now_and_then_is_refused() {
    // As moto does: look, then write. One race in ten is open.
    for every in [1, 5, 10] {
        let store = Odd::new(Oddity::SecondWinner { every });
        let error = lake_over(Arc::clone(&store) as Arc<dyn ObjectStore>).probe().await.unwrap_err();
        assert!(matches!(error, LakeError::UnsafeStore { .. }), "{error}");
        assert_eq!(error.class(), ErrorClass::Stop);
        assert_eq!(left_behind(&store.inner).await, 0);
    }
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_refused() {
    for oddity in [Oddity::IgnoresCreate, Oddity::IgnoresMatch] {
        let error = lake_over(Odd::new(oddity)).probe().await.unwrap_err();
        assert!(matches!(error, LakeError::UnsafeStore { .. }), "{oddity:?}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_used_is_explained_with_the_fix() {
    let cases = [
        (Oddity::NoBucket, "does not exist; create it", ErrorClass::Stop),
        (Oddity::WrongKeys, "check keys and policy", ErrorClass::Stop),
        (Oddity::NoConditions, "honours `If-None-Match`", ErrorClass::Stop),
        (Oddity::Hangs, "did not answer within 15 s", ErrorClass::Retry),
    ];
    for (oddity, expected, class) in cases {
        let error = lake_over(Odd::new(oddity)).probe().await.unwrap_err();
        assert!(error.to_string().contains(expected) && error.to_string().contains("`memory:///`"), "{error}");
        assert_eq!(error.class(), class, "{oddity:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_unreachable_endpoint_is_told_in_bounded_time() {
    let options = [
        ("aws_endpoint", "http://127.0.0.1:9"),
        ("aws_access_key_id", "key"),
        ("aws_secret_access_key", "secret"),
        ("aws_region", "us-east-1"),
    ];
    let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let lake = Lake::open(&StoreConfig { url: "s3://lake/tables".to_owned(), options }).unwrap();
    let error = lake.probe().await.unwrap_err();
    assert!(error.to_string().contains("s3://lake/tables"), "{error}");
    assert_eq!(error.class(), ErrorClass::Retry);
}

#[derive(Clone, Copy, Debug)]
enum Oddity {
    None,
    SecondWinner { every: u32 },
    IgnoresCreate,
    IgnoresMatch,
    NoBucket,
    WrongKeys,
    NoConditions,
    Hangs,
}

#[derive(Debug)]
struct Odd {
    inner: InMemory,
    oddity: Oddity,
    refused: AtomicU32,
    creations: AtomicU32,
}

impl Odd {
    fn new(oddity: Oddity) -> Arc<Self> {
        Arc::new(Self { inner: InMemory::new(), oddity, refused: AtomicU32::new(0), creations: AtomicU32::new(0) })
    }
}

impl fmt::Display for Odd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.oddity)
    }
}

#[async_trait]
impl ObjectStore for Odd {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let path = location.to_string();
        if options.mode == PutMode::Create {
            self.creations.fetch_add(1, Ordering::Relaxed);
        }
        match (self.oddity, &options.mode) {
            (Oddity::NoBucket, _) => Err(Error::NotFound { path, source: "NoSuchBucket".into() }),
            (Oddity::WrongKeys, _) => Err(Error::PermissionDenied { path, source: "InvalidAccessKeyId".into() }),
            (Oddity::Hangs, _) => std::future::pending().await,
            (Oddity::NoConditions, PutMode::Create) => {
                Err(Error::NotImplemented { operation: "create".to_owned(), implementer: "odd".to_owned() })
            }
            (Oddity::IgnoresCreate, PutMode::Create) | (Oddity::IgnoresMatch, PutMode::Update(_)) => {
                self.inner.put(location, payload).await
            }
            (Oddity::SecondWinner { every }, PutMode::Create) => {
                match self.inner.put_opts(location, payload.clone(), options).await {
                    // Seven of eight racers lose; one in `every` races lets one of them through.
                    Err(Error::AlreadyExists { .. })
                        if self.refused.fetch_add(1, Ordering::SeqCst) % (7 * every) == 3 =>
                    {
                        self.inner.put(location, payload).await
                    }
                    answer => answer,
                }
            }
            _ => self.inner.put_opts(location, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
