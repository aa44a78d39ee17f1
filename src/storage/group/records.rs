//! What a transaction may name, and what an engine says of its records.

use super::{MAX_KEY, MAX_VALUE, SEQUENCE, corrupt, failed_at};
use crate::storage::{
    StorageError, Txn, Version,
    backend::{Backend, Step},
    census::Census,
    frame,
};

pub(super) fn size(txn: &Txn) -> usize {
    txn.writes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
}

/// A key that ends in a slash would be a record that looks like a folder; no list could show it.
pub(super) fn refuse_odd(txn: &Txn) -> Result<(), StorageError> {
    let checked = txn.checks.iter().map(|(key, _)| key);
    for key in checked.chain(txn.writes.iter().map(|(key, _)| key)) {
        if key.is_empty() {
            return Err(StorageError::Invalid("an empty key".into()));
        }
        if key.len() > MAX_KEY {
            return Err(StorageError::Invalid(format!("a key of {} bytes; {MAX_KEY} are allowed", key.len())));
        }
        if key.ends_with('/') {
            return Err(StorageError::Invalid(format!("the key {key:?} ends in a slash")));
        }
    }
    for (key, value) in &txn.writes {
        let len = value.as_ref().map_or(0, Vec::len);
        if len > MAX_VALUE {
            return Err(StorageError::Invalid(format!("{len} bytes for {key:?}; {MAX_VALUE} are allowed")));
        }
    }
    Ok(())
}

pub(super) fn stored_version(backend: &dyn Backend, key: &[u8]) -> Result<Option<Version>, StorageError> {
    let framed = backend.get(key).map_err(|fault| failed_at(key, fault))?;
    framed.map(|framed| frame::decode_version(key, &framed).map_err(|why| corrupt(key, why))).transpose()
}

/// The last version given, 0 in a new store, and the census that was written with it.
pub(super) fn read_sequence(backend: &dyn Backend) -> Result<(Version, Census), StorageError> {
    let framed = backend.get(SEQUENCE).map_err(|fault| failed_at(SEQUENCE, fault))?;
    match framed {
        Some(framed) => {
            let record = frame::decode(SEQUENCE, &framed).map_err(|why| corrupt(SEQUENCE, why))?;
            let census = Census::decode(&record.value).ok_or_else(|| corrupt(SEQUENCE, "it has no census".into()))?;
            Ok((record.version, census))
        }
        None if is_empty(backend)? => Ok((0, Census::default())),
        None => Err(corrupt(SEQUENCE, "it is missing although there are records".into())),
    }
}

fn is_empty(backend: &dyn Backend) -> Result<bool, StorageError> {
    let mut empty = true;
    let visited = backend.visit(&[], &mut |_, _| {
        empty = false;
        Step::Stop
    });
    visited.map_err(|fault| failed_at(SEQUENCE, fault)).map(|()| empty)
}
