//! What the fuzz target of stored records calls: encrypted records, and the keyring inside its encryption.

use super::{
    KEYRING_PATH,
    keyring::Image,
    record::{self, Aead},
};

const KEY: [u8; 32] = [7; 32];

/// Opens bytes as an encrypted record; nobody can make one that opens without the key.
pub fn record(bytes: &[u8]) {
    let aead = Aead::from_array(&KEY);
    if record::term_of("logical/x", bytes).is_ok() {
        assert!(record::open(&aead, "logical/x", bytes.to_vec()).is_err(), "a record was forged");
    }
    assert!(Image::decrypt(&aead, bytes).is_err(), "a keyring was forged");
}

/// Reads bytes as what a root key decrypts to a keyring. What is taken must be written again the same.
pub fn keyring(bytes: &[u8]) {
    let aead = Aead::from_array(&KEY);
    let Ok(sealed) = record::seal(&aead, 0, KEYRING_PATH, bytes) else { return };
    let Ok(image) = Image::decrypt(&aead, &sealed) else { return };
    let written = image.encrypt(&aead).and_then(|sealed| record::open(&aead, KEYRING_PATH, sealed));
    // One byte is a truth value, of which other values than 1 are read as no.
    let same = |written: &[u8]| written.len() == bytes.len() && written.get(2..) == bytes.get(2..);
    assert!(written.is_ok_and(|written| same(written.expose())), "a keyring changes when it is written");
}
