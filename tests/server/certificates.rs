//! Certificates for Transit keys: an authority made here signs a key's request, and the chain goes back beside the key.

use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{PKey, PKeyRef, Private, Public};
use openssl::sign::Verifier;
use openssl::stack::Stack;
use openssl::x509::extension::{BasicConstraints, KeyUsage};
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::{X509, X509Builder, X509Name, X509NameRef, X509Req, X509StoreContext};
use serde_json::{Value, json};
use sos::secret::random_array;

use crate::support::{Place, Server};

fn name(common: &str) -> X509Name {
    let mut name = X509Name::builder().unwrap();
    name.append_entry_by_nid(Nid::COMMONNAME, common).unwrap();
    name.build()
}

/// Whose certificate is made.
struct Subject<'a> {
    name: &'a X509NameRef,
    key: &'a PKeyRef<Public>,
    authority: bool,
    /// Days from now at which it ends.
    ends: i64,
}

/// A certificate by an issuer, or by its own key.
fn certify(subject: &Subject<'_>, issuer: &X509NameRef, key: &PKeyRef<Private>) -> X509 {
    let mut builder = X509Builder::new().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_slice(&random_array::<8>()).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(subject.name).unwrap();
    builder.set_issuer_name(issuer).unwrap();
    builder.set_pubkey(subject.key).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let now = i64::try_from(now).unwrap();
    builder.set_not_before(&Asn1Time::from_unix(now - 30 * 86400).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::from_unix(now + subject.ends * 86400).unwrap()).unwrap();
    let mut constraints = BasicConstraints::new();
    constraints.critical();
    if subject.authority {
        constraints.ca();
        builder.append_extension(KeyUsage::new().critical().key_cert_sign().build().unwrap()).unwrap();
    }
    builder.append_extension(constraints.build().unwrap()).unwrap();
    builder.sign(key, MessageDigest::sha256()).unwrap();
    builder.build()
}

/// A root and an authority under it.
struct Authorities {
    root: X509,
    issuing: X509,
    issuing_key: PKey<Private>,
}

fn public_of(key: &PKeyRef<Private>) -> PKey<Public> {
    PKey::public_key_from_der(&key.public_key_to_der().unwrap()).unwrap()
}

impl Authorities {
    fn new() -> Self {
        let key = || {
            PKey::from_ec_key(
                openssl::ec::EcKey::generate(&openssl::ec::EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).unwrap()).unwrap(),
            )
            .unwrap()
        };
        let (root_key, issuing_key) = (key(), key());
        let (root_name, issuing_name) = (name("root"), name("issuing"));
        let root = Subject { name: &root_name, key: &public_of(&root_key), authority: true, ends: 365 };
        let issuing = Subject { name: &issuing_name, key: &public_of(&issuing_key), authority: true, ends: 365 };
        Self { root: certify(&root, &root_name, &root_key), issuing: certify(&issuing, &root_name, &root_key), issuing_key }
    }

    /// The certificate that a request asks for.
    fn sign(&self, request: &X509Req, ends: i64) -> X509 {
        assert!(request.verify(&request.public_key().unwrap()).unwrap(), "the request is signed by its key");
        let subject = Subject { name: request.subject_name(), key: &request.public_key().unwrap(), authority: false, ends };
        certify(&subject, self.issuing.subject_name(), &self.issuing_key)
    }
}

fn pem(certificates: &[&X509]) -> String {
    certificates.iter().map(|certificate| String::from_utf8(certificate.to_pem().unwrap()).unwrap()).collect()
}

/// A request for a certificate of a key, with a subject that a request made elsewhere gives.
fn request_of(server: &Server<'_>, key: &str, version: Option<u32>) -> X509Req {
    let own = PKey::generate_ed25519().unwrap();
    let mut template = X509Req::builder().unwrap();
    template.set_subject_name(&name(&format!("{key}.example"))).unwrap();
    template.set_pubkey(&own).unwrap();
    template.sign(&own, MessageDigest::null()).unwrap();
    let mut body = json!({"csr": String::from_utf8(template.build().to_pem().unwrap()).unwrap()});
    if let Some(version) = version {
        body["version"] = version.into();
    }
    let made = server.put(&format!("transit/keys/{key}/csr"), body).ok();
    X509Req::from_pem(made["data"]["csr"].as_str().unwrap().as_bytes()).unwrap()
}

/// Whether `leaf` leads to the root, as whoever relies on it finds.
fn verifies(authorities: &Authorities, leaf: &X509) -> bool {
    let mut store = X509StoreBuilder::new().unwrap();
    store.add_cert(authorities.root.clone()).unwrap();
    let mut between = Stack::new().unwrap();
    between.push(authorities.issuing.clone()).unwrap();
    let mut context = X509StoreContext::new().unwrap();
    context.init(&store.build(), leaf, &between, |context| context.verify_cert()).unwrap()
}

