//! Shamir's secret sharing in Vault's share format: GF(2^8) with the polynomial 0x11b; a share is the y bytes
//! followed by one x byte. With one share the share is the secret itself, without an x byte.

use std::convert::Infallible;

use base64::{Engine, engine::general_purpose::STANDARD};
use rand_core::{TryCryptoRng, TryRng};
use vsss_rs::{Gf256, IdentifierGf256};

use super::SealError;
use crate::secret::{SecretBytes, SecretString, fill_random, random_array};

/// Shortest key or share that a request may carry, in bytes.
const MIN_SHARE_LEN: usize = 16;
/// Longest key or share: a 32-byte secret and the x byte.
const MAX_SHARE_LEN: usize = 33;

/// Whether `shares` and `threshold` can be used; the texts are those of Vault's API.
pub(super) fn check_counts(shares: i64, threshold: i64) -> Result<(u8, u8), &'static str> {
    if shares < 1 {
        return Err("shares must be at least one");
    }
    if threshold < 1 {
        return Err("threshold must be at least one");
    }
    if shares > 1 && threshold < 2 {
        return Err("threshold must be greater than one for multiple shares");
    }
    let shares = u8::try_from(shares).map_err(|_range| "shares must be less than 256")?;
    let threshold = u8::try_from(threshold).map_err(|_range| "threshold must be less than 256")?;
    if threshold > shares {
        return Err("threshold cannot be larger than shares");
    }
    Ok((shares, threshold))
}

/// Splits `secret` into `shares` parts, any `threshold` of which give it back. The counts have been checked.
pub(super) fn split(secret: &SecretBytes, shares: u8, threshold: u8) -> Result<Vec<SecretBytes>, SealError> {
    if shares == 1 {
        return Ok(vec![secret.duplicate()]);
    }
    let mut parts = Gf256::split_bytes_with_participant_ids_iter(
        threshold.into(),
        shares.into(),
        secret.expose(),
        OsRandom,
        coordinates(shares),
    )
    .map_err(|error| SealError::Internal(format!("splitting the key failed: {error}")))?;
    // The library puts x in front, Vault at the end.
    parts.iter_mut().for_each(|part| part.rotate_left(1));
    Ok(parts.into_iter().map(SecretBytes::new).collect())
}

/// Gives the secret back from `shares`; with a threshold of one the only share is the secret. Wrong shares give a
/// wrong secret, not an error: what the secret opens tells.
pub(super) fn combine(shares: &[SecretBytes]) -> Result<SecretBytes, &'static str> {
    if let [only] = shares {
        return Ok(only.duplicate());
    }
    let mut parts: Vec<Vec<u8>> = shares.iter().map(|share| share.expose().to_vec()).collect();
    parts.iter_mut().filter(|part| !part.is_empty()).for_each(|part| part.rotate_right(1));
    let secret = Gf256::combine_bytes(&parts);
    parts.iter_mut().for_each(|part| crate::secret::wipe(part));
    secret.map(SecretBytes::new).map_err(|_library| "the shares do not belong together")
}

/// Reads a share from a request: hexadecimal if it looks like that, base64 otherwise.
pub(super) fn decode(text: &SecretString) -> Result<SecretBytes, SealError> {
    let text = text.expose();
    if text.is_empty() {
        return Err(SealError::invalid("'key' must be specified in request body as JSON"));
    }
    let from_hex = hex::decode(text).ok().filter(|key| (MIN_SHARE_LEN..=MAX_SHARE_LEN).contains(&key.len()));
    let key = match from_hex {
        Some(key) => key,
        None => STANDARD.decode(text).map_err(|_encoding| SealError::invalid("'key' must be a valid hex or base64 string"))?,
    };
    let key = SecretBytes::new(key);
    if key.len() < MIN_SHARE_LEN {
        return Err(SealError::Invalid(format!("key is shorter than minimum {MIN_SHARE_LEN} bytes")));
    }
    if key.len() > MAX_SHARE_LEN {
        return Err(SealError::Invalid(format!("key is longer than maximum {MAX_SHARE_LEN} bytes")));
    }
    Ok(key)
}

