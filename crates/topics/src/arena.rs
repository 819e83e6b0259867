//! Copies many small pieces of foreign memory into few allocations.
//!
//! Invariant: every piece is copied exactly once, and what [`Arena::copy`] yields never moves.
//! A piece keeps its whole chunk alive, so chunks stay small; a piece larger than a chunk gets its own.

use bytes::{Bytes, BytesMut};

const FIRST_CHUNK_BYTES: usize = 4 << 10;
const LARGEST_CHUNK_BYTES: usize = 256 << 10;

/// Memory for one read after the other. The rest of a chunk is used by the next read.
#[derive(Debug)]
pub(crate) struct Arena {
    chunk: BytesMut,
    chunk_bytes: usize,
}

impl Arena {
    pub(crate) fn new() -> Self {
        Self { chunk: BytesMut::new(), chunk_bytes: FIRST_CHUNK_BYTES }
    }

    /// Copies the parts, one after the other, into one piece.
    pub(crate) fn copy(&mut self, parts: &[&[u8]]) -> Bytes {
        let bytes = parts.iter().map(|part| part.len()).sum();
        if bytes == 0 {
            return Bytes::new();
        }
        self.make_room(bytes);
        for part in parts {
            self.chunk.extend_from_slice(part);
        }
        self.chunk.split().freeze()
    }

    fn make_room(&mut self, bytes: usize) {
        if self.chunk.capacity() < bytes {
            self.chunk = BytesMut::with_capacity(bytes.max(self.chunk_bytes));
            self.chunk_bytes = (self.chunk_bytes * 2).min(LARGEST_CHUNK_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_keep_their_content_whatever_comes_after_them() {
        let mut arena = Arena::new();
        let sizes = [0, 1, 7, 4096, 5, 300_000, 1, 8192];
        let pieces: Vec<Bytes> =
            sizes.iter().zip(0u8..).map(|(size, fill)| arena.copy(&[&vec![fill; *size], &[0xff]])).collect();
        for ((size, fill), piece) in sizes.iter().zip(0u8..).zip(pieces) {
            assert_eq!(piece.len(), size + 1);
            assert!(piece[..*size].iter().all(|byte| *byte == fill));
            assert_eq!(piece[*size], 0xff);
        }
    }

    #[test]
    fn small_pieces_share_a_chunk() {
        let mut arena = Arena::new();
        let first = arena.copy(&[b"abc"]);
        let second = arena.copy(&[b"def"]);
        assert_eq!(first.as_ptr().wrapping_add(3), second.as_ptr());
    }
}
