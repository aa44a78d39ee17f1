//! `sys/internal/specs/openapi`: the route tables of all mounts as an OpenAPI document.
//!
//! What the caller cannot reach is left out, as the names of mounts are no business of strangers.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{System, ui_mounts};
use crate::{
    core::{
        engine::Call,
        failure::Failure,
        mounts::{Mounted, Table},
        reply::Reply,
        route::{Access, Route, RouteInfo, Verb},
    },
    op,
    wire::field::{Field, FieldKind},
};

/// Endpoints of this file.
pub const ROUTES: &[Route<System>] = &[Route {
    patterns: &["internal/specs/openapi"],
    access: Access::Anyone,
    help: "Describes all endpoints in the OpenAPI format.",
    exists: None,
    operations: &[
        op!(Read, "The OpenAPI document", document, OpenApiParams),
        op!(Write, "The OpenAPI document", document, OpenApiParams).computing(),
    ],
}];

crate::params! {
    /// How the document is made.
    struct OpenApiParams {
        /// Not used: context of the caller.
        context: Option<String>,
        /// Whether paths name mounts by a parameter instead of where they are.
        generic_mount_paths: bool,
    }
}

async fn document(system: &System, call: &Call<'_>, params: OpenApiParams) -> Result<Reply, Failure> {
    let _unused = params.context;
    let core = system.core()?;
    let acl = ui_mounts::acl_of_caller(system, call).await?;
    let mut paths = BTreeMap::new();
    for mounted in core.active()?.router.all() {
        let entry = &mounted.entry;
        let full_path = entry.full_path();
        let built_in = matches!(entry.kind.as_str(), "system" | "identity" | "cubbyhole" | "token");
        let seen = acl.as_ref().is_some_and(|acl| acl.sees_inside(&full_path));
        if !(built_in || seen || entry.config.listing_visibility == "unauth") {
            continue;
        }
        let (prefix, parameter) = prefix(&mounted, params.generic_mount_paths && !built_in);
        let absent = super::absent::ROUTES;
        for route in mounted.engine.describe().iter().filter(|route| !absent.iter().any(|gone| gone.patterns == route.patterns)) {
            add(&mut paths, &prefix, parameter.as_deref(), tag(&mounted), route);
        }
    }
    for route in super::direct_table().describe() {
        add(&mut paths, "/sys/", None, "system", &route);
    }
    Reply::bare(&json!({
        "openapi": "3.0.2",
        "info": {
            "title": "SOS API, compatible with HashiCorp Vault",
            "description": "HTTP API that gives you full access to the server. All API routes are prefixed with `/v1/`.",
            "version": core.settings.vault_version,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "paths": paths,
        "components": {"schemas": {}},
    }))
}

/// Where the mount's paths begin, and the name of the parameter that stands for it.
fn prefix(mounted: &Mounted, generic: bool) -> (String, Option<String>) {
    if !generic {
        return (format!("/{}", mounted.entry.full_path()), None);
    }
    let parameter = format!("{}_mount_path", mounted.entry.kind);
    let folder = match mounted.entry.table {
        Table::Secret => "",
        Table::Auth => "auth/",
    };
    (format!("/{folder}{{{parameter}}}/"), Some(parameter))
}

fn tag(mounted: &Mounted) -> &'static str {
    match (mounted.entry.table, mounted.entry.kind.as_str()) {
        (Table::Auth, _) => "auth",
        (_, "system") => "system",
        (_, "identity") => "identity",
        _ => "secrets",
    }
}

fn add(paths: &mut BTreeMap<String, Value>, prefix: &str, mount: Option<&str>, tag: &str, route: &RouteInfo) {
    for pattern in route.patterns {
        let (path, captures) = path(pattern);
        let mut item = Map::new();
        item.insert("description".into(), route.help.into());
        match route.access {
            Access::Sudo => drop(item.insert("x-vault-sudo".into(), true.into())),
            Access::Anyone => drop(item.insert("x-vault-unauthenticated".into(), true.into())),
            Access::Token => {}
        }
        if route.creates {
            item.insert("x-vault-createSupported".into(), true.into());
        }
        let fields = route.operations.iter().flat_map(|(_, _, fields)| fields.iter());
        let described: BTreeMap<&str, &Field> = fields.map(|field| (field.name, field)).collect();
        let in_path = captures.iter().map(|name| {
            let field = described.get(name);
            json!({
                "name": name,
                "in": "path",
                "required": true,
                "description": field.map_or("", |field| field.description.trim()),
                "schema": field.map_or_else(|| json!({"type": "string"}), |field| schema(field.kind)),
            })
        });
        let in_mount = mount.map(|name| {
            json!({"name": name, "in": "path", "required": true, "description": "Path that the backend was mounted at",
                   "schema": {"type": "string"}})
        });
        let parameters: Vec<Value> = in_mount.into_iter().chain(in_path).collect();
        if !parameters.is_empty() {
            item.insert("parameters".into(), parameters.into());
        }
        let listed = route.operations.iter().any(|(verb, ..)| *verb == Verb::List);
        for (verb, summary, fields) in &route.operations {
            let Some(method) = method(*verb, &route.operations) else { continue };
            item.insert(method.into(), operation(*verb, summary, fields, &captures, tag, listed));
        }
        paths.insert(format!("{prefix}{path}"), item.into());
    }
}

