//! Records in memory, for tests and `-dev`. The yardstick that the other engines are compared with.

use std::{collections::BTreeMap, ops::Bound};

use parking_lot::RwLock;

use super::{
    StorageError,
    backend::{Backend, Fault, Step, Write},
    group::Store,
};

/// The memory store: gone when the process ends.
pub struct InMem;

impl InMem {
    /// An empty store.
    pub fn open() -> Result<Store, StorageError> {
        Store::start(Map::default(), None, None, u64::MAX)
    }
}

#[derive(Default)]
pub(crate) struct Map(RwLock<BTreeMap<Vec<u8>, Vec<u8>>>);

impl Backend for Map {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.0.read().get(key).cloned())
    }

    fn visit(&self, from: &[u8], visitor: &mut dyn FnMut(&[u8], &[u8]) -> Step) -> Result<(), Fault> {
        let map = self.0.read();
        let mut from = from.to_vec();
        'seek: loop {
            for (key, value) in map.range::<[u8], _>((Bound::Included(from.as_slice()), Bound::Unbounded)) {
                match visitor(key, value) {
                    Step::Next => {}
                    Step::Stop => return Ok(()),
                    Step::SkipTo(key) => {
                        from = key;
                        continue 'seek;
                    }
                }
            }
            return Ok(());
        }
    }

    fn apply(&self, batch: Vec<Write>) -> Result<(), Fault> {
        let mut map = self.0.write();
        for (key, value) in batch {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        Ok(())
    }

    fn reopen(&self) -> Result<(), Fault> {
        Ok(())
    }
}
