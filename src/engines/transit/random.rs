//! `random`.

use super::{Transit, b64};
use crate::{
    core::{engine::Call, failure::Failure, reply::Reply},
    params,
    secret::SecretBytes,
};

const MOST: i64 = 128 * 1024;

params! {
    /// Parameters of `random`.
    pub struct RandomParams {
        /// Number of bytes, 32 by default.
        pub bytes: Option<i64>,
        /// `base64` (the default) or `hex`.
        pub format: Option<String>,
        /// `platform`, `seal` or `all`: all are the operating system's source here; `seal` is answered with a warning.
        pub source: Option<String>,
        /// Source and number of bytes in the path.
        pub urlbytes: Option<String>,
    }
}

/// The handler.
pub async fn random(_: &Transit, _: &Call<'_>, params: RandomParams) -> Result<Reply, Failure> {
    let in_path = params.urlbytes.unwrap_or_default();
    let is_source = |text: &str| matches!(text, "platform" | "seal" | "all");
    let (source, count) = match in_path.split_once('/') {
        Some((source, count)) => (Some(source.to_owned()), count),
        None if is_source(&in_path) => (Some(in_path.clone()), ""),
        None => (params.source, in_path.as_str()),
    };
    let bytes = match count {
        "" => params.bytes.unwrap_or(32),
        text => text.parse().map_err(|_| Failure::invalid(format!("error parsing url-set byte count: {text:?}")))?,
    };
    if bytes < 1 {
        return Err(Failure::invalid("'bytes' cannot be less than 1"));
    }
    if bytes > MOST {
        return Err(Failure::invalid(format!("'bytes' should be less than {MOST}")));
    }
    let format = params.format.as_deref().unwrap_or("base64");
    if !matches!(format, "base64" | "hex") {
        return Err(Failure::invalid(format!("unsupported encoding format {format:?}; must be \"hex\" or \"base64\"")));
    }
    let source = source.as_deref().unwrap_or("platform");
    if !is_source(source) {
        return Err(Failure::invalid(format!(
            "unsupported entropy source {source:?}; must be \"platform\" or \"seal\", or \"all\""
        )));
    }
    let made = SecretBytes::random(usize::try_from(bytes).map_err(Failure::internal)?);
    let mut out = b"{\"random_bytes\":\"".to_vec();
    match format {
        "hex" => out.extend_from_slice(hex::encode(made.expose()).as_bytes()),
        _ => b64::push(made.expose(), &mut out),
    }
    out.extend_from_slice(b"\"}");
    let reply = Reply::raw_data(out);
    Ok(match source {
        "seal" => reply.with_warning("no seal/entropy augmentation available, using platform entropy source"),
        _ => reply,
    })
}
