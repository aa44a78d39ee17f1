//! What the fuzz target of backups calls: archives as they come from a file or over HTTP, whole and in their parts.

use std::io::Write;

use flate2::{Compression, write::GzEncoder};
use time::OffsetDateTime;

use super::{
    BackupError, Contents, Header, Reader, Seal, Summary, Target, Wait, Writer,
    archive::{self, parse_header, records_of},
    key::BackupKey,
    restore::Origin,
};
use crate::{
    secret::SecretBytes,
    storage::{InMem, Record, Storage},
};

fn key() -> BackupKey {
    BackupKey::of(SecretBytes::new(vec![7; 32]))
}

type Records = Vec<(String, Record)>;

fn read(bytes: &[u8]) -> Result<(Contents, Records), BackupError> {
    let mut records = Records::new();
    let contents = Reader::new(bytes).read(
        |_| Ok(()),
        |chunk| {
            records.extend(chunk);
            Ok(())
        },
    )?;
    Ok((contents, records))
}

/// Reads bytes as an archive. What is taken as whole restores into an empty store, record by record, and an archive
/// written from it reads the same; nobody can have made its code.
#[allow(clippy::expect_used)] // without a runtime or a store in memory the harness is broken
pub fn archive(bytes: &[u8]) {
    let Ok((contents, records)) = read(bytes) else { return };
    assert!(contents.seal.check(&key()).is_err(), "a backup was forged");
    assert_eq!(contents.summary.records, records.len() as u64, "the records are miscounted");
    let _ = (contents.header.created(), contents.header.needs.sentence());
    let mut writer = Writer::new(Vec::new(), &contents.header).expect("a head that was read can be written");
    for (name, record) in &records {
        writer.add(name, record).expect("a record that was read can be written");
    }
    let (again, _, seal) = writer.finish(&key()).expect("written to memory");
    let (reread, records_again) = read(&again).expect("what was written reads back");
    assert!(reread.seal == seal && seal.check(&key()).is_ok(), "the code of an archive of ours is refused");
    assert_eq!((&reread.header, &records_again), (&contents.header, &records), "an archive changes when it is written");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let store = InMem::open().expect("a store");
    let origin = Origin {
        archive: bytes,
        target: &Target::Empty,
        force: false,
        skip_versions: None,
        now: OffsetDateTime::UNIX_EPOCH,
        begin: &mut |_| Ok(()),
        progress: &mut |_| (),
    };
    // A store may refuse a name or a version that no store of ours has given.
    if origin.fill(&store, Wait(runtime.handle())).is_ok() {
        for (name, record) in records.iter().filter(|(name, _)| name != super::RESTORED_PATH) {
            let held = store.get(name).expect("the store reads").expect("the record is there");
            assert_eq!(held.value, record.value, "{name:?} is restored as something else");
            assert!(held.version > record.version, "{name:?} goes back behind a version that was given");
        }
    }
}

/// Reads a head. What is taken is written the same, and can be told and compared.
pub fn head(json: &[u8]) {
    let Ok(header) = parse_header(json) else { return };
    let written = serde_json::to_vec(&header).unwrap_or_default();
    assert!(parse_header(&written).is_ok_and(|again| again == header), "a head changes when it is written");
    let _ = (header.created(), header.needs.sentence(), super::files::name_of(&header));
    let cluster = |id: &str, sequence| Target::Cluster { id: id.into(), name: "here".into(), sequence, fork: None };
    assert!(Target::Empty.admit(&header, false).is_ok());
    assert!(cluster(&header.cluster_id, header.sequence).admit(&header, false).is_ok());
    assert!(cluster("another", 0).admit(&header, false).is_err() || header.cluster_id == "another");
    if let Some(later) = header.sequence.checked_add(1) {
        assert!(cluster(&header.cluster_id, later).admit(&header, false).is_err(), "an older backup is let in");
    }
}

/// Reads a chunk of records; what is taken is laid out the same.
pub fn chunk(bytes: &[u8]) {
    let Ok(records) = records_of(bytes) else { return };
    let mut again = Vec::with_capacity(bytes.len());
    for (name, record) in &records {
        archive::lay_out(&mut again, name, record).unwrap_or_default();
    }
    assert_eq!(again, bytes, "a chunk changes when it is written");
}

/// Reads the last file of an archive.
pub fn seal(json: &[u8]) {
    if let Ok(seal) = serde_json::from_slice::<Seal>(json) {
        assert!(seal.check(&key()).is_err(), "a code was forged");
    }
}

/// An archive with a right frame round any head and any chunk.
pub fn framed(parts: &[u8]) {
    let Some((len, rest)) = parts.split_first_chunk::<2>() else { return };
    let (head, chunk) = rest.split_at(usize::from(u16::from_be_bytes(*len)).min(rest.len()));
    let records = records_of(chunk).unwrap_or_default();
    let bytes = records.iter().map(|(name, record)| name.len() + record.value.len()).sum::<usize>();
    let summary = Summary { records: records.len() as u64, bytes: bytes as u64, chunks: 1 };
    if let Ok(bytes) = archive::framed(head, chunk, summary, &BackupKey::of(SecretBytes::new(vec![8; 32]))) {
        archive(&bytes);
    }
}

/// Any tar file, compressed as archives are; its headers get the checksums that they lack.
pub fn tarred(tar: &[u8]) {
    let mut tar = tar.to_vec();
    let mut at = 0;
    while let Some(header) = tar.get_mut(at..at + 512) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = std::str::from_utf8(&header[124..136]).ok().map(|text| text.trim_matches(['\0', ' ']));
        let size = size.and_then(|text| usize::from_str_radix(text, 8).ok()).unwrap_or(0);
        at += 512 + size.min(tar.len()).div_ceil(512) * 512;
    }
    let mut gzip = GzEncoder::new(Vec::new(), Compression::none());
    if gzip.write_all(&tar).is_ok()
        && let Ok(bytes) = gzip.finish()
    {
        archive(&bytes);
    }
}

/// An archive of ours with edits: each four bytes are a place (three bytes) and what is put there. It is refused, or
/// reads as before.
#[allow(clippy::expect_used)] // the archive is ours
pub fn edited(edits: &[u8]) {
    let header = Header {
        format: super::header::FORMAT,
        created: "2026-11-27T04:00:00Z".into(),
        sequence: 9,
        sos_version: "0".into(),
        storage_type: "inmem".into(),
        cluster_id: "c".into(),
        cluster_name: "name".into(),
        needs: super::Needs::default(),
    };
    let mut writer = Writer::new(Vec::new(), &header).expect("in memory");
    let whole: Records = (1..9).map(|version| (format!("k/{version}"), Record { version, value: vec![b'v'; 40] })).collect();
    for (name, record) in &whole {
        writer.add(name, record).expect("in memory");
    }
    let (mut bytes, _, _) = writer.finish(&key()).expect("in memory");
    for edit in edits.chunks_exact(4) {
        let place = usize::from(edit[0]) << 16 | usize::from(edit[1]) << 8 | usize::from(edit[2]);
        let len = bytes.len();
        bytes[place % len] = edit[3];
    }
    if let Ok((contents, records)) = read(&bytes) {
        let authentic = contents.seal.check(&key()).is_ok();
        assert!(!authentic || (contents.header == header && records == whole), "an altered backup is taken for authentic");
    }
}

/// Reads a plan of an exchange that was interrupted.
pub fn plan(json: &[u8]) {
    super::place::fuzz_plan(json);
}
