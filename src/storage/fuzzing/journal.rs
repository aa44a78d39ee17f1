//! The files of the journal: any bytes, whole records with any content, and a journal of ours that was damaged.

use super::Cursor;
use crate::storage::{
    Version,
    backend::Write,
    journal::records::{self, Place, Unread, Window, encode, seal},
};

/// One batch as it was found.
struct Record {
    previous: Version,
    version: Version,
    writes: Vec<Write>,
}

/// What one file holds, oldest first, and where the next record would begin.
struct Records {
    records: Vec<Record>,
    end: usize,
}

impl Records {
    /// The records of a file, or where it is damaged.
    #[allow(clippy::expect_used)] // memory is read without errors
    fn read(bytes: &[u8], had: Version) -> Result<Self, u64> {
        let mut window = Window::new(bytes).expect("memory");
        let (extent, damaged) = window.survey(had).expect("memory");
        if damaged {
            return Err(extent.end);
        }
        let (mut records, mut at) = (Vec::new(), 0);
        while at < extent.end {
            let span = window.span(at).expect("memory").expect("it was surveyed");
            let writes = window.writes(&span).expect("a whole record holds writes");
            at = span.end;
            records.push(Record { previous: span.previous, version: span.version, writes });
        }
        Ok(Self { records, end: usize::try_from(extent.end).expect("in memory") })
    }
}

/// What both files hold that the engine does not have, and where the journal goes on.
struct Joined {
    current: usize,
    at: u64,
    last: Version,
    older: Vec<Vec<Write>>,
    newer: Vec<Vec<Write>>,
}

fn join(files: &[Vec<u8>; 2], had: Version) -> Result<Joined, String> {
    let (mut older, mut newer) = (Vec::new(), Vec::new());
    let [one, two] = files;
    let read = records::read([one.as_slice(), two.as_slice()], had, &mut |place, batch| match place {
        Place::Older => older.push(batch),
        Place::Newer => newer.push(batch),
    });
    match read {
        Ok(read) => Ok(Joined { current: read.current, at: read.at, last: read.last, older, newer }),
        Err(Unread::Io { which, error }) => Err(format!("{which}: {error}")),
        Err(Unread::Damaged { which, at }) => Err(format!("{which} is damaged at {at}")),
        Err(Unread::Gap { last, version, previous }) => Err(format!("{last}, then {version} after {previous}")),
    }
}

/// Reads bytes as one file. What is taken as a record is written again to the same bytes, and is never more than was there.
pub fn file(bytes: &[u8]) {
    let mut input = Cursor(bytes);
    let had = u64::from(input.byte());
    let bytes = input.0;
    let Ok(found) = Records::read(bytes, had) else { return };
    assert!(found.end <= bytes.len());
    let (mut at, mut last) = (0, 0);
    for record in &found.records {
        assert!(record.version > last, "versions go back");
        last = record.version;
        let written = again(record, at);
        assert_eq!(bytes.get(at..at + written.len()), Some(&*written), "a record changes when it is written");
        at += written.len();
    }
    assert_eq!(at, found.end, "what was taken has gaps");
    let taken: usize = found.records.iter().flat_map(|record| &record.writes).map(held).sum();
    assert!(taken <= bytes.len(), "{taken} bytes were made of {}", bytes.len());
}

fn held((key, value): &Write) -> usize {
    key.capacity() + value.as_ref().map_or(0, Vec::capacity)
}

#[allow(clippy::expect_used)] // what was read fits
fn again(record: &Record, at: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes, &record.writes, at as u64, record.previous, record.version).expect("what was read can be written");
    bytes
}

