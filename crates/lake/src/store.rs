//! Where tables live: a local folder, an S3 bucket, or memory, behind one handle.
//!
//! A `Lake` pairs a store with the address its tables have for other readers. Everything this crate reads or writes
//! lies under that address. Environment variables of the AWS tools are honoured; explicit options win over them.
//! Deliberately absent: other clouds, and any fallback from one store to another.

use std::{collections::BTreeMap, fmt, path::Path as FilePath, sync::Arc, time::Duration};

use deltalake_core::logstore::{LogStoreRef, StorageConfig, default_logstore};
use object_store::{
    BackoffConfig, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    memory::InMemory,
    path::Path,
    prefix::PrefixStore,
};
use tokio::sync::Semaphore;
use url::Url;

use crate::{
    LakeError,
    ambient::{Ambient, Clock},
    local::DurableLocal,
    probe,
};

/// Which store, and how to reach it.
#[derive(Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct StoreConfig {
    /// A folder, `file://…`, `s3://bucket/prefix` or `memory://`.
    pub url: String,
    /// Options of the S3 client under their object_store names, such as `aws_endpoint` or `aws_access_key_id`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let masked: BTreeMap<_, _> = self.options.iter().map(|(key, value)| (key, mask(key, value))).collect();
        formatter.debug_struct("StoreConfig").field("url", &self.url).field("options", &masked).finish()
    }
}

// Whatever is not known to be harmless is a secret.
fn mask<'a>(key: &str, value: &'a str) -> &'a str {
    let key = key.to_lowercase();
    let harmless = ["endpoint", "region", "allow_http", "bucket", "conditional_put", "timeout", "virtual_hosted"];
    if harmless.iter().any(|word| key.contains(word)) { value } else { "***" }
}

/// A store of tables. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Lake {
    bucket: Arc<dyn ObjectStore>,
    store: Arc<dyn ObjectStore>,
    root: Url,
    pub(crate) ambient: Ambient,
    /// Log checkpoints are written one at a time: each holds a blocking thread while it asks the store, and a store
    /// that is a folder needs another one to answer.
    pub(crate) checkpointing: Arc<Semaphore>,
}

impl fmt::Debug for Lake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Lake").field("root", &self.root.as_str()).finish_non_exhaustive()
    }
}

impl Lake {
    /// Opens a store. Talks to no server yet, see [`probe`](Self::probe); a local folder is created.
    ///
    /// # Errors
    /// `BadStore`, which names the address and the fix.
    pub fn open(config: &StoreConfig) -> Result<Self, LakeError> {
        let address = config.url.trim();
        match address.split_once("://").map(|(scheme, _)| scheme) {
            Some("s3" | "s3a") => open_s3(config),
            Some("memory") => Ok(Self::memory()),
            Some("file") => open_folder(config, &folder_of_url(config)?),
            None if !address.is_empty() => open_folder(config, FilePath::new(address)),
            Some(scheme) => {
                Err(bad(config, format!("scheme `{scheme}` is not known; use a folder or `s3://bucket/prefix`")))
            }
            None => Err(bad(config, "the address is empty; use a folder or `s3://bucket/prefix`")),
        }
    }

    /// A store in memory that lasts as long as its clones: for tests and demonstrations.
    pub fn memory() -> Self {
        let root = Url::parse("memory:///").expect("a constant address parses");
        Self::with_store(Arc::new(InMemory::new()), root)
    }

    /// A store of the caller's making. `bucket` is what the scheme and host of `root` name; the path of `root` is
    /// the folder within it.
    pub fn with_store(bucket: Arc<dyn ObjectStore>, mut root: Url) -> Self {
        if !root.path().ends_with('/') {
            root.set_path(&format!("{}/", root.path()));
        }
        let prefix = Path::from_url_path(root.path()).unwrap_or_else(|_| Path::from(root.path()));
        let store: Arc<dyn ObjectStore> = if prefix.as_ref().is_empty() {
            Arc::clone(&bucket)
        } else {
            Arc::new(PrefixStore::new(Arc::clone(&bucket), prefix))
        };
        Self { bucket, store, root, ambient: Ambient::default(), checkpointing: Arc::new(Semaphore::new(1)) }
    }

    /// Takes the wall time from `clock` from now on.
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.ambient = self.ambient.with_clock(clock);
        self
    }

    /// Draws names and jitter from a seed from now on: for reproducible tests only, since names become guessable.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.ambient = self.ambient.with_seed(seed);
        self
    }

    /// Shows that the store can be reached, written to, and keeps its promise that only one of several racing
    /// creators of an object wins. Takes a bounded time and leaves nothing behind but a note
    /// that it was passed, so that a start within a day of it is quick.
    ///
    /// # Errors
    /// `UnsafeStore` (never use it), `StoreRefused` (bucket or credentials), `StoreUnreachable` (try again).
    pub async fn probe(&self) -> Result<(), LakeError> {
        probe::run(self).await
    }

    /// The store; its paths are relative to [`root_url`](Self::root_url).
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.store)
    }

    /// The whole bucket or file system that [`root_url`](Self::root_url) lies in; its paths are those of the URL.
    pub fn bucket(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.bucket)
    }

    /// The address of the store as other readers know it; ends with `/`.
    pub fn root_url(&self) -> &Url {
        &self.root
    }

    /// The address of a table folder; ends with `/`.
    pub fn table_url(&self, folder: &str) -> Url {
        let mut url = self.root.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(folder.split('/').filter(|part| !part.is_empty())).push("");
        }
        url
    }

    pub(crate) fn now_ms(&self) -> i64 {
        self.ambient.now_ms()
    }

    /// The folder as a path of [`store`](Self::store).
    pub(crate) fn folder_path(folder: &str) -> Path {
        Path::from_iter(folder.split('/').filter(|part| !part.is_empty()))
    }

    /// The library's view of one table's log.
    pub(crate) fn log_store(&self, folder: &str) -> LogStoreRef {
        let prefixed = Arc::new(PrefixStore::new(self.store(), Self::folder_path(folder)));
        default_logstore(prefixed, self.bucket(), &self.table_url(folder), &StorageConfig::default())
    }
}

