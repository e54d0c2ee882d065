//! Leaf pages of a redb file, read wherever they lie, without the tree that leads to them: what is left
//! to do when redb makes no sense of a file any more. It must not judge what is in them.
//!
//! A leaf begins at a multiple of redb's page size, whatever its own length: its kind, a byte of nothing,
//! the number of pairs, the ends of the keys and of the values (each only where they vary in length),
//! the keys, the values. A leaf that has been replaced stays in the file until its space is used again.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use whrelay_core::limits;

const PAGE: u64 = 4096;
const LEAF: u8 = 1;
const HEAD: usize = 4;
/// The longest leaf that is looked at: two of the largest events.
const LONGEST: usize = 2 * limits::MAX_FRAME;

/// How long the keys and the values of a table are, where they all have one length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) key: Option<usize>,
    pub(crate) value: Option<usize>,
}

/// The leaves of a file, one after the other.
pub(crate) struct Pages {
    file: File,
    /// Where the next leaf may begin.
    next: u64,
    /// The one at hand, as far as it has been read.
    page: Vec<u8>,
}

impl Pages {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            next: 0,
            page: Vec::new(),
        })
    }

    /// Goes to the next page that may be a leaf; answers how many pairs it would have.
    pub(crate) fn turn(&mut self) -> io::Result<Option<usize>> {
        loop {
            self.page.clear();
            self.file.seek(SeekFrom::Start(self.next))?;
            self.next += PAGE;
            if !self.read_to(HEAD)? {
                return Ok(None);
            }
            let pairs = usize::from(u16::from_le_bytes([self.page[2], self.page[3]]));
            if self.page[0] == LEAF && pairs > 0 {
                return Ok(Some(pairs));
            }
        }
    }

    /// The key and value of a pair, read as a table of that shape; nothing where that makes no sense.
    pub(crate) fn pair(
        &mut self,
        shape: Shape,
        pairs: usize,
        n: usize,
    ) -> io::Result<Option<(&[u8], &[u8])>> {
        let Some((from, middle)) = self.key(shape, pairs, n)? else {
            return Ok(None);
        };
        let Some((begin, end)) = self.value(shape, pairs, n)? else {
            return Ok(None);
        };
        if from > middle || begin > end || !self.read_to(middle.max(end))? {
            return Ok(None);
        }
        Ok(Some((&self.page[from..middle], &self.page[begin..end])))
    }

    /// Goes on behind a leaf whose last sensible value ends there: no other begins in it.
    pub(crate) fn pass(&mut self, end: usize) {
        let begin = self.next - PAGE;
        self.next = begin + (end as u64).div_ceil(PAGE).max(1) * PAGE;
    }

    /// Where the value of a pair ends in the leaf.
    pub(crate) fn end(&mut self, shape: Shape, pairs: usize, n: usize) -> io::Result<usize> {
        Ok(self.value(shape, pairs, n)?.map_or(0, |(_, end)| end))
    }

    fn key(&mut self, shape: Shape, pairs: usize, n: usize) -> io::Result<Option<(usize, usize)>> {
        let varying = [shape.key, shape.value].into_iter().filter(Option::is_none);
        let keys = HEAD + 4 * pairs * varying.count();
        self.span(shape.key, keys, HEAD, n)
    }

    fn value(
        &mut self,
        shape: Shape,
        pairs: usize,
        n: usize,
    ) -> io::Result<Option<(usize, usize)>> {
        let Some((_, values)) = self.key(shape, pairs, pairs - 1)? else {
            return Ok(None);
        };
        let ends_at = HEAD + shape.key.map_or(4 * pairs, |_| 0);
        self.span(shape.value, values, ends_at, n)
    }

    /// Where the `n`th of several begins and ends, of which the first begins at `first`.
    fn span(
        &mut self,
        fixed: Option<usize>,
        first: usize,
        ends_at: usize,
        n: usize,
    ) -> io::Result<Option<(usize, usize)>> {
        if let Some(length) = fixed {
            return Ok(Some((first + length * n, first + length * (n + 1))));
        }
        let begin = match n {
            0 => Some(first),
            n => self.number(ends_at + 4 * (n - 1))?,
        };
        let end = self.number(ends_at + 4 * n)?;
        Ok(begin.zip(end))
    }

    fn number(&mut self, at: usize) -> io::Result<Option<usize>> {
        if !self.read_to(at + 4)? {
            return Ok(None);
        }
        let bytes = self.page[at..at + 4].try_into().unwrap_or_default();
        Ok(Some(u32::from_le_bytes(bytes) as usize))
    }

    /// Reads the leaf at least so far; `false` where the file ends before, or no leaf is so long.
    fn read_to(&mut self, end: usize) -> io::Result<bool> {
        if end > LONGEST {
            return Ok(false);
        }
        let missing = end.saturating_sub(self.page.len());
        if missing > 0 {
            let rest = missing.next_multiple_of(PAGE as usize) as u64;
            (&self.file).take(rest).read_to_end(&mut self.page)?;
        }
        Ok(self.page.len() >= end)
    }
}
