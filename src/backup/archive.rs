//! The archive: a gzip-compressed tar file that streams in both directions with one chunk in memory.
//!
//! ```text
//! header.json            Header
//! records/000000001 …    records in the order of their keys, about 1 MiB each:
//!                        per record  4  length of the key, big endian
//!                                    4  length of the value
//!                                    8  version
//!                                    n  key, value (as the barrier encrypted it)
//! end.json               {"records":…,"bytes":…,"chunks":…}
//! SHA256SUMS             one line for each file above, as sha256sum writes and checks them
//! SHA256SUMS.sealed      {"algorithm":"HMAC-SHA-256","digest":<SHA-256 of SHA256SUMS>,"code":<hex>}
//! ```
//! The last file's name is the one that Vault's clients look for to tell a complete snapshot. Stored, not deflated:
//! encrypted values do not shrink.

use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{BackupError, Header, key::BackupKey};
use crate::storage::{Record, Version};

const HEADER: &str = "header.json";
const END: &str = "end.json";
const SUMS: &str = "SHA256SUMS";
const SEALED: &str = "SHA256SUMS.sealed";
const CODE: &str = "HMAC-SHA-256";

/// Bytes of records after which a chunk is written out.
const CHUNK: usize = 1 << 20;
/// The largest chunk that is read: one value of the largest size behind a full chunk.
const LARGEST_CHUNK: u64 = (66 << 20) + 4096;
/// The largest head, and end, that is read; a head names every `hsm-only` key.
const LARGEST_JSON: u64 = 64 << 20;
/// The longest list of checksums that is read; enough for chunks of several terabytes.
const LARGEST_SUMS: u64 = 512 << 20;

fn damaged(why: impl Into<String>) -> BackupError {
    BackupError::Damaged(why.into())
}

fn chunk_name(number: u64) -> String {
    format!("records/{number:09}")
}

/// What a whole archive holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Number of records.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Number of chunks.
    pub chunks: u64,
}

/// The end of an archive: what it is authentic by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Kind of the code, `HMAC-SHA-256`.
    pub algorithm: String,
    /// SHA-256 of the list of checksums, and so of everything, in hexadecimal.
    pub digest: String,
    /// The code over the digest under the cluster's [`BackupKey`], in hexadecimal.
    pub code: String,
}

impl Seal {
    /// Whether the archive is what a server of this key wrote.
    pub fn check(&self, key: &BackupKey) -> Result<(), BackupError> {
        if self.algorithm != CODE {
            return Err(damaged("its code is of an unknown kind"));
        }
        let mut digest = [0; 32];
        hex::decode_to_slice(&self.digest, &mut digest).map_err(|_hex| damaged("its digest is unreadable"))?;
        let code = hex::decode(&self.code).map_err(|_hex| damaged("its code is unreadable"))?;
        key.check(&digest, &code)
    }
}

/// Writes an archive.
pub struct Writer<W: Write> {
    tar: tar::Builder<GzEncoder<W>>,
    modified: u64,
    chunk: Vec<u8>,
    sums: String,
    done: Summary,
}

impl<W: Write> Writer<W> {
    /// Begins an archive with its head.
    pub fn new(out: W, header: &Header) -> Result<Self, BackupError> {
        let seconds = header.created().map_or(0, |time| time.unix_timestamp());
        let mut writer = Self {
            tar: tar::Builder::new(GzEncoder::new(out, Compression::none())),
            modified: u64::try_from(seconds).unwrap_or(0),
            chunk: Vec::with_capacity(CHUNK + (CHUNK >> 3)),
            sums: String::new(),
            done: Summary::default(),
        };
        let head = serde_json::to_vec_pretty(header).map_err(|error| damaged(error.to_string()))?;
        writer.file(HEADER, &head)?;
        Ok(writer)
    }

    /// Adds a record.
    pub fn add(&mut self, key: &str, record: &Record) -> Result<(), BackupError> {
        lay_out(&mut self.chunk, key, record)?;
        self.done.records += 1;
        self.done.bytes += u64::try_from(key.len() + record.value.len()).unwrap_or(0);
        if self.chunk.len() >= CHUNK { self.flush_chunk() } else { Ok(()) }
    }

    /// Ends the archive with checksums and code; the writer below, flushed.
    pub fn finish(mut self, key: &BackupKey) -> Result<(W, Summary, Seal), BackupError> {
        self.flush_chunk()?;
        let end = serde_json::to_vec(&self.done).map_err(|error| damaged(error.to_string()))?;
        self.file(END, &end)?;
        let sums = std::mem::take(&mut self.sums);
        self.file(SUMS, sums.as_bytes())?;
        let digest: [u8; 32] = Sha256::digest(sums.as_bytes()).into();
        let seal = Seal { algorithm: CODE.into(), digest: hex::encode(digest), code: hex::encode(key.code(&digest)) };
        let sealed = serde_json::to_vec(&seal).map_err(|error| damaged(error.to_string()))?;
        self.file(SEALED, &sealed)?;
        let done = self.tar.into_inner().and_then(GzEncoder::finish).and_then(|mut out| out.flush().map(|()| out));
        Ok((done.map_err(BackupError::io("writing the backup"))?, self.done, seal))
    }

