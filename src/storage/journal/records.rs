//! The bytes of the journal's files, without any file: batches to records and back.
//!
//! ```text
//! "SOSj" | length of the writes (4 bytes) | version of the record before (8) | version (8) | CRC-32 of all but itself, and the place (4) | writes
//! a write: length of the key (2) | length of the value, or 0xffffffff for a deletion (4) | key | value
//! ```
//!
//! Numbers are big endian. No length is believed that the file does not have the bytes for. Files are read piece by piece: memory holds
//! [`WINDOW`], or one record where that is larger.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::super::{
    Version,
    backend::{Fault, Write},
};

const MAGIC: &[u8; 4] = b"SOSj";
pub(super) const HEADER: usize = 28;
/// The length of a value that is no value.
const DELETED: u32 = u32::MAX;

/// Bytes that are read at once.
pub(super) const WINDOW: usize = 256 << 10;

/// Where a batch was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::storage) enum Place {
    /// In the file that is not appended to.
    Older,
    /// In the file that is.
    Newer,
}

/// Where the journal goes on.
pub(in crate::storage) struct Read {
    /// The file that is appended to, and where.
    pub(in crate::storage) current: usize,
    pub(in crate::storage) at: u64,
    /// Of the last record.
    pub(in crate::storage) last: Version,
    /// Which of the files hold what the engine does not have.
    pub(in crate::storage) needed: [bool; 2],
    /// At the end of one stands the beginning of a record that is not whole: torn when it was written, or damaged since.
    pub(in crate::storage) torn: bool,
}

/// Why the files cannot be read.
pub(in crate::storage) enum Unread {
    /// The disk failed.
    Io { which: usize, error: io::Error },
    /// There is damage, and records that the engine does not have stand behind it.
    Damaged { which: usize, at: u64 },
    /// Records are missing between two others: behind the version `last` comes `version`, which came after `previous`.
    Gap { last: Version, version: Version, previous: Version },
}

/// Hands on what both files hold that an engine which ends at `had` does not have, oldest first.
pub(in crate::storage) fn read<S: Source + ?Sized>(
    files: [&S; 2],
    had: Version,
    take: &mut dyn FnMut(Place, Vec<Write>),
) -> Result<Read, Unread> {
    let survey = |which: usize, file| -> Result<Extent, Unread> {
        let surveyed = Window::new(file).and_then(|mut window| window.survey(had));
        match surveyed.map_err(|error| Unread::Io { which, error })? {
            (extent, false) => Ok(extent),
            (extent, true) => Err(Unread::Damaged { which, at: extent.end }),
        }
    };
    let [first, second] = files;
    let [one, two] = [survey(0, first)?, survey(1, second)?];
    let current = usize::from(two.last > one.last);
    let needed = [one.last > had, two.last > had];
    let mut last = had;
    let in_order = [(0, first, one), (1, second, two)];
    for turn in [1 - current, current] {
        let place = if turn == current { Place::Newer } else { Place::Older };
        for (which, file, extent) in in_order.into_iter().filter(|(which, ..)| *which == turn) {
            hand_on(file, extent, had, &mut last, &mut |writes| take(place, writes)).map_err(|error| match error {
                Stopped::Io(error) => Unread::Io { which, error },
                Stopped::Gap { last, version, previous } => Unread::Gap { last, version, previous },
            })?;
        }
    }
    let newest = last.max(one.last).max(two.last);
    let mut torn = false;
    for (which, file, extent) in in_order {
        let begun = Window::new(file).and_then(|mut window| window.is_begun(extent.end, newest));
        torn |= begun.map_err(|error| Unread::Io { which, error })?;
    }
    // A file whose content the engine has begins anew.
    let newer = if current == 0 { one } else { two };
    let at = if newer.last > had { newer.end } else { 0 };
    Ok(Read { current, at, last, needed, torn })
}

enum Stopped {
    Io(io::Error),
    Gap { last: Version, version: Version, previous: Version },
}

fn hand_on<S: Source + ?Sized>(
    file: &S,
    extent: Extent,
    had: Version,
    last: &mut Version,
    take: &mut dyn FnMut(Vec<Write>),
) -> Result<(), Stopped> {
    let mut window = Window::new(file).map_err(Stopped::Io)?;
    let mut at = 0;
    while at < extent.end {
        let span = window.span(at).and_then(|span| span.ok_or_else(|| io::Error::other("it changed while it was read")));
        let span = span.map_err(Stopped::Io)?;
        at = span.end;
        let Span { previous, version, .. } = span;
        if version <= had {
            continue;
        }
        // The first may lead over what the engine has.
        if previous > *last || (*last > had && previous != *last) {
            return Err(Stopped::Gap { last: *last, version, previous });
        }
        *last = version;
        take(window.writes(&span).map_err(Stopped::Io)?);
    }
    Ok(())
}

