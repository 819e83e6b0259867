//! A local folder whose acknowledged writes survive a power cut.
//!
//! object_store 0.13 does not flush to disk, so a "committed" version could vanish, or stand there empty. Here an
//! object gets its name only when its contents are on the disk, so whoever sees it sees all of it, before and after a
//! power cut; and a put is answered only when the name is on the disk too. All else is as `LocalFileSystem` has it:
//! paths, listings, reads, and that one of several creators wins.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path as FilePath, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart, local::LocalFileSystem, path::Path,
};

/// Folders above an object that are flushed with it although they were there: somebody else may have just made them,
/// up to the root of the store and beyond. Five cover a table's log (`pipeline/table/incarnation/_delta_log`).
const FOLDERS_FLUSHED: usize = 5;

/// The whole local file system; paths are absolute paths without the leading `/`.
#[derive(Debug, Clone)]
pub(crate) struct DurableLocal {
    files: Arc<LocalFileSystem>,
}

impl DurableLocal {
    pub(crate) fn new() -> Self {
        Self { files: Arc::new(LocalFileSystem::new()) }
    }
}

/// A file beside its object's place, without the object's name yet. Listings leave out what is called so, and what a
/// killed process leaves behind of it is in nobody's way.
#[derive(Debug)]
struct Staged {
    file: File,
    object: PathBuf,
    /// `None` once it has the object's name, or is gone.
    path: Option<PathBuf>,
    /// How many folders above the object are flushed with its name.
    folders: usize,
}

impl Staged {
    fn beside(object: PathBuf) -> io::Result<Self> {
        let folders = make_folders(&object)?;
        let mut number = 1;
        loop {
            let path = staged_path(&object, number);
            match File::options().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { file, object, path: Some(path), folders }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn write_at(&mut self, offset: u64, payload: &PutPayload) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        payload.iter().try_for_each(|bytes| self.file.write_all(bytes))
    }

    /// Flushes the contents, gives them their name, and flushes that.
    fn publish(&mut self, mode: &PutMode) -> Result<()> {
        self.file.sync_all().map_err(failed)?;
        self.give_name(mode).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => taken(&self.object, error),
            _ => failed(error),
        })?;
        flush_folders(&self.object, self.folders).map_err(failed)
    }

    fn give_name(&mut self, mode: &PutMode) -> io::Result<()> {
        let Some(path) = &self.path else { return Err(io::ErrorKind::NotFound.into()) };
        if *mode == PutMode::Create {
            fs::hard_link(path, &self.object)?;
            self.discard();
        } else {
            fs::rename(path, &self.object)?;
            self.path = None;
        }
        Ok(())
    }

    fn discard(&mut self) {
        let Some(path) = self.path.take() else { return };
        if let Err(error) = fs::remove_file(&path) {
            tracing::debug!(path = %path.display(), %error, "staged file not removed");
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.discard();
    }
}

/// As `LocalFileSystem` calls them: it takes `NAME#DIGITS` for no object.
fn staged_path(object: &FilePath, number: u64) -> PathBuf {
    let mut path = object.as_os_str().to_owned();
    path.push(format!("#{number}"));
    path.into()
}

/// Makes the folders above an object that are not there. Says how many are to be flushed with its name: all new ones,
/// and the one that they were made in.
fn make_folders(object: &FilePath) -> io::Result<usize> {
    let missing = object.ancestors().skip(1).take_while(|folder| !folder.exists()).count();
    if missing == 0 {
        return Ok(FOLDERS_FLUSHED);
    }
    object.parent().map_or(Ok(()), fs::create_dir_all)?;
    Ok(FOLDERS_FLUSHED.max(missing + 1))
}

