//! What an auditor sees on the token with other software (the `cryptoki` crate, not this project's own PKCS#11 calls):
//! the attributes of the seal key, of a zone master key and of an `hsm-only` key.
//!
//! The module takes its configuration from the environment, so the look happens in a second run of this test program.

// Helpers outside #[test] functions stop the test in the same way as tests do.
#![allow(clippy::unwrap_used)]

#[path = "hsm/support.rs"]
#[allow(dead_code)] // shared with the HSM tests, which use all of it
mod support;

use std::process::Command;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    signature::KeyPair,
};
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    object::{Attribute, AttributeType, ObjectClass},
    session::{Session, UserType},
    types::AuthPin,
};
use sos::hsm::{Hsm, KeyId, KeyKind};

const MODULE: &str = "SOS_AUDITED_MODULE";
const PIN_FILE: &str = "SOS_AUDITED_PIN_FILE";

#[tokio::test]
async fn keys_are_on_the_token_as_the_documents_say() {
    let Some(token) = support::Token::softhsm() else { return };
    let hsm = token.client().await;
    let escrow = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
    let escrow: PublicKeyX509Der<'_> = escrow.public_key().as_der().unwrap();
    hsm.create_seal_key("audit/seal", KeyId::random()).await.unwrap();
    hsm.create_master_key("audit/zone", KeyId::random(), &[escrow.as_ref().to_vec()]).await.unwrap();
    hsm.generate_on_token("audit/only", KeyId::random(), KeyKind::Aes256).await.unwrap();

    let look = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_look_itself", "--nocapture"])
        .env("SOFTHSM2_CONF", token.folder.path().join("softhsm2.conf"))
        .env(MODULE, &token.module)
        .env(PIN_FILE, token.folder.path().join("pin"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&look.stdout);
    assert!(look.status.success(), "{said}{}", String::from_utf8_lossy(&look.stderr));
    assert!(said.contains("looked at 3 keys"), "{said}");
}

#[test]
fn the_look_itself() {
    let (Ok(module), Ok(pin)) = (std::env::var(MODULE), std::env::var(PIN_FILE)) else { return };
    let module = Pkcs11::new(module).unwrap();
    module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
    let mut slots = module.get_slots_with_token().unwrap().into_iter();
    let slot = slots.find(|slot| module.get_token_info(*slot).is_ok_and(|token| token.label() == "sos-test")).unwrap();
    let session = module.open_ro_session(slot).unwrap();
    let pin = std::fs::read_to_string(pin).unwrap();
    session.login(UserType::User, Some(&AuthPin::new(pin.trim().into()))).unwrap();

    let everywhere =
        [Attribute::Sensitive(true), Attribute::Extractable(false), Attribute::Private(true), Attribute::Derive(false)];
    let cipher = [Attribute::Encrypt(true), Attribute::Decrypt(true), Attribute::Wrap(false), Attribute::Unwrap(false)];
    let wrapper = [Attribute::Encrypt(false), Attribute::Decrypt(false), Attribute::Wrap(true), Attribute::Unwrap(true)];
    for (label, usage) in [("audit/seal", &cipher), ("audit/zone", &wrapper), ("audit/only", &cipher)] {
        expect(&session, label, &everywhere);
        expect(&session, label, usage);
    }
    let keys = session.find_objects(&[Attribute::Token(true), Attribute::Class(ObjectClass::SECRET_KEY)]).unwrap();
    println!("looked at {} keys", keys.len());
}

fn expect(session: &Session, label: &str, wanted: &[Attribute]) {
    let found = session.find_objects(&[Attribute::Label(label.into())]).unwrap();
    assert_eq!(found.len(), 1, "{label}");
    let types: Vec<AttributeType> = wanted.iter().map(Attribute::attribute_type).collect();
    let got = session.get_attributes(found[0], &types).unwrap();
    assert_eq!(got, wanted, "{label}");
}