/// What records are read from.
pub(in crate::storage) trait Source {
    fn length(&self) -> io::Result<u64>;

    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, at)
    }
}

impl Source for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(u64::try_from(self.len()).unwrap_or(u64::MAX))
    }

    fn read_exact_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let from = usize::try_from(at).ok().and_then(|at| self.get(at..)?.get(..bytes.len()));
        from.map(|from| bytes.copy_from_slice(from)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// How far the records of one file reach.
#[derive(Clone, Copy)]
pub(in crate::storage) struct Extent {
    /// Version of the last one, 0 when there is none.
    pub(in crate::storage) last: Version,
    /// Where the next one would begin.
    pub(in crate::storage) end: u64,
}

/// Where a whole record is.
pub(in crate::storage) struct Span {
    /// Of the record before.
    pub(in crate::storage) previous: Version,
    pub(in crate::storage) version: Version,
    writes: u64,
    pub(in crate::storage) end: u64,
}

/// Puts the record of a batch into `record`, for the place `at` of a file.
pub(in crate::storage) fn encode(
    record: &mut Vec<u8>,
    batch: &[Write],
    at: u64,
    previous: Version,
    version: Version,
) -> Result<(), Fault> {
    record.clear();
    record.resize(HEADER, 0);
    for (key, value) in batch {
        write_one(record, key, value.as_deref())?;
    }
    seal(record, at, previous, version)
}

fn write_one(record: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) -> Result<(), Fault> {
    let too_long = |_| Fault::Io("a key or value is too long for the journal".into());
    let length = value.map_or(Ok(DELETED), |value| u32::try_from(value.len())).map_err(too_long)?;
    record.extend_from_slice(&u16::try_from(key.len()).map_err(too_long)?.to_be_bytes());
    record.extend_from_slice(&length.to_be_bytes());
    record.extend_from_slice(key);
    record.extend_from_slice(value.unwrap_or_default());
    Ok(())
}

/// Fills the header of a record whose writes are there.
pub(in crate::storage) fn seal(record: &mut [u8], at: u64, previous: Version, version: Version) -> Result<(), Fault> {
    let too_long = || Fault::Io("a batch is too long for the journal".into());
    let (header, writes) = record.split_at_mut_checked(HEADER).ok_or_else(too_long)?;
    let length = u32::try_from(writes.len()).map_err(|_long| too_long())?;
    let summed = [MAGIC.as_slice(), &length.to_be_bytes(), &previous.to_be_bytes(), &version.to_be_bytes()].concat();
    let sum = checksum(&summed, at, writes);
    header.copy_from_slice(&[summed.as_slice(), &sum.to_be_bytes()].concat());
    Ok(())
}

fn checksum(header: &[u8], at: u64, writes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(&at.to_be_bytes());
    hasher.update(writes);
    hasher.finalize()
}

/// A header as it stands in a file, right or wrong.
struct Header {
    summed: [u8; HEADER - 4],
    sum: u32,
    has_magic: bool,
    length: u32,
    previous: Version,
    version: Version,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (summed, sum) = bytes.split_first_chunk::<{ HEADER - 4 }>()?;
        let (magic, numbers) = summed.split_first_chunk::<4>()?;
        let (length, numbers) = numbers.split_first_chunk::<4>()?;
        let (previous, version) = numbers.split_first_chunk::<8>()?;
        Some(Self {
            summed: *summed,
            sum: u32::from_be_bytes(*sum.first_chunk::<4>()?),
            has_magic: magic == MAGIC,
            length: u32::from_be_bytes(*length),
            previous: Version::from_be_bytes(*previous),
            version: Version::from_be_bytes(*version.first_chunk::<8>()?),
        })
    }
}

/// A file that is read piece by piece.
pub(in crate::storage) struct Window<'f, S: ?Sized> {
    file: &'f S,
    length: u64,
    /// Where `bytes` begin.
    begin: u64,
    bytes: Vec<u8>,
}

impl<'f, S: Source + ?Sized> Window<'f, S> {
    pub(in crate::storage) fn new(file: &'f S) -> io::Result<Self> {
        Ok(Self { file, length: file.length()?, begin: 0, bytes: Vec::new() })
    }

