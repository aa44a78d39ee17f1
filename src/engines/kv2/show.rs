//! Answers, written straight into one buffer with members in the order that Vault's clients see them.

use std::collections::BTreeMap;

use super::record::{KeyRecord, VersionEntry, shown};
use crate::{
    core::reply::{Body, Reply},
    wire::duration::format_duration,
    wire::json::push_name,
};

/// 404 with an empty body.
pub fn nothing() -> Reply {
    Reply { body: Body::Bare { content_type: "application/json", bytes: Vec::new() }, ..Reply::default() }.with_status(404)
}

/// What a write answers: the version's metadata.
pub fn version_reply(version: &VersionEntry, key: &KeyRecord) -> Reply {
    let mut json = Vec::with_capacity(160);
    push_version(&mut json, version, key);
    Reply::raw_data(json)
}

/// A version with its data (or its structure) under `name`. One without data is a 404 that still has a body. The two
/// members stand in alphabetical order.
pub fn found(name: &str, data: Option<&[u8]>, version: &VersionEntry, key: &KeyRecord) -> Reply {
    let content = data.unwrap_or(b"null");
    let mut json = Vec::with_capacity(content.len() + 200);
    json.push(b'{');
    let push_content = |json: &mut Vec<u8>| {
        push_name(json, name);
        json.extend_from_slice(content);
    };
    if name < "metadata" {
        push_content(&mut json);
        json.push(b',');
    }
    push_name(&mut json, "metadata");
    push_version(&mut json, version, key);
    if name > "metadata" {
        json.push(b',');
        push_content(&mut json);
    }
    json.push(b'}');
    let reply = Reply::raw_data(json);
    if data.is_some() { reply } else { reply.with_status(404) }
}

/// All of a key's settings and versions.
pub fn key_json(key: &KeyRecord) -> Vec<u8> {
    let mut json = Vec::with_capacity(300 + key.versions.len() * 100);
    push_text(&mut json, "{\"cas_required\":", if key.cas_required { "true" } else { "false" });
    push_text(&mut json, ",\"created_time\":\"", &shown(key.created));
    push_text(&mut json, "\",\"current_metadata_version\":", &key.metadata_version.to_string());
    push_text(&mut json, ",\"current_version\":", &key.current.to_string());
    json.extend_from_slice(b",\"custom_metadata\":");
    push_custom(&mut json, &key.custom_metadata);
    let after = std::time::Duration::from_secs(key.delete_version_after);
    push_text(&mut json, ",\"delete_version_after\":\"", &format_duration(after));
    push_text(&mut json, "\",\"max_versions\":", &key.max_versions.to_string());
    push_text(&mut json, ",\"metadata_cas_required\":", if key.metadata_cas_required { "true" } else { "false" });
    push_text(&mut json, ",\"oldest_version\":", &key.oldest.to_string());
    push_text(&mut json, ",\"updated_time\":\"", &shown(key.updated));
    json.extend_from_slice(b"\",\"versions\":{");
    for (index, version) in key.versions.iter().enumerate() {
        if index > 0 {
            json.push(b',');
        }
        push_text(&mut json, "\"", &version.number.to_string());
        push_text(&mut json, "\":{\"created_time\":\"", &shown(version.created));
        push_text(&mut json, "\",\"deletion_time\":\"", &version.deletion.map(shown).unwrap_or_default());
        push_text(&mut json, "\",\"destroyed\":", if version.destroyed { "true}" } else { "false}" });
    }
    json.extend_from_slice(b"}}");
    json
}

fn push_version(json: &mut Vec<u8>, version: &VersionEntry, key: &KeyRecord) {
    push_text(json, "{\"created_time\":\"", &shown(version.created));
    json.extend_from_slice(b"\",\"custom_metadata\":");
    push_custom(json, &key.custom_metadata);
    push_text(json, ",\"deletion_time\":\"", &version.deletion.map(shown).unwrap_or_default());
    push_text(json, "\",\"destroyed\":", if version.destroyed { "true" } else { "false" });
    push_text(json, ",\"version\":", &version.number.to_string());
    json.push(b'}');
}

fn push_custom(json: &mut Vec<u8>, custom: &BTreeMap<String, String>) {
    if custom.is_empty() {
        json.extend_from_slice(b"null");
    } else {
        // A map of strings always serialises, and a vector always takes it.
        let _ = serde_json::to_writer(json, custom);
    }
}

fn push_text(json: &mut Vec<u8>, before: &str, text: &str) {
    json.extend_from_slice(before.as_bytes());
    json.extend_from_slice(text.as_bytes());
}
