//! A local folder whose acknowledged writes survive a power cut.
//!
//! object_store 0.13 does not flush to disk, so a "committed" version could vanish, or appear without its data file.
//! This wrapper flushes the object and the folders above it before it answers. It adds nothing else: names, listing
//! and create-if-absent are those of `LocalFileSystem`.

use std::{fmt, fs::File, io, ops::Range, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart, local::LocalFileSystem, path::Path,
};

/// The whole local file system; paths are absolute paths without the leading `/`.
#[derive(Debug, Clone)]
pub(crate) struct DurableLocal {
    files: Arc<LocalFileSystem>,
}

impl DurableLocal {
    pub(crate) fn new() -> Self {
        Self { files: Arc::new(LocalFileSystem::new()) }
    }

    async fn flush(&self, location: &Path) -> Result<()> {
        let file = self.files.path_to_filesystem(location)?;
        tokio::task::spawn_blocking(move || flush_with_folders(file)).await?.map_err(failed)
    }
}

// A new object may have brought new folders with it, up to the root of the store and beyond; four levels cover a
// table folder (`pipeline/table/incarnation/_delta_log`).
fn flush_with_folders(file: PathBuf) -> io::Result<()> {
    File::open(&file)?.sync_all()?;
    for folder in file.ancestors().skip(1).take(5) {
        match File::open(folder) {
            Ok(folder) => folder.sync_all()?,
            // A folder above the store that we may not even list is not one that we made.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn failed(error: io::Error) -> Error {
    Error::Generic { store: "local folder", source: error.into() }
}

impl fmt::Display for DurableLocal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "durable {}", self.files)
    }
}

#[async_trait]
impl ObjectStore for DurableLocal {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let result = self.files.put_opts(location, payload, options).await?;
        self.flush(location).await?;
        Ok(result)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let inner = self.files.put_multipart_opts(location, options).await?;
        Ok(Box::new(DurableUpload { inner, store: self.clone(), location: location.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await?;
        self.flush(to).await
    }
}

#[derive(Debug)]
struct DurableUpload {
    inner: Box<dyn MultipartUpload>,
    store: DurableLocal,
    location: Path,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        self.store.flush(&self.location).await?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use object_store::{ObjectStoreExt, PutMode};

    use super::*;

    #[tokio::test]
    async fn objects_are_written_read_and_created_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableLocal::new();
        let location = Path::from_absolute_path(folder.path().join("a/b/c/d.json")).unwrap();
        let create = || PutOptions::from(PutMode::Create);
        store.put_opts(&location, "one".into(), create()).await.unwrap();
        let second = store.put_opts(&location, "two".into(), create()).await;
        assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");
        assert_eq!(store.get(&location).await.unwrap().bytes().await.unwrap(), "one");
    }

    #[tokio::test]
    async fn a_multipart_upload_arrives_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableLocal::new();
        let location = Path::from_absolute_path(folder.path().join("big")).unwrap();
        let mut upload = store.put_multipart(&location).await.unwrap();
        upload.put_part("first".into()).await.unwrap();
        upload.put_part("second".into()).await.unwrap();
        upload.complete().await.unwrap();
        assert_eq!(store.get(&location).await.unwrap().bytes().await.unwrap(), "firstsecond");
    }
}