/// Two files of records with right checksums and any content, in any order. What is taken of them follows one another without a gap.
#[allow(clippy::expect_used)] // nothing here is long
pub fn framed(parts: &[u8]) {
    let mut input = Cursor(parts);
    let had = Version::from(input.byte());
    let mut files = [Vec::new(), Vec::new()];
    while !input.0.is_empty() {
        let (which, previous, version) = (input.byte(), Version::from(input.byte()), Version::from(input.byte()));
        let len = usize::from(input.byte());
        let writes = input.take(len);
        let [one, two] = &mut files;
        let file = if which & 1 == 0 { one } else { two };
        let mut record = [&[0; 28], writes].concat();
        seal(&mut record, file.len() as u64, previous, version).expect("short");
        file.extend(record);
    }
    files.iter().for_each(|bytes| file(&[&[parts.first().copied().unwrap_or_default()], &**bytes].concat()));
    let Ok(read) = read(&files, had) else { return };
    let known: Vec<(Version, Version)> =
        read.iter().flat_map(|records| &records.records).map(|r| (r.previous, r.version)).filter(|r| r.1 > had).collect();
    let Ok(joined) = join(&files, had) else { return };
    let newest = known.iter().map(|record| record.1).max().unwrap_or(had);
    assert_eq!((joined.last, joined.older.len() + joined.newer.len()), (newest, known.len()));
    let mut in_order = known;
    in_order.sort_unstable_by_key(|record| record.1);
    assert!(in_order.first().is_none_or(|first| first.0 <= had), "the beginning is missing");
    assert!(in_order.windows(2).all(|two| two[1].0 == two[0].1), "something is missing between two records");
}

fn read(files: &[Vec<u8>; 2], had: Version) -> Result<[Records; 2], u64> {
    let [one, two] = files;
    Ok([Records::read(one, had)?, Records::read(two, had)?])
}

/// A record as it was appended.
struct Appended {
    file: usize,
    at: usize,
    bytes: Vec<u8>,
    version: Version,
    writes: Vec<Write>,
}

/// A journal as its engine uses it.
#[derive(Default)]
struct Model {
    files: [Vec<u8>; 2],
    current: usize,
    at: usize,
    last: Version,
    /// The engine has at least so much: what was in a file that began anew.
    had: Version,
    /// What was appended since the files began, in order.
    appended: Vec<Appended>,
}

impl Model {
    #[allow(clippy::expect_used)] // nothing here is long
    fn append(&mut self, version: Version, writes: Vec<Write>) {
        let mut bytes = Vec::new();
        encode(&mut bytes, &writes, self.at as u64, self.last, version).expect("short");
        let file = &mut self.files[self.current];
        file.resize(file.len().max(self.at + bytes.len()), 0);
        file[self.at..self.at + bytes.len()].copy_from_slice(&bytes);
        let record = Appended { file: self.current, at: self.at, bytes, version, writes };
        self.at += record.bytes.len();
        self.last = version;
        self.appended.push(record);
    }

    fn switch(&mut self) {
        let other = 1 - self.current;
        let in_other = self.appended.iter().filter(|record| record.file == other).map(|record| record.version);
        self.had = self.had.max(in_other.max().unwrap_or(0));
        self.appended.retain(|record| record.file != other);
        (self.current, self.at) = (other, 0);
    }

    fn build(input: &mut Cursor<'_>) -> Self {
        let mut model = Self::default();
        for step in 0..input.byte() % 24 {
            match input.byte() {
                0..=191 => {
                    let mut writes = Vec::new();
                    let shape = input.byte();
                    for write in 0..shape & 3 {
                        let key = format!("k/{}/{write}", shape >> 6).into_bytes();
                        let value = (shape & 4 == 0).then(|| vec![step; usize::from(input.byte())]);
                        writes.push((key, value));
                    }
                    // Versions of batches that failed are left out.
                    let version = model.last + 1 + u64::from(shape >> 3 & 1);
                    model.append(version, writes);
                }
                192..=223 => model.switch(),
                // Values that look like records.
                _ => {
                    let other = model.files[1 - model.current].clone();
                    model.append(model.last + 1, vec![(b"inner".to_vec(), Some(other))]);
                }
            }
        }
        model
    }