    fn flush_chunk(&mut self) -> Result<(), BackupError> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.done.chunks += 1;
        let chunk = std::mem::take(&mut self.chunk);
        self.file(&chunk_name(self.done.chunks), &chunk)?;
        self.chunk = chunk;
        self.chunk.clear();
        Ok(())
    }

    fn file(&mut self, name: &str, content: &[u8]) -> Result<(), BackupError> {
        let mut head = tar::Header::new_ustar();
        head.set_size(u64::try_from(content.len()).unwrap_or(u64::MAX));
        head.set_mode(0o600);
        head.set_mtime(self.modified);
        head.set_entry_type(tar::EntryType::Regular);
        let written = self.tar.append_data(&mut head, name, content);
        written.map_err(BackupError::io("writing the backup"))?;
        self.sums.push_str(&format!("{}  {name}\n", hex::encode(Sha256::digest(content))));
        Ok(())
    }
}

/// What came out of an archive.
#[derive(Debug)]
pub struct Contents {
    /// Its head.
    pub header: Header,
    /// What it held.
    pub summary: Summary,
    /// What it is authentic by.
    pub seal: Seal,
}

/// Reads an archive from a stream.
pub struct Reader<R: Read> {
    tar: tar::Archive<GzDecoder<BufReader<R>>>,
}

impl<R: Read> Reader<R> {
    /// A reader of an archive.
    pub fn new(input: R) -> Self {
        Self { tar: tar::Archive::new(GzDecoder::new(BufReader::with_capacity(1 << 16, input))) }
    }

    /// Reads all of it. `begin` sees the head before anything else is read and may refuse; `record` gets every record of
    /// a chunk whose form is right. Only when this answers `Ok` is it known that nothing is missing or damaged.
    pub fn read(
        mut self,
        begin: impl FnOnce(&Header) -> Result<(), BackupError>,
        mut chunk: impl FnMut(Vec<(String, Record)>) -> Result<(), BackupError>,
    ) -> Result<Contents, BackupError> {
        let mut walk = Walk { sums: String::new(), entries: self.tar.entries().map_err(unreadable)? };
        let header = walk.next()?;
        let header: Header = match header {
            Some((name, content)) if name == HEADER => parse_header(&content)?,
            _ => return Err(damaged("it does not begin with a header; is it a backup of this program?")),
        };
        begin(&header)?;
        let mut found = Summary::default();
        let mut last = String::new();
        let end: Summary = loop {
            let (name, content) = walk.next()?.ok_or_else(|| damaged("it is cut short"))?;
            if name == END {
                break parse(END, &content)?;
            }
            found.chunks += 1;
            if name != chunk_name(found.chunks) {
                return Err(damaged(format!("{name:?} is out of place")));
            }
            let records = records_of(&content)?;
            for (key, record) in &records {
                if *key <= last || record.version > header.sequence {
                    return Err(damaged(format!("the record {key:?} is out of place")));
                }
                last.clone_from(key);
                found.records += 1;
                found.bytes += u64::try_from(key.len() + record.value.len()).unwrap_or(0);
            }
            chunk(records)?;
        };
        if end != found {
            return Err(damaged(format!("it holds {} records although it was to hold {}", found.records, end.records)));
        }
        let expected = std::mem::take(&mut walk.sums);
        match walk.next()? {
            Some((name, sums)) if name == SUMS && sums == expected.as_bytes() => {}
            Some((name, _)) if name == SUMS => return Err(damaged("a checksum is wrong")),
            _ => return Err(damaged("it is cut short")),
        }
        let seal: Seal = match walk.next()? {
            Some((name, content)) if name == SEALED => parse(SEALED, &content)?,
            _ => return Err(damaged("it is cut short: its last file is missing, so making it was interrupted")),
        };
        if seal.digest != hex::encode(Sha256::digest(expected.as_bytes())) {
            return Err(damaged("its last file belongs to another backup"));
        }
        if walk.next()?.is_some() {
            return Err(damaged("something stands behind its end"));
        }
        self.at_end()?;
        Ok(Contents { header, summary: found, seal })
    }

