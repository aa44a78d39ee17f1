//! What the fuzz targets of the store's files call: the frame around every record, the journal, and the notes beside them.

mod journal;

pub(crate) use self::journal::{edited as journal_edited, file as journal_file, framed as journal_framed};
use super::{frame, generation, mark};

/// Takes a record out of its frame. What is taken must come back byte by byte.
pub fn frame(bytes: &[u8]) {
    let key = b"logical/x";
    if let Ok(record) = frame::decode(key, bytes) {
        assert_eq!(frame::encode(key, record.version, &record.value), bytes);
        assert_eq!(frame::decode_version(key, bytes), Ok(record.version));
        assert!(frame::decode(b"logical/y", bytes).is_err(), "the record is taken under another key too");
    }
    // The same with a frame that is right around any value.
    let whole = frame::encode(key, 7, bytes);
    assert!(frame::decode(key, &whole).is_ok_and(|record| record.version == 7 && record.value == bytes));
}

/// The note of the last acknowledged version: any bytes, and one of ours with edits, which says what it said or nothing.
pub fn mark(data: &[u8]) {
    let (last, damaged) = mark::read(data);
    assert!(last == 0 || mark::written(last).get(..9) == data.get(..9), "{last} was read");
    assert_eq!(damaged, last == 0 && !data.is_empty());
    let mut input = Cursor(data);
    let version = u64::from(input.short()) + 1;
    let mut note = mark::written(version);
    assert_eq!(mark::read(&note), (version, false));
    note.truncate(usize::from(input.byte()));
    while !input.0.is_empty() && !note.is_empty() {
        let place = usize::from(input.byte()) % note.len();
        note[place] = input.byte();
    }
    let read = mark::read(&note);
    assert!([(version, false), (0, !note.is_empty())].contains(&read), "{version} became {read:?}");
}

/// The note of the current generation: what is taken is what the store writes.
pub fn current(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(number) = generation::named(text) {
        assert!(number > 0 && generation::note(number) == text, "{text:?} is taken for {number}");
    }
}

/// An input that is read piece by piece; zeros follow its end.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    fn short(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }
}