/// Distinct random x coordinates, none of them zero (which would be the secret itself).
fn coordinates(count: u8) -> Vec<IdentifierGf256> {
    let mut all: Vec<u8> = (1..=u8::MAX).collect();
    for place in 0..usize::from(count) {
        let left = all.len() - place;
        all.swap(place, place + below(left));
    }
    all.into_iter().take(count.into()).map(|x| IdentifierGf256::from(Gf256(x))).collect()
}

/// A uniform number below `limit`, which is at most 256.
fn below(limit: usize) -> usize {
    let fair = 256 - 256 % limit;
    loop {
        let [byte] = random_array::<1>();
        if usize::from(byte) < fair {
            return usize::from(byte) % limit;
        }
    }
}

/// The operating system's random source in the form the library asks for.
struct OsRandom;

impl TryRng for OsRandom {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(u32::from_ne_bytes(random_array()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(u64::from_ne_bytes(random_array()))
    }

    fn try_fill_bytes(&mut self, buffer: &mut [u8]) -> Result<(), Infallible> {
        fill_random(buffer);
        Ok(())
    }
}

impl TryCryptoRng for OsRandom {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn decode(text: &str) -> Result<SecretBytes, SealError> {
        super::decode(&SecretString::new(text.into()))
    }

    #[test]
    fn every_pair_of_shares_of_a_real_vault_gives_the_same_key() {
        #[derive(serde::Deserialize)]
        struct Fixture {
            shares_base64: Vec<String>,
        }
        let text = include_str!("../../fixtures/shamir/vault-2-of-3.json");
        let fixture: Fixture = serde_json::from_str(text).unwrap();
        let shares: Vec<_> = fixture.shares_base64.iter().map(|share| decode(share).unwrap()).collect();
        let pair = |a: usize, b: usize| combine(&[shares[a].duplicate(), shares[b].duplicate()]).unwrap();
        let secret = pair(0, 1);
        assert_eq!(secret.len(), 32);
        for (a, b) in [(0, 2), (1, 2), (2, 0), (1, 0)] {
            assert!(pair(a, b).same_as(secret.expose()));
        }
        assert!(
            combine(&[shares[0].duplicate(), shares[1].duplicate(), shares[2].duplicate()]).unwrap().same_as(secret.expose())
        );
    }

    #[test]
    fn split_and_combine_are_inverse_and_fewer_shares_give_nothing() {
        let secret = SecretBytes::random(32);
        for (shares, threshold) in [(1, 1), (2, 2), (3, 2), (5, 3), (255, 100)] {
            let parts = split(&secret, shares, threshold).unwrap();
            assert_eq!(parts.len(), usize::from(shares));
            let some: Vec<_> = parts.iter().rev().take(threshold.into()).map(SecretBytes::duplicate).collect();
            assert!(combine(&some).unwrap().same_as(secret.expose()));
            if threshold > 2 {
                assert!(!combine(&some[1..]).unwrap().same_as(secret.expose()));
            }
            if shares > 1 {
                let places: BTreeSet<u8> = parts.iter().map(|part| *part.expose().last().unwrap()).collect();
                assert!(places.len() == parts.len() && !places.contains(&0));
            }
        }
    }

    #[test]
    fn shares_that_do_not_belong_together_are_refused_or_differ() {
        let parts = split(&SecretBytes::random(32), 3, 2).unwrap();
        assert!(combine(&[parts[0].duplicate(), parts[0].duplicate()]).is_err());
        assert!(combine(&[parts[0].duplicate(), SecretBytes::new(vec![1; 20])]).is_err());
        assert!(combine(&[]).is_err());
    }

    #[test]
    fn a_share_is_read_from_hex_or_base64_and_checked_for_length() {
        assert_eq!(decode(&hex::encode([7; 33])).unwrap().expose(), [7; 33]);
        assert_eq!(decode(&STANDARD.encode([7; 33])).unwrap().expose(), [7; 33]);
        for bad in ["", "zz", "abcd", &hex::encode([7; 34]), &STANDARD.encode([7; 40])] {
            assert!(decode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_are_checked() {
        assert_eq!(check_counts(5, 3), Ok((5, 3)));
        assert_eq!(check_counts(1, 1), Ok((1, 1)));
        for (shares, threshold) in [(0, 0), (1, 0), (3, 1), (1, 3), (256, 2), (-1, 2), (300, 300)] {
            assert!(check_counts(shares, threshold).is_err(), "{shares} {threshold}");
        }
    }
}
