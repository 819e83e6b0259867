//! The ledger file: what was about to be sent, and what became of it.
//!
//! Invariant: a row is in the file before it is sent, and its fate after; both are synced to disk. So whatever kills
//! the producer, a row of unknown fate is written down as just that: an intent without a fate.
//!
//! The file grows only at its end. Each line is a JSON object; a last line without its end was torn and counts as not
//! written. About 15 bytes a row:
//!
//! * `{"begin": {…}}` opens a session: who sends, and everything the content of its rows depends on. The first one
//!   names run and producer for good; a later one (the same file given again) may change seed and sizes.
//! * `{"i": 12, "at": 1764…, "n": 100, "r": [3,17, 5,2, …]}` intends to send batch 12: milliseconds since 1970, how
//!   many rows must appear together, and a key and sequence number per row. Key -1 counts the bad rows.
//! * `{"f": 12, "x": "aak?-", "p": [0,17, 1,4]}` is the fate of batch 12, one letter a row (or one for all):
//!   `a` acknowledged, `?` unknown, `-` certainly not written; `A` acknowledged at a place, and `p` holds partition
//!   and offset of each `A`.
//!
//! Deliberately absent: what the rows say (`content`), and what the file amounts to (`books`).

use std::{
    fs::{File, OpenOptions},
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};

use super::{
    books::Books,
    content::{Sender, Settings},
};

/// A line that begins a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begin {
    pub(crate) format: u32,
    pub(crate) run: String,
    pub(crate) producer: String,
    #[serde(flatten)]
    pub(crate) settings: Settings,
    pub(crate) keys: u64,
    /// Over how many partitions keys are spread; the same in all sessions, or a key would move.
    pub(crate) partitions: u32,
    pub(crate) over: String,
    /// `pipeline.source` the rows go to.
    pub(crate) target: String,
}

/// The one format there is.
pub(crate) const FORMAT: u32 = 1;

/// How often, and how long apart, a taken ledger is looked at again before its holder is believed.
const LOCK_ATTEMPTS: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

impl Begin {
    pub(crate) fn sender(&self) -> Sender {
        Sender { run: self.run.clone(), producer: self.producer.clone() }
    }
}

/// Where a row stands in the source's topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) partition: u32,
    pub(crate) offset: u64,
}

/// What became of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is durable, and where it stands is known or not.
    Acked(Option<Place>),
    /// It may be in the topic or not.
    Unknown,
    /// It is certainly not in the topic.
    Failed,
}

/// Rows about to be sent together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Intent {
    pub(crate) batch: u64,
    pub(crate) at_ms: i64,
    /// How many rows must appear together.
    pub(crate) batch_rows: u32,
    /// Key and sequence number of each.
    pub(crate) rows: Vec<(i64, i64)>,
}

/// A line as it stands in the file: exactly one of `begin`, `i` and `f`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    begin: Option<Begin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    i: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    r: Vec<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    f: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    x: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    p: Vec<u64>,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Begin(Begin),
    Intent(Intent),
    Fates { batch: u64, fates: Vec<Fate> },
}

impl Entry {
    fn to_line(&self) -> anyhow::Result<String> {
        let line = match self {
            Self::Begin(begin) => Line { begin: Some(begin.clone()), ..Line::default() },
            Self::Intent(intent) => Line {
                i: Some(intent.batch),
                at: Some(intent.at_ms),
                n: Some(intent.batch_rows),
                r: intent.rows.iter().flat_map(|&(key, seq)| [key, seq]).collect(),
                ..Line::default()
            },
            Self::Fates { batch, fates } => fates_line(*batch, fates),
        };
        Ok(serde_json::to_string(&line)? + "\n")
    }