fn flush_folders(object: &FilePath, folders: usize) -> io::Result<()> {
    for folder in object.ancestors().skip(1).take(folders) {
        match File::open(folder) {
            Ok(folder) => folder.sync_all()?,
            // A folder above the store that we may not even list is not one that we made.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn put(object: PathBuf, payload: &PutPayload, mode: &PutMode) -> Result<()> {
    // Whoever comes second need not wait for the disk. Of those who come at once, the link has one win.
    if *mode == PutMode::Create && object.exists() {
        return Err(taken(&object, io::ErrorKind::AlreadyExists.into()));
    }
    let mut staged = Staged::beside(object).map_err(failed)?;
    staged.write_at(0, payload).map_err(failed)?;
    staged.publish(mode)
}

/// Work on a thread that may block. It goes on to its end when nobody waits for it any more.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

/// Nobody compares the tags of what is written here: `LocalFileSystem` has no conditional puts.
fn untagged() -> PutResult {
    PutResult { e_tag: None, version: None }
}

fn taken(object: &FilePath, source: io::Error) -> Error {
    Error::AlreadyExists { path: object.display().to_string(), source: source.into() }
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
        if matches!(options.mode, PutMode::Update(_)) || !options.attributes.is_empty() {
            // Which it does not implement, and says so.
            return self.files.put_opts(location, payload, options).await;
        }
        let object = self.files.path_to_filesystem(location)?;
        blocking(move || put(object, &payload, &options.mode)).await?;
        Ok(untagged())
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if !options.attributes.is_empty() {
            return self.files.put_multipart_opts(location, options).await;
        }
        let object = self.files.path_to_filesystem(location)?;
        let staged = blocking(move || Staged::beside(object).map_err(failed)).await?;
        Ok(Box::new(DurableUpload { staged: Some(Arc::new(Mutex::new(staged))), next: 0 }))
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
        let copy = self.files.path_to_filesystem(to)?;
        blocking(move || {
            File::open(&copy).and_then(|file| file.sync_all()).map_err(failed)?;
            flush_folders(&copy, FOLDERS_FLUSHED).map_err(failed)
        })
        .await
    }
}

/// An upload in parts. Nothing of one that is aborted or dropped stays.
#[derive(Debug)]
struct DurableUpload {
    /// `None` once it is over.
    staged: Option<Arc<Mutex<Staged>>>,
    /// Where the next part begins.
    next: u64,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (staged, offset) = (self.staged.clone(), self.next);
        self.next += data.content_length() as u64;
        Box::pin(blocking(move || {
            let staged = staged.ok_or_else(over)?;
            locked(&staged).write_at(offset, &data).map_err(failed)
        }))
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.staged.take().ok_or_else(over)?;
        blocking(move || locked(&staged).publish(&PutMode::Overwrite)).await?;
        Ok(untagged())
    }

    async fn abort(&mut self) -> Result<()> {
        let Some(staged) = self.staged.take() else { return Ok(()) };
        blocking(move || {
            locked(&staged).discard();
            Ok(())
        })
        .await
    }
}

fn locked(staged: &Mutex<Staged>) -> MutexGuard<'_, Staged> {
    staged.lock().unwrap_or_else(PoisonError::into_inner)
}

fn over() -> Error {
    Error::Generic { store: "local folder", source: "the upload is over".into() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;

    use super::*;

    fn names(folder: &FilePath) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    async fn contents(store: &DurableLocal, location: &Path) -> Bytes {
        store.get(location).await.unwrap().bytes().await.unwrap()
    }

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

    #[tokio::test]
    async fn a_put_is_whole_under_its_name_and_leaves_no_staged_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableLocal::new();
        let location = Path::from_absolute_path(folder.path().join("0.json")).unwrap();
        // What a process that was killed left behind is in nobody's way.
        fs::write(folder.path().join("0.json#1"), "torn").unwrap();
        let payload = || PutPayload::from_iter(["first", "second"].map(Bytes::from));
        for (mode, body) in [(PutMode::Create, payload()), (PutMode::Overwrite, "third".into())] {
            let expected = Bytes::from(body.clone());
            store.put_opts(&location, body, mode.into()).await.unwrap();
            assert_eq!(contents(&store, &location).await, expected);
            assert_eq!(names(folder.path()), ["0.json", "0.json#1"]);
        }
        let second = store.put_opts(&location, payload(), PutMode::Create.into()).await;
        assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");
        assert_eq!((contents(&store, &location).await, names(folder.path()).len()), (Bytes::from("third"), 2));
        let above = Path::from_absolute_path(folder.path()).unwrap();
        let listed: Vec<ObjectMeta> = store.list(Some(&above)).try_collect().await.unwrap();
        assert_eq!(listed.into_iter().map(|object| object.location).collect::<Vec<_>>(), [location]);
    }

    #[tokio::test]
    async fn of_many_creators_one_wins_and_no_staged_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableLocal::new();
        let location = Path::from_absolute_path(folder.path().join("0.json")).unwrap();
        let bodies: Vec<String> = (0..16).map(|creator| format!("creator {creator}")).collect();
        let puts = bodies.iter().map(|body| store.put_opts(&location, body.clone().into(), PutMode::Create.into()));
        let answers = futures::future::join_all(puts).await;
        let winners: Vec<usize> = (0..16).filter(|creator| answers[*creator].is_ok()).collect();
        let lost = |answer: &&Result<PutResult>| matches!(answer, Err(Error::AlreadyExists { .. }));
        assert_eq!((winners.len(), answers.iter().filter(lost).count()), (1, 15), "{answers:?}");
        assert_eq!(contents(&store, &location).await, bodies[winners[0]]);
        assert_eq!(names(folder.path()), ["0.json"]);
    }

    #[tokio::test]
    async fn an_upload_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = DurableLocal::new();
        let location = Path::from_absolute_path(folder.path().join("big")).unwrap();
        for is_aborted in [true, false] {
            let mut upload = store.put_multipart(&location).await.unwrap();
            upload.put_part("first".into()).await.unwrap();
            assert_eq!(names(folder.path()), ["big#1"]);
            if is_aborted {
                upload.abort().await.unwrap();
            }
            drop(upload);
            assert!(names(folder.path()).is_empty());
        }
    }

    #[test]
    fn all_new_folders_are_flushed_however_many_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let object = folder.path().join("pipeline/table/1/a=1/b=2/c=3/part");
        assert_eq!(make_folders(&object).unwrap(), 7);
        assert_eq!(make_folders(&object).unwrap(), FOLDERS_FLUSHED);
    }
}