/// What the key signs now verifies with the certificate's key.
fn signs_for(server: &Server<'_>, key: &str, certificate: &X509) -> bool {
    use base64::Engine;
    let body = json!({"input": "b3BlbiBzZXNhbWU=", "signature_algorithm": "pkcs1v15"});
    let signed = server.put(&format!("transit/sign/{key}"), body).ok();
    let signature = signed["data"]["signature"].as_str().unwrap().rsplit(':').next().unwrap();
    let signature = base64::prelude::BASE64_STANDARD.decode(signature).unwrap();
    let public = certificate.public_key().unwrap();
    let mut verifier = match public.id() {
        openssl::pkey::Id::ED25519 => Verifier::new_without_digest(&public).unwrap(),
        _ => Verifier::new(MessageDigest::sha256(), &public).unwrap(),
    };
    verifier.verify_oneshot(&signature, b"open sesame").unwrap()
}

#[test]
fn a_chain_goes_beside_its_key_and_comes_back() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    let authorities = Authorities::new();
    for (kind, level) in [
        ("rsa-2048", "hsm"),
        ("ecdsa-p256", "hsm"),
        ("ecdsa-p521", "hsm-only"),
        ("ecdsa-p384", "software"),
        ("ed25519", "software"),
    ] {
        let allowed = level == "software";
        let settings = json!({"type": kind, "protection_level": level, "exportable": allowed, "allow_plaintext_backup": allowed});
        server.put(&format!("transit/keys/{kind}"), settings).ok();
        let leaf = authorities.sign(&request_of(&server, kind, None), 30);
        assert!(verifies(&authorities, &leaf), "{kind}");
        assert!(signs_for(&server, kind, &leaf), "{kind}");
        let chain = pem(&[&leaf, &authorities.issuing, &authorities.root]);
        let set = server.put(&format!("transit/keys/{kind}/set-certificate"), json!({"certificate_chain": chain})).ok();
        assert_eq!(set["data"], json!({"name": kind, "type": kind, "certificate_chain": chain}));

        // A later version has none; the first keeps its own, in PEM without the last line break.
        server.put(&format!("transit/keys/{kind}/rotate"), json!({})).ok();
        let shown = server.get(&format!("transit/keys/{kind}")).ok();
        assert_eq!(shown["data"]["keys"]["1"]["certificate_chain"], chain.trim_end());
        assert_eq!(shown["data"]["keys"]["2"]["certificate_chain"], "");
        let exported = server.get(&format!("transit/export/certificate-chain/{kind}/1")).ok();
        assert_eq!(exported["data"]["keys"], json!({"1": chain.trim_end()}));
        assert_eq!(server.get(&format!("transit/export/certificate-chain/{kind}/2")).status, 500);

        // A new one takes the place of the old, and the second version gets its own.
        for version in [1, 2] {
            let leaf = authorities.sign(&request_of(&server, kind, Some(version)), 30);
            let chain = pem(&[&leaf]);
            let body = json!({"certificate_chain": chain, "version": version});
            server.put(&format!("transit/keys/{kind}/set-certificate"), body).ok();
            let shown = server.get(&format!("transit/keys/{kind}")).ok();
            assert_eq!(shown["data"]["keys"][version.to_string()]["certificate_chain"], chain.trim_end());
        }
        if allowed {
            let backup = server.get(&format!("transit/backup/{kind}")).ok()["data"]["backup"].clone();
            server.put(&format!("transit/restore/{kind}-back"), json!({"backup": backup})).ok();
            let [before, after] =
                [kind.to_owned(), format!("{kind}-back")].map(|name| server.get(&format!("transit/keys/{name}")).ok());
            assert_eq!(before["data"]["keys"], after["data"]["keys"], "certificates are part of a backup");
        }
    }
}