    fn from_line(text: &str) -> anyhow::Result<Self> {
        let line: Line = serde_json::from_str(text)?;
        match line {
            Line { begin: Some(begin), .. } if begin.format == FORMAT => Ok(Self::Begin(begin)),
            Line { begin: Some(begin), .. } => bail!("format {} is not known; use a newer tailwater", begin.format),
            Line { i: Some(batch), at: Some(at_ms), n: Some(batch_rows), r, .. } if r.len().is_multiple_of(2) => {
                let rows = r.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
                Ok(Self::Intent(Intent { batch, at_ms, batch_rows, rows }))
            }
            Line { f: Some(batch), x, p, .. } => Ok(Self::Fates { batch, fates: read_fates(&x, &p)? }),
            _ => bail!("it is neither a session, an intent nor a fate"),
        }
    }
}

fn fates_line(batch: u64, fates: &[Fate]) -> Line {
    let mut line = Line { f: Some(batch), ..Line::default() };
    let uniform = fates.windows(2).all(|pair| pair[0] == pair[1]);
    for fate in if uniform { &fates[..fates.len().min(1)] } else { fates } {
        line.x.push(match fate {
            Fate::Acked(Some(place)) => {
                line.p.extend([u64::from(place.partition), place.offset]);
                'A'
            }
            Fate::Acked(None) => 'a',
            Fate::Unknown => '?',
            Fate::Failed => '-',
        });
    }
    line
}

fn read_fates(letters: &str, places: &[u64]) -> anyhow::Result<Vec<Fate>> {
    let mut places = places.chunks_exact(2);
    let fate = |letter| {
        Ok(match letter {
            'A' => {
                let place = places.next().ok_or_else(|| anyhow!("a place is missing"))?;
                Fate::Acked(Some(Place { partition: u32::try_from(place[0])?, offset: place[1] }))
            }
            'a' => Fate::Acked(None),
            '?' => Fate::Unknown,
            '-' => Fate::Failed,
            other => bail!("fate `{other}` is not known"),
        })
    };
    letters.chars().map(fate).collect()
}

/// A ledger open for writing. One process at a time.
#[derive(Debug)]
pub(crate) struct Ledger {
    file: File,
    path: PathBuf,
    held: String,
}

impl Ledger {
    /// Opens or makes the file, cuts a torn end off, and says what it amounts to so far.
    pub(crate) fn open(path: &Path) -> anyhow::Result<(Self, Option<Books>)> {
        let named = || format!("ledger `{}`", path.display());
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).open(path).with_context(named)?;
        if !locked(&file) {
            bail!("ledger `{}` is in use by another producer; give each its own --ledger", path.display());
        }
        cut_torn_end(&mut file).with_context(named)?;
        let books = if file.metadata().with_context(named)?.len() == 0 { None } else { Some(read(path)?) };
        Ok((Self { file, path: path.to_owned(), held: String::new() }, books))
    }

    /// Takes an entry in; it is in the file after the next `sync`.
    pub(crate) fn write(&mut self, entry: &Entry) -> anyhow::Result<()> {
        self.held += &entry.to_line()?;
        Ok(())
    }

    /// Returns when everything written is on disk.
    pub(crate) fn sync(&mut self) -> anyhow::Result<()> {
        let named = || format!("ledger `{}`", self.path.display());
        self.file.write_all(self.held.as_bytes()).with_context(named)?;
        self.held.clear();
        self.file.sync_data().with_context(named)
    }
}

/// Whether the ledger is ours now. A program that is being started holds a copy of every open file until it runs, so one
/// that was just given back may seem taken for a moment.
fn locked(file: &File) -> bool {
    (0..LOCK_ATTEMPTS).any(|attempt| {
        if attempt > 0 {
            std::thread::sleep(LOCK_PAUSE);
        }
        file.try_lock().is_ok()
    })
}

fn cut_torn_end(file: &mut File) -> std::io::Result<()> {
    let length = file.metadata()?.len();
    let mut end = length;
    let mut window = [0_u8; 4096];
    while end > 0 {
        let from = end.saturating_sub(window.len() as u64);
        let part = &mut window[..usize::try_from(end - from).unwrap_or(0)];
        file.seek(SeekFrom::Start(from))?;
        file.read_exact(part)?;
        if let Some(place) = part.iter().rposition(|&byte| byte == b'\n') {
            end = from + place as u64 + 1;
            break;
        }
        end = from;
    }
    if end < length { file.set_len(end) } else { Ok(()) }
}

