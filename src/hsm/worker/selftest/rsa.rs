//! RSA in the self-test: raw private operations (CKM_RSA_X_509), in which every Transit operation of the type ends.
//!
//! One 2048-bit pair is generated per start. Each size is then tested with a known key of that size, which is brought in,
//! wrapped under a master key, loaded again and used; whether the module generates that size is what it claims itself
//! (CK_MECHANISM_INFO). The known keys are in this repository and protect nothing.

use cryptoki_sys::*;
use openssl::pkey::PKey;
use openssl::rsa::{Padding, Rsa};

use super::{Result, Test, words};
use crate::hsm::KeyKind;
use crate::hsm::raw::{Mechanism, Object};
use crate::hsm::worker::ops::export::Passing;
use crate::hsm::worker::ops::keys::generate;
use crate::hsm::worker::template::Place;
use crate::secret::fill_random;

/// PKCS#8 DER of a known key.
fn known(kind: KeyKind) -> &'static [u8] {
    match kind {
        KeyKind::Rsa3072 => include_bytes!("keys/rsa-3072.der"),
        KeyKind::Rsa4096 => include_bytes!("keys/rsa-4096.der"),
        _ => include_bytes!("keys/rsa-2048.der"),
    }
}

/// What came of the generated pair: used as it is, and wrapped, loaded and used.
pub struct Generated {
    used: Result<()>,
    wrapped: Result<()>,
}

type Public = Rsa<openssl::pkey::Public>;

impl Test<'_> {
    /// Whether keys of a size work as token objects, and wrapped.
    pub(super) fn rsa(&self, kind: KeyKind, bits: CK_ULONG, master: &Result<Object>) -> (Result<()>, Result<()>) {
        if let Err(reason) = self.rsa_claims(bits) {
            return (Err(reason.clone()), Err(reason));
        }
        let generated = self.rsa.get_or_init(|| self.rsa_generated(master));
        let used = generated.used.clone();
        let wrapped = used.clone().and_then(|()| generated.wrapped.clone()).and_then(|()| self.rsa_known(kind, master));
        (used, wrapped)
    }

    /// What the module says about itself.
    fn rsa_claims(&self, bits: CK_ULONG) -> Result<()> {
        if !self.device.has(CKM_RSA_X_509) {
            return Err("the module has no CKM_RSA_X_509, and its padded mechanisms cannot do all hashes and salts".into());
        }
        let info = |mechanism| {
            self.device.module.mechanism_info(self.device.slot, mechanism).map_err(|error| format!("0x{mechanism:04X}: {error}"))
        };
        let raw = info(CKM_RSA_X_509)?;
        if raw.flags & CKF_SIGN == 0 || raw.flags & CKF_DECRYPT == 0 {
            return Err("CKM_RSA_X_509 does not both sign and decrypt".into());
        }
        let made = info(CKM_RSA_PKCS_KEY_PAIR_GEN)?;
        if made.largest != 0 && made.largest < bits {
            return Err(format!("the module makes RSA keys of at most {} bits", made.largest));
        }
        Ok(())
    }

    fn rsa_generated(&self, master: &Result<Object>) -> Generated {
        // Extractable at once, so that one generation serves both tests.
        let made = match generate(self.device, self.session, KeyKind::Rsa2048, Place::Session, true) {
            Ok(made) => made,
            Err(trouble) => {
                let reason = words(&trouble);
                return Generated { used: Err(reason.clone()), wrapped: Err(reason) };
            }
        };
        let public = made.public.as_ref().and_then(|(_, spki)| Rsa::public_key_from_der(spki).ok());
        let Some(public) = public else {
            let reason = "the module shows no RSA public key".to_string();
            return Generated { used: Err(reason.clone()), wrapped: Err(reason) };
        };
        let used = self.rsa_works(&public, made.key);
        let wrapped = master
            .clone()
            .and_then(|master| self.moved(KeyKind::Rsa2048, master, made.key))
            .and_then(|loaded| self.rsa_works(&public, loaded));
        Generated { used, wrapped }
    }

    fn rsa_known(&self, kind: KeyKind, master: &Result<Object>) -> Result<()> {
        let master = master.clone()?;
        let key = PKey::private_key_from_pkcs8(known(kind)).and_then(|key| key.public_key_to_der());
        let public = key.and_then(|der| Rsa::public_key_from_der(&der)).map_err(|error| error.to_string())?;
        let passing = Passing::new(self.device, self.session).map_err(|trouble| words(&trouble))?;
        let key = passing.carry_in(self.device, self.session, kind, known(kind)).map_err(|trouble| words(&trouble))?;
        let loaded = self.moved(kind, master, key)?;
        self.rsa_works(&public, loaded)
    }

    /// Blocks of the three shapes that Transit's paddings have come back through the public key.
    fn rsa_works(&self, public: &Public, key: Object) -> Result<()> {
        let len = usize::try_from(public.size()).map_err(|error| error.to_string())?;
        let (module, session) = (&self.device.module, self.session);
        let mut random = vec![0; len];
        fill_random(&mut random);
        // PSS uses the whole width but for the highest bit; PKCS#1 v1.5 and OAEP begin with zeroes, which must not be lost.
        for head in [&[0x7f][..], &[0, 1], &[0; 100]] {
            let mut block = random.clone();
            block.iter_mut().zip(head).for_each(|(to, from)| *to = *from);
            let signature = module.sign(session, CKM_RSA_X_509, key, &block, len).map_err(|error| error.to_string())?;
            let mut back = vec![0; len];
            let verified = public.public_decrypt(&signature, &mut back, Padding::NONE);
            if signature.len() != len || verified.is_err() || back != block {
                return Err("the module's raw RSA signature does not verify".into());
            }
            let mut sealed = vec![0; len];
            public.public_encrypt(&block, &mut sealed, Padding::NONE).map_err(|error| error.to_string())?;
            let opened = module.decrypt(session, Mechanism::Plain(CKM_RSA_X_509), key, &sealed);
            if opened.map_err(|error| error.to_string())?.as_slice() != block {
                return Err("the module's raw RSA decryption does not give the whole block back".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_keys_have_their_sizes() {
        for (kind, bytes) in [(KeyKind::Rsa2048, 256), (KeyKind::Rsa3072, 384), (KeyKind::Rsa4096, 512)] {
            assert_eq!(PKey::private_key_from_pkcs8(known(kind)).unwrap().size(), bytes);
        }
    }
}
