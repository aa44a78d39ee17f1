//! A file that the disk does not let be written any more, for an engine that writes when it opens: it is read from the file, and what
//! the engine writes stays in memory and goes with it.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use parking_lot::{Mutex, RwLock};
use redb::StorageBackend;

const BLOCK: usize = 4096;

/// Whether the file may be read still: once it is written again, what was read from it before does not fit what would be read next.
/// Held for writing while that is not known.
pub(super) type Ended = Arc<RwLock<bool>>;

/// The file and what was written over it.
#[derive(Debug)]
pub(super) struct StandIn {
    file: File,
    ended: Ended,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    length: u64,
    /// Bytes that are read from the file; behind them are zeros.
    from_file: u64,
    /// By number.
    written: BTreeMap<u64, Vec<u8>>,
}

impl StandIn {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let state = State { length, from_file: length, written: BTreeMap::new() };
        Ok(Self { file, ended: Arc::default(), state: Mutex::new(state) })
    }

    pub(super) fn ended(&self) -> Ended {
        Arc::clone(&self.ended)
    }
}

impl State {
    fn block(&self, file: &File, number: u64) -> io::Result<Vec<u8>> {
        if let Some(block) = self.written.get(&number) {
            return Ok(block.clone());
        }
        let mut block = vec![0; BLOCK];
        let begin = number * BLOCK as u64;
        let there = usize::try_from(self.from_file.saturating_sub(begin)).unwrap_or(BLOCK).min(BLOCK);
        if let Some(there) = block.get_mut(..there) {
            file.read_exact_at(there, begin)?;
        }
        Ok(block)
    }
}

/// The blocks that bytes at a place lie in: number, where in it, and how many.
fn blocks(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut left = length;
    let mut at = offset;
    std::iter::from_fn(move || {
        let (number, inside) = (at / BLOCK as u64, usize::try_from(at % BLOCK as u64).unwrap_or(0));
        let here = left.min(BLOCK - inside);
        left -= here;
        at += here as u64;
        (here > 0).then_some((number, inside, here))
    })
}

impl StorageBackend for StandIn {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let ended = self.ended.read();
        if *ended {
            return Err(io::Error::other("the store was opened again meanwhile; try again"));
        }
        let state = self.state.lock();
        let mut out = out;
        for (number, inside, here) in blocks(offset, out.len()) {
            let (part, rest) = std::mem::take(&mut out).split_at_mut(here);
            let block = state.block(&self.file, number)?;
            part.copy_from_slice(block.get(inside..inside + here).unwrap_or_default());
            out = rest;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        state.from_file = state.from_file.min(length);
        state.length = length;
        let first_gone = length.div_ceil(BLOCK as u64);
        state.written.split_off(&first_gone);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        let mut data = data;
        for (number, inside, here) in blocks(offset, data.len()) {
            let (part, rest) = data.split_at(here);
            let mut block = state.block(&self.file, number)?;
            if let Some(place) = block.get_mut(inside..inside + here) {
                place.copy_from_slice(part);
            }
            state.written.insert(number, block);
            data = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_and_the_file_stays_as_it_is() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        let content: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let stand_in = StandIn::open(&path).unwrap();
        let read = |at: u64, length: usize| {
            let mut out = vec![1; length];
            stand_in.read(at, &mut out).unwrap();
            out
        };
        assert_eq!(read(3, 9_000), content[3..9_003]);
        stand_in.write(4_000, &[9; 5_000]).unwrap();
        assert_eq!(read(3_990, 5_020), [&content[3_990..4_000], &[9; 5_000], &content[9_000..9_010]].concat());
        stand_in.set_len(20_000).unwrap();
        assert_eq!(read(9_990, 20), [&content[9_990..], &[0; 10]].concat());
        stand_in.set_len(8_192).unwrap();
        stand_in.set_len(20_000).unwrap();
        assert_eq!(read(8_190, 4), [9, 9, 0, 0]);
        assert_eq!(std::fs::read(path).unwrap(), content);
        *stand_in.ended().write() = true;
        assert!(stand_in.read(0, &mut [0]).is_err());
    }
}
