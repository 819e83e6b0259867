//! One process per embedded log.
//!
//! Invariant: the lock is the operating system's and dies with its process, so a crash never leaves
//! a folder locked. The number in the file only tells people whom to stop.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use crate::TopicError;

const FILE: &str = "lock";
/// How often a lock is tried that this very process holds: its last reader may just be ending.
const OWN_TRIES: u32 = 50;
const BETWEEN_TRIES: Duration = Duration::from_millis(10);

/// Held as long as the log is open.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    pub(crate) fn take(folder: &Path) -> Result<Self, TopicError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join(FILE))
            .map_err(|error| super::cannot_open(folder, error))?;
        for _ in 0..OWN_TRIES {
            match file.try_lock() {
                Ok(()) => return Self::sign(folder, file),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(super::cannot_open(folder, error)),
            }
            let holder = read_pid(&mut file);
            if holder != 0 && holder != std::process::id() {
                break;
            }
            std::thread::sleep(BETWEEN_TRIES);
        }
        Err(TopicError::InUse { path: folder.to_owned(), pid: read_pid(&mut file) })
    }

    fn sign(folder: &Path, mut file: File) -> Result<Self, TopicError> {
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(std::process::id().to_string().as_bytes()));
        written.map_err(|error| super::cannot_open(folder, error))?;
        Ok(Self { _file: file })
    }
}

/// 0 where the holder has not signed yet.
fn read_pid(file: &mut File) -> u32 {
    let mut text = String::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut text));
    match read {
        Ok(_) => text.trim().parse().unwrap_or(0),
        Err(_) => 0,
    }
}