/// Reads a whole ledger.
pub(crate) fn read(path: &Path) -> anyhow::Result<Books> {
    let file = File::open(path).with_context(|| format!("ledger `{}`", path.display()))?;
    let mut input = BufReader::with_capacity(1 << 20, file);
    let mut books = None;
    let (mut text, mut number) = (String::new(), 0);
    loop {
        text.clear();
        number += 1;
        let place = || format!("ledger `{}`, line {number}", path.display());
        if input.read_line(&mut text).with_context(place)? == 0 || !text.ends_with('\n') {
            break;
        }
        let entry = Entry::from_line(&text).with_context(place)?;
        match (&mut books, entry) {
            (None, Entry::Begin(begin)) => books = Some(Books::begin(begin)),
            (None, _) => bail!("ledger `{}` does not begin with a session; is it a ledger?", path.display()),
            (Some(books), entry) => books.take(entry).with_context(place)?,
        }
    }
    books.ok_or_else(|| anyhow!("ledger `{}` is empty", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn begin() -> Begin {
        Begin {
            format: FORMAT,
            run: "r".into(),
            producer: "p".into(),
            settings: Settings { seed: 7, min_bytes: 0, max_bytes: 40 },
            keys: 4,
            partitions: 2,
            over: "topic".into(),
            target: "verify.events".into(),
        }
    }

    fn place(partition: u32, offset: u64) -> Fate {
        Fate::Acked(Some(Place { partition, offset }))
    }

    fn entries() -> Vec<Entry> {
        vec![
            Entry::Begin(begin()),
            Entry::Intent(Intent { batch: 0, at_ms: 5, batch_rows: 1, rows: vec![(1, 0), (2, 0), (-1, 0), (1, 1)] }),
            Entry::Fates { batch: 0, fates: vec![place(1, 9), Fate::Unknown, Fate::Acked(None), Fate::Failed] },
            Entry::Intent(Intent { batch: 1, at_ms: 6, batch_rows: 2, rows: vec![(2, 1), (3, 0)] }),
            Entry::Fates { batch: 1, fates: vec![place(0, 3)] },
        ]
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for entry in entries() {
            assert_eq!(Entry::from_line(&entry.to_line().unwrap()).unwrap(), entry);
        }
        let same = Entry::Fates { batch: 3, fates: vec![Fate::Unknown; 100] };
        assert!(same.to_line().unwrap().len() < 30, "one letter stands for all rows");
    }

    #[test]
    fn a_torn_end_is_cut_off_and_the_rest_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let (mut ledger, none) = Ledger::open(&path).unwrap();
        assert!(none.is_none());
        for entry in entries() {
            ledger.write(&entry).unwrap();
        }
        ledger.sync().unwrap();
        drop(ledger);
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let lines = whole[..cut].iter().filter(|&&byte| byte == b'\n').count();
            let (_, books) = Ledger::open(&path).unwrap();
            assert_eq!(books.is_some(), lines > 0, "cut at {cut}");
            let kept = std::fs::read(&path).unwrap();
            assert!(whole.starts_with(&kept) && (kept.is_empty() || kept.ends_with(b"\n")));
        }
    }

    #[test]
    fn two_producers_cannot_share_a_ledger() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let first = Ledger::open(&path).unwrap();
        let error = Ledger::open(&path).unwrap_err();
        assert!(error.to_string().contains("its own --ledger"), "{error}");
        drop(first);
        Ledger::open(&path).unwrap();
    }

    #[test]
    fn a_damaged_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger");
        let first = Entry::Begin(begin()).to_line().unwrap();
        std::fs::write(&path, format!("{first}{{\"i\":0,\"x\":1}}\n")).unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("line 2"), "{error}");
        std::fs::write(&path, "not a ledger\n").unwrap();
        assert!(read(&path).is_err());
    }
}
