//! Every endpoint of a Transit mount, once.

use std::sync::LazyLock;

use super::{
    Transit, backup, byok_export, certificates, config, datakey, decrypt, encrypt, export, hash, hmac, import, keys, later,
    random, rewrap, sign,
};
use crate::{
    core::route::{Access, OperationSpec, Route, RouteTable, Verb},
    op,
    wire::field::{NoParams, Params},
};

/// The compiled table.
pub fn table() -> &'static RouteTable<Transit> {
    static TABLE: LazyLock<RouteTable<Transit>> = LazyLock::new(|| RouteTable::new(ROUTES));
    &TABLE
}

const fn route(
    patterns: &'static [&'static str],
    help: &'static str,
    operations: &'static [OperationSpec<Transit>],
) -> Route<Transit> {
    Route { patterns, access: Access::Token, help, exists: None, operations }
}

static ROUTES: &[Route<Transit>] = &[
    Route {
        patterns: &["encrypt/{name}"],
        access: Access::Token,
        help: "Encrypts a plaintext or a batch of plaintexts with a named key.",
        exists: Some(|engine, call| Box::pin(encrypt::exists(engine, call))),
        operations: &[OperationSpec {
            verb: Verb::Write,
            summary: "Encrypts; makes the key where the token may create it.",
            fields: encrypt::EncryptParams::FIELDS,
            makes: false,
            computes: true,
            run: |engine, call| Box::pin(encrypt::encrypt(engine, call)),
        }],
    },
    route(
        &["decrypt/{name}"],
        "Decrypts a ciphertext or a batch of ciphertexts with a named key.",
        &[OperationSpec {
            verb: Verb::Write,
            summary: "Decrypts.",
            fields: decrypt::DecryptParams::FIELDS,
            makes: false,
            computes: true,
            run: |engine, call| Box::pin(decrypt::decrypt(engine, call)),
        }],
    ),
    route(
        &["rewrap/{name}"],
        "Encrypts ciphertexts anew under the latest or a given version, without showing the plaintext.",
        &[OperationSpec {
            verb: Verb::Write,
            summary: "Rewraps.",
            fields: rewrap::RewrapParams::FIELDS,
            makes: false,
            computes: true,
            run: |engine, call| Box::pin(rewrap::rewrap(engine, call)),
        }],
    ),
    route(
        &["datakey/{plaintext:segment}/{name}"],
        "Makes a random data key, encrypted by a named key.",
        &[op!(Write, "Makes a data key.", datakey::datakey, datakey::DatakeyParams).computing()],
    ),
    route(&["keys/?"], "Lists keys.", &[op!(List, "Lists keys.", keys::list, keys::ListParams)]),
    route(
        &["keys/{name}/config"],
        "Configures a named key.",
        &[op!(Write, "Changes bounds and permissions.", keys::configure, keys::ConfigParams)],
    ),
    route(&["keys/{name}/rotate"], "Adds a version to a named key.", &[op!(Write, "Rotates.", keys::rotate, keys::NameParams)]),
    route(&["keys/{name}/trim"], "Deletes old versions of a named key.", &[op!(Write, "Trims.", keys::trim, keys::TrimParams)]),
    route(
        &["keys/{name}/soft-delete"],
        "Marks a named key as deleted.",
        &[op!(Delete, "Marks.", keys::soft_delete, keys::NameParams)],
    ),
    route(
        &["keys/{name}/soft-delete-restore"],
        "Takes the mark of deletion off a named key.",
        &[op!(Write, "Restores.", keys::soft_restore, keys::NameParams)],
    ),
    route(
        &["keys/{name}"],
        "Makes, reads and deletes a named key.",
        &[
            op!(Write, "Makes a key; an existing one stays as it is.", keys::create, keys::CreateParams),
            op!(Read, "Reads a key without its material.", keys::read, keys::ReadParams),
            op!(Delete, "Deletes a key and all its versions.", keys::delete, keys::NameParams),
        ],
    ),
    route(
        &["config/keys"],
        "Settings of all keys of the mount.",
        &[
            op!(Read, "Reads the settings.", config::read_keys, NoParams),
            op!(Write, "Changes the settings.", config::write_keys, config::KeysParams),
        ],
    ),
    route(
        &["cache-config"],
        "How many keys are held in memory.",
        &[
            op!(Read, "Reads the size.", config::read_cache, NoParams),
            op!(Write, "Changes the size.", config::write_cache, config::CacheParams),
        ],
    ),
    route(
        &["random", "random/{source}", "random/{source}/{urlbytes:path}", "random/{urlbytes:path}"],
        "Random bytes.",
        &[op!(Write, "Makes random bytes.", random::random, random::RandomParams).computing()],
    ),
    route(
        &["hash", "hash/{urlalgorithm:path}"],
        "Hashes.",
        &[op!(Write, "Hashes the input.", hash::hash, hash::HashParams).computing()],
    ),
    route(
        &["sign/{name}", "sign/{name}/{urlalgorithm:path}"],
        "Signs with a named key.",
        &[OperationSpec {
            verb: Verb::Write,
            summary: "Signs.",
            fields: sign::SignParams::FIELDS,
            makes: false,
            computes: true,
            run: |engine, call| Box::pin(sign::sign(engine, call)),
        }],
    ),
    route(
        &["verify/{name}", "verify/{name}/{urlalgorithm:path}"],
        "Verifies a signature or HMAC with a named key.",
        &[OperationSpec {
            verb: Verb::Write,
            summary: "Verifies.",
            fields: sign::VerifyParams::FIELDS,
            makes: false,
            computes: true,
            run: |engine, call| Box::pin(sign::verify(engine, call)),
        }],
    ),
    route(
        &["hmac/{name}", "hmac/{name}/{urlalgorithm:path}"],
        "Makes an HMAC with a named key.",
        &[OperationSpec {
            verb: Verb::Write,
            summary: "Makes an HMAC.",
            fields: hmac::HmacParams::FIELDS,
            makes: false,
            computes: true,
            run: |engine, call| Box::pin(hmac::hmac(engine, call)),
        }],
    ),
    route(
        &["export/{type:segment}/{name}", "export/{type:segment}/{name}/{version:path}"],
        "Exports the versions of a named key.",
        &[op!(Read, "Exports.", export::export, export::ExportParams)],
    ),
    route(&["backup/{name}"], "Backs a named key up.", &[op!(Read, "Backs up.", backup::backup, backup::BackupParams)]),
    route(
        &["restore", "restore/{name:path}"],
        "Restores a key from a backup.",
        &[op!(Write, "Restores.", backup::restore, backup::RestoreParams)],
    ),
    route(
        &["wrapping_key"],
        "The public key that imported keys are wrapped with.",
        &[op!(Read, "Reads the public key.", import::wrapping_key).making()],
    ),
    route(
        &["keys/{name}/import"],
        "Makes a key of material from outside.",
        &[OperationSpec {
            verb: Verb::Write,
            summary: "Imports.",
            fields: import::ImportParams::FIELDS,
            makes: false,
            computes: false,
            run: |engine, call| Box::pin(import::import(engine, call)),
        }],
    ),
    route(
        &["keys/{name}/import_version"],
        "Adds a version from outside to an imported key.",
        &[OperationSpec {
            verb: Verb::Write,
            summary: "Imports a version.",
            fields: import::VersionParams::FIELDS,
            makes: false,
            computes: false,
            run: |engine, call| Box::pin(import::import_version(engine, call)),
        }],
    ),
    route(
        &["byok-export/{destination}/{source}", "byok-export/{destination}/{source}/{version:path}"],
        "Exports a key wrapped for import elsewhere.",
        &[op!(Read, "Exports.", byok_export::export, byok_export::WrappedExportParams)],
    ),
    route(
        &["keys/{name}/csr"],
        "Makes a request for a certificate of a named key.",
        &[op!(Write, "Makes a request.", certificates::csr, certificates::CsrParams).computing()],
    ),
    route(
        &["keys/{name}/set-certificate"],
        "Puts certificates beside a version of a named key.",
        &[op!(Write, "Sets certificates.", certificates::set_certificate, certificates::ChainParams)],
    ),
    route(&["derive-key/{name}"], "Not available yet.", &[op!(Write, "Not available yet.", later::absent)]),
];