    /// Damages the files as disks do: bytes that flip, ends that are missing, zeros, blocks at another place, older content.
    fn damage(&mut self, input: &mut Cursor<'_>, before: &[Vec<u8>; 2]) {
        while !input.0.is_empty() {
            let (kind, place, len) = (input.byte(), usize::from(input.short()), usize::from(input.byte()));
            let which = usize::from(kind & 1);
            let file = &mut self.files[which];
            let from = place % (file.len() + 1);
            let to = file.len().min(from + len);
            match kind >> 1 & 7 {
                0 | 1 => file.iter_mut().skip(from).take(1).for_each(|byte| *byte ^= kind >> 4 | 1),
                2 => file.truncate(from),
                3 => file[from..to].fill(0),
                4 => file.extend(std::iter::repeat_n(0, len)),
                5 => {
                    let copied = file[from..to].to_vec();
                    let room = file.len() - copied.len();
                    let elsewhere = usize::from(input.short()) % (room + 1);
                    file[elsewhere..elsewhere + copied.len()].copy_from_slice(&copied);
                }
                6 => {
                    // The files in each other's place, in part.
                    let other = self.files[1 - which].clone();
                    let end = to.min(other.len());
                    if from < end {
                        self.files[which][from..end].copy_from_slice(&other[from..end]);
                    }
                }
                _ => {
                    // A write that never came there.
                    let end = to.min(before[which].len());
                    if from < end {
                        file[from..end].copy_from_slice(&before[which][from..end]);
                    }
                }
            }
        }
    }
}

/// A journal of ours with edits. What is read of it is what was appended, up to the first record that is damaged, and only when nothing
/// whole stands behind that one; everything else is an error.
#[allow(clippy::panic, clippy::expect_used)] // a finding
pub fn edited(data: &[u8]) {
    let mut input = Cursor(data);
    let mut model = Model::build(&mut input);
    let before = model.files.clone();
    // A few more, whose writes may be lost.
    for _ in 0..input.byte() % 4 {
        model.append(model.last + 1, vec![(b"late".to_vec(), Some(vec![b'x'; usize::from(input.byte())]))]);
    }
    let had = match input.byte() {
        0..=127 => model.had,
        choice => {
            let versions: Vec<_> = model.appended.iter().map(|record| record.version).filter(|v| *v >= model.had).collect();
            versions.get(usize::from(choice) % (versions.len() + 1)).copied().unwrap_or(model.had)
        }
    };
    let whole = model.files.clone();
    model.damage(&mut input, &before);
    let needed: Vec<&Appended> = model.appended.iter().filter(|record| record.version > had).collect();
    let is_whole =
        |record: &&Appended| model.files[record.file].get(record.at..record.at + record.bytes.len()) == Some(&*record.bytes);
    let joined = match join(&model.files, had) {
        Ok(joined) => joined,
        Err(why) => {
            assert!(model.files != whole, "a journal without damage is refused: {why}");
            return;
        }
    };
    let batches: Vec<&Vec<Write>> = joined.older.iter().chain(&joined.newer).collect();
    let expected: Vec<&Vec<Write>> = needed.iter().take(batches.len()).map(|record| &record.writes).collect();
    assert_eq!(batches, expected, "what was read is not what was appended");
    let lost = needed.get(batches.len()..).unwrap_or_default();
    assert!(lost.is_empty() || model.files != whole, "a journal without damage loses records");
    assert!(!lost.iter().any(is_whole), "a damaged journal is taken for sound although whole records stand behind the damage");
    assert_eq!(joined.last, batches.len().checked_sub(1).map_or(had, |last| needed[last].version));
    go_on(model.files.clone(), had, joined);
}

/// What is appended behind what was found is found as well.
#[allow(clippy::panic, clippy::expect_used)] // a finding
fn go_on(mut files: [Vec<u8>; 2], had: Version, joined: Joined) {
    let new: Vec<Write> = vec![(b"new".to_vec(), Some(b"value".to_vec()))];
    let mut bytes = Vec::new();
    encode(&mut bytes, &new, joined.at, joined.last, joined.last + 1).expect("short");
    let file = &mut files[joined.current];
    let at = usize::try_from(joined.at).expect("in memory");
    file.resize(file.len().max(at + bytes.len()), 0);
    file[at..at + bytes.len()].copy_from_slice(&bytes);
    let again = join(&files, had).unwrap_or_else(|why| panic!("what was appended after a reading cannot be read: {why}"));
    let batches: Vec<Vec<Write>> = joined.older.into_iter().chain(joined.newer).chain([new]).collect();
    assert_eq!(again.older.into_iter().chain(again.newer).collect::<Vec<_>>(), batches);
}