fn open_folder(config: &StoreConfig, folder: &FilePath) -> Result<Lake, LakeError> {
    let refuse = |error: std::io::Error| LakeError::BadStore {
        url: config.url.clone(),
        reason: "the folder cannot be created; check the path and its permissions".to_owned(),
        source: Some(error.into()),
    };
    if !config.options.is_empty() {
        return Err(bad(config, "options are for S3 and mean nothing for a folder; remove them"));
    }
    std::fs::create_dir_all(folder).map_err(refuse)?;
    let folder = folder.canonicalize().map_err(refuse)?;
    let root = Url::from_directory_path(&folder).map_err(|()| bad(config, "the folder has no absolute path"))?;
    if Path::from_url_path(root.path()).is_err() {
        return Err(bad(config, "the folder's path contains control characters or is not UTF-8; use another folder"));
    }
    Ok(Lake::with_store(Arc::new(DurableLocal::new()), root))
}

fn folder_of_url(config: &StoreConfig) -> Result<std::path::PathBuf, LakeError> {
    Url::parse(config.url.trim())
        .ok()
        .and_then(|url| url.to_file_path().ok())
        .ok_or_else(|| bad(config, "a file address needs an absolute path, as in `file:///data/tables`"))
}

fn open_s3(config: &StoreConfig) -> Result<Lake, LakeError> {
    let root = Url::parse(&config.url.trim().replacen("s3a://", "s3://", 1))
        .ok()
        .filter(|url| url.host_str().is_some_and(|bucket| !bucket.is_empty()))
        .ok_or_else(|| bad(config, "an S3 address names a bucket, as in `s3://bucket/prefix`"))?;
    let bucket = root.host_str().unwrap_or_default().to_owned();
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(request_retries());
    for (key, value) in &config.options {
        builder = builder.with_config(s3_key(config, key)?, value);
    }
    let plain_http = |endpoint: String| endpoint.to_lowercase().starts_with("http://");
    if builder.get_config_value(&AmazonS3ConfigKey::Endpoint).is_some_and(plain_http) {
        builder = builder.with_allow_http(true);
    }
    let store = builder.build().map_err(|error| LakeError::BadStore {
        url: config.url.clone(),
        reason: "the S3 client cannot be set up; check the options".to_owned(),
        source: Some(error.into()),
    })?;
    Ok(Lake::with_store(Arc::new(store), root))
}

fn s3_key(config: &StoreConfig, key: &str) -> Result<AmazonS3ConfigKey, LakeError> {
    let known = key.to_lowercase().parse::<AmazonS3ConfigKey>();
    known.map_err(|_| {
        bad(config, format!("option `{key}` is not known; S3 options look like `aws_endpoint`, `aws_region`"))
    })
}

// Few and short: the callers in this crate retry too, and know which requests may be repeated.
fn request_retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 3,
        retry_timeout: Duration::from_secs(20),
    }
}

fn bad(config: &StoreConfig, reason: impl Into<String>) -> LakeError {
    LakeError::BadStore { url: config.url.clone(), reason: reason.into(), source: None }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(url: &str, options: &[(&str, &str)]) -> StoreConfig {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        StoreConfig { url: url.to_owned(), options }
    }

    #[test]
    fn secrets_never_show_in_debug_output() {
        let options = [("aws_secret_access_key", "hush"), ("aws_session_token", "hush"), ("aws_region", "eu-1")];
        let shown = format!("{:?}", config("s3://b", &options));
        assert!(!shown.contains("hush") && shown.contains("eu-1"), "{shown}");
    }

    #[test]
    fn a_local_folder_is_created_and_addressed_as_a_file_url() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("my tables");
        let lake = Lake::open(&config(folder.to_str().unwrap(), &[])).unwrap();
        assert!(folder.is_dir());
        assert!(lake.root_url().as_str().ends_with("/my%20tables/"), "{}", lake.root_url());
        assert!(lake.table_url("shop/orders/1").as_str().ends_with("/my%20tables/shop/orders/1/"));

        let by_url = Lake::open(&config(lake.root_url().as_str(), &[])).unwrap();
        assert_eq!(by_url.root_url(), lake.root_url());
    }

    #[test]
    fn a_bad_address_or_option_is_refused_with_the_fix() {
        let cases = [
            (config("", &[]), "empty"),
            (config("gs://bucket", &[]), "scheme `gs`"),
            (config("s3://", &[]), "names a bucket"),
            (config("s3://bucket", &[("aws_endpiont", "x")]), "`aws_endpiont`"),
            (config("some/folder", &[("aws_region", "x")]), "options are for S3"),
        ];
        for (config, expected) in cases {
            let error = Lake::open(&config).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn an_s3_address_keeps_its_prefix() {
        let options =
            [("aws_endpoint", "http://127.0.0.1:1"), ("AWS_ACCESS_KEY_ID", "k"), ("aws_secret_access_key", "s")];
        let lake = Lake::open(&config("s3://bucket/some/prefix", &options)).unwrap();
        assert_eq!(lake.table_url("shop/orders/1").as_str(), "s3://bucket/some/prefix/shop/orders/1/");
    }
}