    /// So many bytes at a place; nothing where the file ends before.
    fn get(&mut self, at: u64, length: usize) -> io::Result<Option<&[u8]>> {
        let left = usize::try_from(self.length.saturating_sub(at)).unwrap_or(usize::MAX);
        if length > left {
            return Ok(None);
        }
        let held = |window: &Self| usize::try_from(at.checked_sub(window.begin)?).ok();
        if held(self).is_none_or(|from| from.saturating_add(length) > self.bytes.len()) {
            self.bytes.clear();
            self.bytes.resize(length.max(WINDOW).min(left), 0);
            self.file.read_exact_at(&mut self.bytes, at)?;
            self.begin = at;
        }
        Ok(held(self).and_then(|from| self.bytes.get(from..from.saturating_add(length))))
    }

    fn header(&mut self, at: u64) -> io::Result<Option<Header>> {
        Ok(self.get(at, HEADER)?.and_then(Header::parse))
    }

    /// The whole record at a place.
    pub(in crate::storage) fn span(&mut self, at: u64) -> io::Result<Option<Span>> {
        let Some(header) = self.header(at)? else { return Ok(None) };
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        let begin = at + HEADER as u64;
        let Some(writes) = self.get(begin, length)? else { return Ok(None) };
        // Versions only grow.
        let is_whole = header.has_magic && header.version > header.previous && header.sum == checksum(&header.summed, at, writes);
        if !is_whole || each_write(writes, |_, _| {}).is_none() {
            return Ok(None);
        }
        let Header { previous, version, .. } = header;
        Ok(Some(Span { previous, version, writes: begin, end: begin + u64::from(header.length) }))
    }

    pub(in crate::storage) fn writes(&mut self, span: &Span) -> io::Result<Vec<Write>> {
        let length = usize::try_from(span.end - span.writes).unwrap_or(usize::MAX);
        let writes = self.get(span.writes, length)?.and_then(read_writes);
        writes.ok_or_else(|| io::Error::other(format!("the record of version {} cannot be read", span.version)))
    }

    /// How far the records reach, and whether whole ones stand behind that place which an engine that ends at `had` does not have.
    pub(in crate::storage) fn survey(&mut self, had: Version) -> io::Result<(Extent, bool)> {
        let mut extent = Extent { last: 0, end: 0 };
        while let Some(span) = self.span(extent.end)? {
            // Of an earlier use of the file.
            if span.version <= extent.last {
                break;
            }
            (extent.last, extent.end) = (span.version, span.end);
        }
        let newest = extent.last.max(had);
        let mut from = extent.end;
        while from < self.length {
            let left = usize::try_from(self.length - from).unwrap_or(usize::MAX).min(WINDOW);
            let piece = self.get(from, left)?.unwrap_or_default();
            let starts: Vec<u64> =
                (from..).zip(piece.windows(MAGIC.len())).filter(|(_, bytes)| *bytes == MAGIC).map(|(start, _)| start).collect();
            for start in starts {
                // Most are of an earlier use, and need not be read.
                let is_newer = self.header(start)?.is_some_and(|header| header.version > newest);
                if is_newer && self.span(start)?.is_some() {
                    return Ok((extent, true));
                }
            }
            // One may begin in one piece and end in the next.
            from += u64::try_from(left.saturating_sub(MAGIC.len() - 1).max(1)).unwrap_or(u64::MAX);
        }
        Ok((extent, false))
    }

    /// Whether at a place, which holds no whole record, one begins that would follow on `newest`. A damaged byte leaves two of the
    /// three signs.
    fn is_begun(&mut self, at: u64, newest: Version) -> io::Result<bool> {
        let Some(header) = self.header(at)? else { return Ok(false) };
        let signs = [header.has_magic, header.previous == newest, header.version > newest];
        Ok(signs.into_iter().filter(|sign| *sign).count() >= 2)
    }
}

fn read_writes(bytes: &[u8]) -> Option<Vec<Write>> {
    let mut writes = Vec::new();
    each_write(bytes, |key, value| writes.push((key.to_vec(), value.map(<[u8]>::to_vec))))?;
    Some(writes)
}

/// `None` when the bytes are no writes.
fn each_write<'b>(mut bytes: &'b [u8], mut each: impl FnMut(&'b [u8], Option<&'b [u8]>)) -> Option<()> {
    while !bytes.is_empty() {
        let (key_length, rest) = bytes.split_first_chunk::<2>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*key_length)))?;
        let length = u32::from_be_bytes(*length);
        let (value, rest) = match length {
            DELETED => (None, rest),
            _ => rest.split_at_checked(usize::try_from(length).ok()?).map(|(value, rest)| (Some(value), rest))?,
        };
        each(key, value);
        bytes = rest;
    }
    Some(())
}
