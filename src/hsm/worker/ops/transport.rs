//! Transport keys: how a zone master key comes from one HSM to another without passing through anybody's memory.
//!
//! Each enrolled HSM has an RSA pair whose private half only unwraps and never leaves. The HSM that makes a master key wraps
//! it to the public halves of the others ([`super::master`]); here it is taken in.

use cryptoki_sys::*;

use super::Call;
use super::master::check_value;
use crate::hsm::der::{self, RsaPublic};
use crate::hsm::proto::{Failure, Frame, Reply};
use crate::hsm::raw::Attribute;
use crate::hsm::worker::Trouble;
use crate::hsm::worker::template::{self, Place, Usage};
use crate::hsm::{KeyId, Mechanism as BlobMechanism};

/// As the escrow's: 128 bits of strength (NIST SP 800-57).
const RSA_BITS: u64 = 3072;

/// Makes the pair on the token; answers the public half.
pub fn create(call: &Call<'_>, label: &str, id: KeyId) -> Result<Frame, Trouble> {
    let (module, session) = (&call.device.module, call.session);
    let place = Place::Token { label, id };
    let _guard = call.device.objects(call.current);
    call.refuse_taken(id)?;
    let mut public = template::public(CKK_RSA, place, Usage { wrap: true, ..Usage::default() });
    public.push(Attribute::number(CKA_MODULUS_BITS, RSA_BITS));
    public.push(Attribute::bytes(CKA_PUBLIC_EXPONENT, &[1, 0, 1]));
    let (public, private) = module.generate_pair(session, CKM_RSA_PKCS_KEY_PAIR_GEN, &public, &private(place))?;
    let read = |attribute| -> Result<_, Trouble> { Ok(module.attribute(session, public, attribute)?.unwrap_or_default()) };
    let halves = read(CKA_MODULUS).and_then(|modulus| Ok((modulus, read(CKA_PUBLIC_EXPONENT)?)));
    let spki = match halves {
        Ok((modulus, exponent)) => der::rsa(RsaPublic { modulus: &modulus, exponent: &exponent }),
        Err(trouble) => {
            // A pair whose public half nobody knows is of no use.
            let _ = module.destroy(session, private);
            let _ = module.destroy(session, public);
            return Err(trouble);
        }
    };
    call.reply(&Reply::NewKey { wrapped: None, public_key: Some(spki) })
}

/// The private half: it unwraps and does nothing else.
fn private(place: Place<'_>) -> Vec<Attribute> {
    let mut template = place.attributes();
    template.extend([
        Attribute::number(CKA_CLASS, CKO_PRIVATE_KEY),
        Attribute::number(CKA_KEY_TYPE, CKK_RSA),
        Attribute::flag(CKA_PRIVATE, true),
        Attribute::flag(CKA_SENSITIVE, true),
        Attribute::flag(CKA_EXTRACTABLE, false),
        Attribute::flag(CKA_DECRYPT, false),
        Attribute::flag(CKA_SIGN, false),
        Attribute::flag(CKA_UNWRAP, true),
        Attribute::flag(CKA_DERIVE, false),
    ]);
    template
}

/// Takes in a master key that another HSM wrapped to the transport key: a token object, non-extractable.
pub fn accept(
    call: &Call<'_>,
    transport: KeyId,
    label: &str,
    id: KeyId,
    mechanism: BlobMechanism,
    blob: &[u8],
) -> Result<Frame, Trouble> {
    if !matches!(mechanism, BlobMechanism::RsaOaepSha1 | BlobMechanism::RsaOaepSha256) {
        return Err(Trouble::Failed(Failure::BadInput("a transport copy is always wrapped by RSA-OAEP".into())));
    }
    let device = call.device;
    let wrapping = device.token_key(call.current, transport, CKO_PRIVATE_KEY, CKK_RSA)?;
    let guard = device.objects(call.current);
    call.refuse_taken(id)?;
    let template = template::secret(CKK_AES, Place::Token { label, id }, Usage::WRAPPER, false);
    let key = device.module.unwrap(call.session, device.wrapping(mechanism)?, wrapping, blob, &template)?;
    let check_value = check_value(device, call.session, key);
    if check_value.is_err() {
        let _ = device.module.destroy(call.session, key);
    }
    drop(guard);
    call.reply(&Reply::CheckValue(check_value?))
}