    /// The compression's own checksum, and that nothing follows.
    fn at_end(self) -> Result<(), BackupError> {
        let mut gzip = self.tar.into_inner();
        let mut rest = Vec::new();
        gzip.by_ref().take(1 << 16).read_to_end(&mut rest).map_err(unreadable)?;
        if rest.iter().any(|byte| *byte != 0) {
            return Err(damaged("something stands behind its end"));
        }
        match gzip.into_inner().fill_buf().map_err(unreadable)? {
            [] => Ok(()),
            _ => Err(damaged("something stands behind its end")),
        }
    }
}

struct Walk<'a, R: Read> {
    sums: String,
    entries: tar::Entries<'a, R>,
}

impl<R: Read> Walk<'_, R> {
    fn next(&mut self) -> Result<Option<(String, Vec<u8>)>, BackupError> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        let mut entry = entry.map_err(unreadable)?;
        let path = entry.path_bytes();
        let name = String::from_utf8(path.into_owned()).map_err(|_| damaged("a name in it is not UTF-8"))?;
        let (size, largest) = (entry.size(), largest(&name));
        if size > largest {
            return Err(damaged(format!("{name:?} has {size} bytes; {largest} are allowed")));
        }
        let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(CHUNK * 2));
        entry.read_to_end(&mut content).map_err(unreadable)?;
        if u64::try_from(content.len()) != Ok(size) {
            return Err(damaged("it is cut short"));
        }
        self.sums.push_str(&format!("{}  {name}\n", hex::encode(Sha256::digest(&content))));
        Ok(Some((name, content)))
    }
}

fn largest(name: &str) -> u64 {
    match name {
        SUMS => LARGEST_SUMS,
        HEADER | END | SEALED => LARGEST_JSON,
        _ => LARGEST_CHUNK,
    }
}

/// Broken compression or a broken tar header is damage; what the disk or the network says is not.
fn unreadable(error: io::Error) -> BackupError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it is cut short"),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => damaged(error.to_string()),
        _ => BackupError::Io { doing: "reading the backup".into(), source: error },
    }
}

fn parse<T: DeserializeOwned>(name: &str, json: &[u8]) -> Result<T, BackupError> {
    serde_json::from_slice(json).map_err(|error| damaged(format!("{name}: {error}")))
}

/// The format is looked at first: the rest of a later format may read differently.
pub(super) fn parse_header(json: &[u8]) -> Result<Header, BackupError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = parse(HEADER, json)?;
    if format != super::header::FORMAT {
        return Err(BackupError::Format(format));
    }
    let header: Header = parse(HEADER, json)?;
    if header.sequence > super::header::LAST {
        return Err(damaged(format!("its last commit is {}, a number that no store gives", header.sequence)));
    }
    Ok(header)
}

/// Adds a record to a chunk.
pub(super) fn lay_out(chunk: &mut Vec<u8>, key: &str, record: &Record) -> Result<(), BackupError> {
    let length = |bytes: usize| u32::try_from(bytes).map_err(|_| damaged(format!("the record {key:?} is too large")));
    chunk.extend_from_slice(&length(key.len())?.to_be_bytes());
    chunk.extend_from_slice(&length(record.value.len())?.to_be_bytes());
    chunk.extend_from_slice(&record.version.to_be_bytes());
    chunk.extend_from_slice(key.as_bytes());
    chunk.extend_from_slice(&record.value);
    Ok(())
}

/// An archive of a head and one chunk as they are, with checksums and code.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn framed(head: &[u8], chunk: &[u8], done: Summary, key: &BackupKey) -> Result<Vec<u8>, BackupError> {
    let tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::none()));
    let mut writer = Writer { tar, modified: 0, chunk: Vec::new(), sums: String::new(), done };
    writer.file(HEADER, head)?;
    writer.file(&chunk_name(1), chunk)?;
    Ok(writer.finish(key)?.0)
}

pub(super) fn records_of(mut chunk: &[u8]) -> Result<Vec<(String, Record)>, BackupError> {
    let torn = || damaged("a chunk of records is not as long as it says");
    let mut records = Vec::new();
    while !chunk.is_empty() {
        let (key_len, rest) = chunk.split_first_chunk::<4>().ok_or_else(torn)?;
        let (value_len, rest) = rest.split_first_chunk::<4>().ok_or_else(torn)?;
        let (version, rest) = rest.split_first_chunk::<8>().ok_or_else(torn)?;
        let length = |bytes: &[u8; 4]| usize::try_from(u32::from_be_bytes(*bytes)).map_err(|_| torn());
        let (key, rest) = rest.split_at_checked(length(key_len)?).ok_or_else(torn)?;
        let (value, rest) = rest.split_at_checked(length(value_len)?).ok_or_else(torn)?;
        let key = std::str::from_utf8(key).map_err(|_| damaged("a key is not UTF-8"))?.to_owned();
        records.push((key, Record { version: Version::from_be_bytes(*version), value: value.to_vec() }));
        chunk = rest;
    }
    Ok(records)
}
