//! Shares that are entered one after the other.

use uuid::Uuid;

use crate::secret::SecretBytes;

/// Shares entered so far for one operation, which its nonce names.
pub(super) struct Collected {
    nonce: String,
    shares: Vec<SecretBytes>,
}

impl Collected {
    /// Nothing entered yet, under a fresh nonce.
    pub(super) fn new() -> Self {
        Self { nonce: new_nonce(), shares: Vec::new() }
    }

    pub(super) fn nonce(&self) -> &str {
        &self.nonce
    }

    pub(super) fn len(&self) -> usize {
        self.shares.len()
    }

    /// Adds a share; `false` when it has been entered before.
    pub(super) fn add(&mut self, share: SecretBytes) -> bool {
        if self.shares.iter().any(|known| known.same_as(share.expose())) {
            return false;
        }
        self.shares.push(share);
        true
    }

    /// Takes the shares out when there are enough.
    pub(super) fn take_if(&mut self, threshold: u8) -> Option<Vec<SecretBytes>> {
        (self.shares.len() >= usize::from(threshold)).then(|| std::mem::take(&mut self.shares))
    }

    /// Forgets the shares and takes a new nonce.
    pub(super) fn restart(&mut self) {
        *self = Self::new();
    }
}

/// An identity for an operation.
pub(super) fn new_nonce() -> String {
    Uuid::new_v4().to_string()
}