#[test]
fn chains_that_do_not_fit_change_nothing() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    server.put("sys/mounts/transit", json!({"type": "transit"})).ok();
    let authorities = Authorities::new();
    let keys = [
        ("ec", json!({"type": "ecdsa-p256"})),
        ("other", json!({"type": "ecdsa-p256"})),
        ("p384", json!({"type": "ecdsa-p384"})),
        ("ed", json!({"type": "ed25519"})),
        ("derived", json!({"type": "ed25519", "derived": true})),
        ("aes", json!({})),
    ];
    for (name, body) in keys {
        server.put(&format!("transit/keys/{name}"), body).ok();
    }
    let leaf_of = |name: &str| authorities.sign(&request_of(&server, name, None), 30);
    let (leaf, other, p384, ed) = (leaf_of("ec"), leaf_of("other"), leaf_of("p384"), leaf_of("ed"));
    let (issuing, root) = (&authorities.issuing, &authorities.root);
    let good = pem(&[&leaf, issuing]);
    server.put("transit/keys/ec/set-certificate", json!({"certificate_chain": good})).ok();

    let persist = "failed to persist certificate chain: ";
    let undecoded = "could not decode a PEM block in the certificate chain";
    let none = "provided certificate chain did not contain any valid PEM encoded certificate";
    let algorithm = format!("{persist}could not validate key match between leaf certificate key and key entry in transit: ");
    let private = String::from_utf8(authorities.issuing_key.private_key_to_pem_pkcs8().unwrap()).unwrap();
    let cut = pem(&[&leaf]).replace("-----END CERTIFICATE-----\n", "");
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let refusals: Vec<(&str, Value, u16, String)> = vec![
        ("ec", json!({"certificate_chain": "no certificate"}), 400, undecoded.into()),
        ("ec", json!({"certificate_chain": format!("{good}and more")}), 400, undecoded.into()),
        ("ec", json!({"certificate_chain": cut}), 400, undecoded.into()),
        ("ec", json!({"certificate_chain": ""}), 400, none.into()),
        ("ec", json!({}), 400, none.into()),
        ("ec", json!({"certificate_chain": private}), 400, none.into()),
        (
            "ec",
            json!({"certificate_chain": no_certificate}),
            400,
            "could not parse a certificate in the certificate chain: ".into(),
        ),
        (
            "ec",
            json!({"certificate_chain": pem(&[issuing, &leaf])}),
            400,
            format!("{persist}certificate in the first element is not a valid leaf certificate"),
        ),
        (
            "ec",
            json!({"certificate_chain": pem(&[issuing, root])}),
            400,
            format!("{persist}certificate in the first element is not a valid leaf certificate"),
        ),
        (
            "ec",
            json!({"certificate_chain": pem(&[&leaf, &other])}),
            400,
            format!("{persist}certificate in the last element is not a valid CA certificate"),
        ),
        (
            "ec",
            json!({"certificate_chain": pem(&[&leaf, &other, root])}),
            400,
            format!("{persist}could not validate if there is only one leaf certificate in the provided chain"),
        ),
        (
            "ec",
            json!({"certificate_chain": pem(&[&ed, issuing])}),
            400,
            format!(
                "{algorithm}provided leaf certificate public key algorithm 'Ed25519' does not match the transit key type 'ecdsa-p256'"
            ),
        ),
        (
            "ed",
            json!({"certificate_chain": pem(&[&leaf, issuing])}),
            400,
            format!(
                "{algorithm}provided leaf certificate public key algorithm 'ECDSA' does not match the transit key type 'ed25519'"
            ),
        ),
        (
            "ec",
            json!({"certificate_chain": pem(&[&other, issuing])}),
            500,
            format!("{persist}leaf certificate public key does not match the selected key version"),
        ),
        (
            "ec",
            json!({"certificate_chain": pem(&[&p384, issuing])}),
            500,
            format!("{persist}leaf certificate public key does not match the selected key version"),
        ),
        ("ec", json!({"certificate_chain": good, "version": 2}), 400, format!("{persist}no such key version")),
        ("ec", json!({"certificate_chain": good, "version": 0}), 400, format!("{persist}no such key version")),
        ("derived", json!({"certificate_chain": good}), 400, "operation not supported for keys with derivation enabled".into()),
        ("aes", json!({"certificate_chain": good}), 400, "key type 'aes256-gcm96' does not support signing".into()),
        ("missing", json!({"certificate_chain": good}), 400, "key with provided name 'missing' not found".into()),
    ];
    for (key, body, status, text) in refusals {
        let reply = server.put(&format!("transit/keys/{key}/set-certificate"), body);
        assert_eq!(reply.status, status, "{text}: {}", reply.text);
        assert!(reply.errors().contains(&text), "{text}: {}", reply.text);
    }
    let shown = server.get("transit/keys/ec").ok();
    assert_eq!(shown["data"]["keys"]["1"]["certificate_chain"], good.trim_end(), "the refusals changed nothing");

    // Taken as in Vault: text before a block, blocks of other kinds, and a certificate that has ended, which is for whoever
    // relies on it to refuse.
    let ended = authorities.sign(&request_of(&server, "ec", None), -1);
    assert!(!verifies(&authorities, &ended));
    let chain = format!("a comment\n{private}{}", pem(&[&ended, issuing, root]));
    server.put("transit/keys/ec/set-certificate", json!({"certificate_chain": chain})).ok();
    let shown = server.get("transit/keys/ec").ok();
    assert_eq!(shown["data"]["keys"]["1"]["certificate_chain"], pem(&[&ended, issuing, root]).trim_end());
    // Vault gives back what it was sent; a private key among it is not stored.
    assert!(!server.get("transit/keys/ec").text.contains("PRIVATE"));
}
