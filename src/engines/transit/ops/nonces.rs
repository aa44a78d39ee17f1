//! The nonces of one request.

use crate::secret::fill_random;

/// Random nonces for the texts of one request. A batch asks the operating system for many at a time; what is left goes with the
/// request, so that a machine that is copied or restored while it runs gives no nonce twice.
pub(super) struct Nonces {
    /// Nonces that are still to be taken.
    expected: usize,
    pool: [u8; 24 * 32],
    left: usize,
}

impl Nonces {
    pub(super) fn for_texts(count: usize) -> Self {
        Self { expected: count, pool: [0; 24 * 32], left: 0 }
    }

    /// Fills a nonce of at most 24 bytes.
    pub(super) fn take(&mut self, nonce: &mut [u8]) {
        if self.left < nonce.len() {
            self.left = (self.expected.max(1) * nonce.len()).min(self.pool.len());
            fill_random(&mut self.pool[..self.left]);
        }
        self.expected = self.expected.saturating_sub(1);
        let from = self.left - nonce.len();
        nonce.copy_from_slice(&self.pool[from..self.left]);
        self.left = from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_nonce_of_a_request_is_given_twice() {
        for len in [12, 24] {
            let mut nonces = Nonces::for_texts(3);
            let mut seen = std::collections::HashSet::new();
            for _ in 0..200 {
                let mut nonce = vec![0; len];
                nonces.take(&mut nonce);
                assert!(seen.insert(nonce));
            }
        }
    }
}
