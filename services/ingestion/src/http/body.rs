//! Reads a request body under its limits: unpacked while it arrives, and stopped the moment it grows too large.
//!
//! Memory is accounted for before it is used. A request whose size is known waits for room; one that grows beyond what
//! it has reserved takes more if there is some and is turned away if not. Nobody waits for ever, or keeps room for ever
//! for a client that says nothing more: it may be gone without a word.

use std::{
    io::{self, Write},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt as _;
use runtime::memory::{BodyShare, Memory};
use tokio::time::timeout;
use zstd::stream::{
    raw::{DParameter, Decoder as ZstdDecoder},
    zio::Writer as ZstdWriter,
};

/// How long a request waits for room.
const ROOM_WITHIN: Duration = Duration::from_secs(30);
/// How long a client may say nothing in the middle of a body.
const SILENT_FOR: Duration = Duration::from_secs(30);
/// Reserved before the first byte of a body of unknown size.
const FIRST_BYTES: usize = 64 << 10;
/// The largest window of a zstd body, as a power of two: 8 MiB, what RFC 9659 asks of everybody. A frame's header could
/// otherwise make the decoder take 128 MiB that nobody has accounted for.
const ZSTD_WINDOW_LOG: u32 = 23;

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    Identity,
    Gzip,
    Zstd,
}

impl Packing {
    /// Reads a `content-encoding`.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Self::Identity),
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// What bodies may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct BodyLimits {
    /// As sent.
    pub(super) max_body_bytes: usize,
    /// After unpacking.
    pub(super) max_decompressed_bytes: usize,
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body is larger than {max_bytes} bytes")]
    TooLarge { max_bytes: usize },
    #[error("the body unpacks to more than {max_bytes} bytes")]
    UnpacksTooLarge { max_bytes: usize },
    #[error("the body is not valid {packing:?}: {reason}")]
    BadPacking { packing: Packing, reason: String },
    #[error("the body ended early: {reason}")]
    Broken { reason: String },
    #[error("nothing more of the body came for {} s", SILENT_FOR.as_secs())]
    Silent,
    #[error("there is no memory left for this body at the moment")]
    Busy,
    #[error("the body needs {bytes} bytes of memory, {max_bytes} are the most that one may have")]
    NeverFits { bytes: usize, max_bytes: usize },
}

/// Takes memory for `bytes` in all, or says whether waiting would help.
pub(super) fn grow(share: &mut BodyShare, bytes: usize) -> Result<(), BodyError> {
    if share.try_grow_to(bytes) {
        return Ok(());
    }
    let max_bytes = share.max_bytes();
    Err(if bytes > max_bytes { BodyError::NeverFits { bytes, max_bytes } } else { BodyError::Busy })
}

/// Reads and unpacks a body. The bytes are accounted for as long as the share lives.
///
/// **Cancel safety**: a dropped call gives its memory back.
pub(super) async fn read(
    body: Body,
    announced: Option<usize>,
    packing: Packing,
    limits: BodyLimits,
    memory: &Memory,
) -> Result<(Bytes, BodyShare), BodyError> {
    let too_large = BodyError::TooLarge { max_bytes: limits.max_body_bytes };
    if announced.is_some_and(|bytes| bytes > limits.max_body_bytes) {
        return Err(too_large);
    }
    let expected = announced.filter(|_| packing == Packing::Identity).unwrap_or(FIRST_BYTES);
    if expected > memory.max_body_bytes() {
        return Err(BodyError::NeverFits { bytes: expected, max_bytes: memory.max_body_bytes() });
    }
    let share = timeout(ROOM_WITHIN, memory.body(expected)).await.map_err(|_| BodyError::Busy)?;
    let sink = Sink { bytes: Vec::with_capacity(expected), limits, share, fault: None };
    let mut unpacker = Unpacker::new(packing, sink)?;
    let mut chunks = body.into_data_stream();
    let mut received = 0;
    while let Some(chunk) = timeout(SILENT_FOR, chunks.next()).await.map_err(|_| BodyError::Silent)? {
        let chunk = chunk.map_err(|error| BodyError::Broken { reason: error.to_string() })?;
        received += chunk.len();
        if received > limits.max_body_bytes {
            return Err(too_large);
        }
        runtime::tasks::compute(|| unpacker.write(&chunk))?;
    }
    let sink = unpacker.finish()?;
    Ok((Bytes::from(sink.bytes), sink.share))
}

/// Where unpacked bytes go; refuses the byte that would be too many.
struct Sink {
    bytes: Vec<u8>,
    limits: BodyLimits,
    share: BodyShare,
    /// The true reason of a refused write, which an `io::Error` cannot carry through the unpackers.
    fault: Option<BodyError>,
}

