//! The embedded log's store against another well-kept one, at what the log asks of it: large values, in order, durable
//! in groups.
//!
//! Only with `--features benches/stores`: the other store would give hashbrown, and with it DataFusion, features that
//! `cargo run --release` builds without, so that all of it would be built twice.

use std::{ops::Range, path::Path};

use anyhow::Result;
use batch::{Compression, encode_stream};
use bytes::Bytes;

use crate::{
    stages::{ROWS, sample, timed},
    stopwatch::print_head,
};

const GROUPS: u64 = 60;
/// Messages that become durable together.
const GROUP: u64 = 8;

pub(crate) fn run() -> Result<()> {
    let payload = encode_stream(&sample()?.slice(0, ROWS / 2), Compression::None)?;
    let folder = tempfile::tempdir()?;
    print_head();
    fjall_alone(&folder.path().join("fjall"), &payload)?;
    redb_alone(&folder.path().join("redb"), &payload)
}

fn fjall_alone(path: &Path, payload: &Bytes) -> Result<()> {
    let database = fjall::Database::builder(path).open()?;
    let messages = database.keyspace("messages", fjall::KeyspaceCreateOptions::default)?;
    appended("fjall", payload, |keys| {
        for key in keys {
            messages.insert(key.to_be_bytes(), payload.as_ref())?;
        }
        Ok(database.persist(fjall::PersistMode::SyncAll)?)
    })
}

fn redb_alone(path: &Path, payload: &Bytes) -> Result<()> {
    let database = redb::Database::create(path)?;
    let table: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("messages");
    appended("redb", payload, |keys| {
        let write = database.begin_write()?;
        {
            let mut messages = write.open_table(table)?;
            for key in keys {
                messages.insert(key, payload.as_ref())?;
            }
        }
        Ok(write.commit()?)
    })
}

/// Times a store that has `append_group` append the payload under each of some keys.
fn appended(store: &str, payload: &Bytes, append_group: impl Fn(Range<u64>) -> Result<()>) -> Result<()> {
    let messages = GROUPS * GROUP;
    let (rows, bytes) = (messages * ROWS as u64 / 2, messages * payload.len() as u64);
    timed(&format!("append in groups of {GROUP}, {store} alone"), rows, bytes, || {
        (0..GROUPS).try_for_each(|group| append_group(group * GROUP..(group + 1) * GROUP))
    })
}