/// The pattern as an OpenAPI path, and the names of its captures.
fn path(pattern: &'static str) -> (String, Vec<&'static str>) {
    let mut captures = Vec::new();
    let mut path = String::new();
    let mut rest = pattern.strip_suffix("/?").unwrap_or(pattern);
    while let Some((text, after)) = rest.split_once('{') {
        let (capture, after) = after.split_once('}').unwrap_or((after, ""));
        let name = capture.split([':', '@']).next().unwrap_or(capture);
        captures.push(name);
        path.push_str(text);
        path.push_str(&format!("{{{name}}}"));
        rest = after;
    }
    path.push_str(rest);
    (path, captures)
}

/// Lists are GETs with `list=true` and give way to a read of the same path.
fn method(verb: Verb, all: &[(Verb, &'static str, &'static [Field])]) -> Option<&'static str> {
    match verb {
        Verb::Read => Some("get"),
        Verb::List => (!all.iter().any(|(verb, ..)| *verb == Verb::Read)).then_some("get"),
        Verb::Write => Some("post"),
        Verb::Patch => Some("patch"),
        Verb::Delete => Some("delete"),
        Verb::Scan => None,
    }
}

fn operation(verb: Verb, summary: &str, fields: &[Field], captures: &[&str], tag: &str, listed: bool) -> Value {
    let mut operation = Map::new();
    operation.insert("summary".into(), summary.into());
    operation.insert("tags".into(), json!([tag]));
    let status = if verb == Verb::Delete { "204" } else { "200" };
    operation.insert("responses".into(), json!({status: {"description": if status == "204" { "empty body" } else { "OK" }}}));
    let fields: Vec<&Field> = fields.iter().filter(|field| !captures.contains(&field.name)).collect();
    if matches!(verb, Verb::Write | Verb::Patch) {
        if !fields.is_empty() {
            let properties: Map<String, Value> = fields.iter().map(|field| (field.name.to_owned(), described(field))).collect();
            let body = json!({"schema": {"type": "object", "properties": properties}});
            operation.insert("requestBody".into(), json!({"content": {"application/json": body}}));
        }
        return operation.into();
    }
    let mut query: Vec<Value> = fields
        .iter()
        .map(|field| json!({"name": field.name, "in": "query", "description": field.description.trim(), "schema": schema(field.kind)}))
        .collect();
    if listed && matches!(verb, Verb::List | Verb::Read) {
        let must = verb == Verb::List;
        query.push(json!({"name": "list", "in": "query", "required": must, "description": "Return a list if `true`",
                          "schema": {"type": "string", "enum": ["true"]}}));
    }
    if !query.is_empty() {
        operation.insert("parameters".into(), query.into());
    }
    operation.into()
}

fn schema(kind: FieldKind) -> Value {
    match kind {
        FieldKind::String => json!({"type": "string"}),
        FieldKind::Integer => json!({"type": "integer"}),
        FieldKind::Boolean => json!({"type": "boolean"}),
        FieldKind::Duration => json!({"type": "string", "format": "seconds"}),
        FieldKind::Strings => json!({"type": "array", "items": {"type": "string"}}),
        FieldKind::Object => json!({"type": "object", "format": "map"}),
        FieldKind::Any => json!({}),
    }
}

fn described(field: &Field) -> Value {
    let mut schema = schema(field.kind);
    if let Value::Object(members) = &mut schema {
        members.insert("description".into(), field.description.trim().into());
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_become_paths() {
        assert_eq!(path("keys/{name}/rotate"), ("keys/{name}/rotate".into(), vec!["name"]));
        assert_eq!(path("data/{path:rest}"), ("data/{path}".into(), vec!["path"]));
        assert_eq!(path("users/{name@}/?"), ("users/{name}".into(), vec!["name"]));
        assert_eq!(path("keys/?"), ("keys".into(), vec![]));
    }
}