impl Sink {
    fn push(&mut self, bytes: &[u8]) -> Result<(), BodyError> {
        let length = self.bytes.len() + bytes.len();
        if length > self.limits.max_decompressed_bytes {
            return Err(BodyError::UnpacksTooLarge { max_bytes: self.limits.max_decompressed_bytes });
        }
        self.make_room(length)?;
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Accounts for the memory before it is there: twice as much while there is some, else what is needed.
    fn make_room(&mut self, length: usize) -> Result<(), BodyError> {
        let have = self.bytes.capacity();
        if length <= have {
            return Ok(());
        }
        let ahead = (2 * have).clamp(length, self.limits.max_decompressed_bytes.max(length));
        let room = if self.share.try_grow_to(ahead) { ahead } else { length };
        grow(&mut self.share, room)?;
        self.bytes.reserve_exact(room - self.bytes.len());
        Ok(())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes).map(|()| bytes.len()).map_err(|fault| {
            self.fault = Some(fault);
            io::Error::other("over a limit")
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Unpacker {
    Identity(Sink),
    Gzip(Box<flate2::write::MultiGzDecoder<Sink>>),
    /// The plain `write::Decoder` would take a truncated frame for a whole one.
    Zstd(Box<ZstdWriter<Sink, ZstdDecoder<'static>>>),
}

impl Unpacker {
    fn new(packing: Packing, sink: Sink) -> Result<Self, BodyError> {
        Ok(match packing {
            Packing::Identity => Self::Identity(sink),
            Packing::Gzip => Self::Gzip(Box::new(flate2::write::MultiGzDecoder::new(sink))),
            Packing::Zstd => {
                let bad = |error: io::Error| BodyError::BadPacking { packing, reason: error.to_string() };
                let mut decoder = ZstdDecoder::new().map_err(bad)?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).map_err(bad)?;
                Self::Zstd(Box::new(ZstdWriter::new(sink, decoder)))
            }
        })
    }

    fn write(&mut self, chunk: &[u8]) -> Result<(), BodyError> {
        let written = match self {
            Self::Identity(sink) => return sink.push(chunk),
            Self::Gzip(decoder) => decoder.write_all(chunk),
            Self::Zstd(decoder) => decoder.write_all(chunk),
        };
        written.map_err(|error| self.fault(&error))
    }

    fn finish(self) -> Result<Sink, BodyError> {
        match self {
            Self::Identity(sink) => Ok(sink),
            Self::Gzip(mut decoder) => {
                let finished = decoder.try_finish();
                let fault = decoder.get_mut().fault.take();
                let sink = decoder.finish();
                fault.map_or(Ok(()), Err)?;
                let bad =
                    |error: io::Error| BodyError::BadPacking { packing: Packing::Gzip, reason: error.to_string() };
                finished.map_err(bad)?;
                sink.map_err(bad)
            }
            Self::Zstd(mut decoder) => {
                let bad =
                    |error: io::Error| BodyError::BadPacking { packing: Packing::Zstd, reason: error.to_string() };
                let finished = decoder.finish();
                let fault = decoder.writer_mut().fault.take();
                fault.map_or(Ok(()), Err)?;
                finished.map_err(bad)?;
                Ok(decoder.into_inner().0)
            }
        }
    }

    /// What a failed write means: a limit of ours, or bytes that are not what they are said to be.
    fn fault(&mut self, error: &io::Error) -> BodyError {
        let (packing, fault) = match self {
            Self::Identity(sink) => (Packing::Identity, sink.fault.take()),
            Self::Gzip(decoder) => (Packing::Gzip, decoder.get_mut().fault.take()),
            Self::Zstd(decoder) => (Packing::Zstd, decoder.writer_mut().fault.take()),
        };
        fault.unwrap_or_else(|| BodyError::BadPacking { packing, reason: error.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    const LIMITS: BodyLimits = BodyLimits { max_body_bytes: 1 << 20, max_decompressed_bytes: 1 << 20 };

    async fn read_plain(body: Body, announced: usize, memory: &Memory) -> Result<Bytes, BodyError> {
        let read = read(body, Some(announced), Packing::Identity, LIMITS, memory).await;
        read.map(|(bytes, _)| bytes)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_falls_silent_gives_its_room_to_the_next() {
        let memory = Memory::new(1 << 20);
        let announced = memory.max_body_bytes();
        let first = stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"{"))]);
        let silent = read_plain(Body::from_stream(first.chain(stream::pending())), announced, &memory);
        let next = read_plain(Body::from("{}"), announced, &memory);
        let (silent, next) = tokio::join!(silent, async {
            tokio::task::yield_now().await;
            next.await
        });
        assert!(matches!(silent, Err(BodyError::Silent)), "{silent:?}");
        assert_eq!(next.map_err(|error| error.to_string()), Ok(Bytes::from("{}")));
        assert_eq!(memory.taken_bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_room_and_not_for_ever() {
        let memory = Memory::new(1 << 20);
        let announced = memory.max_body_bytes();
        let _held = memory.body(announced).await;
        let turned_away = read_plain(Body::from("{}"), announced, &memory).await;
        assert!(matches!(turned_away, Err(BodyError::Busy)), "{turned_away:?}");
    }
}
