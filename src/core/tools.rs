//! Hashing and random bytes as `sys/tools` and Transit offer them: decoded parameters in, text out.

use std::num::IntErrorKind;

use serde::Serialize;
use sha2::Digest;

use super::{failure::Failure, reply::Reply};
use crate::{secret::SecretBytes, wire::b64};

/// Most random bytes in one answer.
pub const MAX_RANDOM: i64 = 128 * 1024;

/// How bytes are written as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Hexadecimal.
    Hex,
    /// Base64 with padding.
    Base64,
}

impl Encoding {
    /// Reads `hex` or `base64`; `shown` is how the error names anything else.
    fn parse(format: &str, shown: &str) -> Result<Self, Failure> {
        match format {
            "hex" => Ok(Encoding::Hex),
            "base64" => Ok(Encoding::Base64),
            _ => Err(Failure::invalid(format!("unsupported encoding format {shown}; must be \"hex\" or \"base64\""))),
        }
    }

    /// The bytes as text.
    pub fn encode(self, bytes: &[u8]) -> String {
        match self {
            Encoding::Hex => hex::encode(bytes),
            Encoding::Base64 => b64::encode(bytes),
        }
    }
}

/// The hash of base64 `input`: `{"sum": …}`. The algorithm of the path comes before that of the body, whose default is SHA-256;
/// the format defaults to hex.
pub fn hash(in_path: &str, algorithm: Option<&str>, input: &str, format: Option<&str>) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Sum {
        sum: String,
    }
    let input = decode_input(input)?;
    let format = format.unwrap_or("hex");
    let encoding = Encoding::parse(format, format)?;
    let algorithm = if in_path.is_empty() { algorithm.unwrap_or("sha2-256") } else { in_path };
    let sum = digest(algorithm, input.expose()).ok_or_else(|| Failure::invalid(format!("unsupported algorithm {algorithm}")))?;
    Reply::data(&Sum { sum: encoding.encode(&sum) })
}

fn decode_input(input: &str) -> Result<SecretBytes, Failure> {
    b64::decode(input)
        .map(SecretBytes::new)
        .map_err(|error| Failure::invalid(format!("unable to decode input as base64: {error}")))
}

/// A digest by Vault's name of the algorithm.
pub fn digest(algorithm: &str, input: &[u8]) -> Option<Vec<u8>> {
    Some(match algorithm {
        "sha2-224" => sha2::Sha224::digest(input).to_vec(),
        "sha2-256" => sha2::Sha256::digest(input).to_vec(),
        "sha2-384" => sha2::Sha384::digest(input).to_vec(),
        "sha2-512" => sha2::Sha512::digest(input).to_vec(),
        "sha3-224" => sha3::Sha3_224::digest(input).to_vec(),
        "sha3-256" => sha3::Sha3_256::digest(input).to_vec(),
        "sha3-384" => sha3::Sha3_384::digest(input).to_vec(),
        "sha3-512" => sha3::Sha3_512::digest(input).to_vec(),
        _ => return None,
    })
}

/// How many random bytes are asked for, and from where: the source may stand in the path only, the number in the path or the body.
#[derive(Clone, Copy, Debug, Default)]
pub struct RandomRequest<'a> {
    /// First part of the path: a source, or a number when it is the only part.
    pub source: &'a str,
    /// What follows it. Alone, when it is neither source nor number, it is passed over.
    pub url_bytes: &'a str,
    /// `bytes` of the body, 32 by default.
    pub bytes: Option<i64>,
    /// `format` of the body, base64 by default.
    pub format: Option<&'a str>,
}

/// Random bytes: `{"random_bytes": …}`.
pub fn random(request: RandomRequest<'_>) -> Result<Reply, Failure> {
    #[derive(Serialize)]
    struct Random {
        random_bytes: String,
    }
    let known = |source: &str| matches!(source, "" | "platform" | "seal" | "all");
    let in_path = |text: &str| {
        text.parse::<i64>().map_err(|error| {
            let what = match error.kind() {
                IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
                _ => "invalid syntax",
            };
            Failure::invalid(format!("error parsing url-set byte count: strconv.Atoi: parsing {text:?}: {what}"))
        })
    };
    let (source, bytes) = match (request.source, request.url_bytes) {
        ("", _) => ("", request.bytes.unwrap_or(32)),
        (source, "") if known(source) => (source, request.bytes.unwrap_or(32)),
        (number, "") => ("", in_path(number)?),
        (source, number) => (source, in_path(number)?),
    };
    if bytes < 1 {
        return Err(Failure::invalid("'bytes' cannot be less than 1"));
    }
    let length = usize::try_from(bytes).ok().filter(|_| bytes <= MAX_RANDOM);
    let length = length.ok_or_else(|| Failure::invalid(format!("'bytes' should be less than {MAX_RANDOM}")))?;
    let format = request.format.unwrap_or("base64");
    let encoding = Encoding::parse(format, &format!("{format:?}"))?;
    if !known(source) {
        let text = "; must be \"platform\" or \"seal\", or \"all\"";
        return Err(Failure::invalid(format!("unsupported entropy source {source:?}{text}")));
    }
    let bytes = SecretBytes::random(length);
    let reply = Reply::data(&Random { random_bytes: encoding.encode(bytes.expose()) })?;
    Ok(match source {
        "seal" => reply.with_warning("no seal/entropy augmentation available, using platform entropy source"),
        _ => reply,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_algorithm_of_vault_is_there() {
        for (name, length) in [("224", 28), ("256", 32), ("384", 48), ("512", 64)] {
            for family in ["sha2", "sha3"] {
                assert_eq!(digest(&format!("{family}-{name}"), b"").unwrap().len(), length);
            }
        }
        assert_eq!(digest("md5", b""), None);
    }

    #[test]
    fn an_algorithm_that_is_sent_empty_is_none() {
        assert!(hash("", None, "YQ==", None).is_ok() && hash("sha2-512", Some(""), "YQ==", None).is_ok());
        assert_eq!(hash("", Some(""), "YQ==", None).unwrap_err().text(), "unsupported algorithm ");
        let text = hash("", None, "hello", None).unwrap_err().text().to_owned();
        assert_eq!(text, "unable to decode input as base64: illegal base64 data at input byte 4");
    }

    #[test]
    fn the_path_names_source_and_number_in_either_way() {
        let ask = |source, url_bytes| random(RandomRequest { source, url_bytes, ..RandomRequest::default() });
        assert!(ask("", "").is_ok() && ask("16", "").is_ok() && ask("all", "").is_ok() && ask("platform", "8").is_ok());
        assert_eq!(ask("0", "").unwrap_err().text(), "'bytes' cannot be less than 1");
        assert_eq!(ask("131073", "").unwrap_err().text(), "'bytes' should be less than 131072");
        let text = ask("abc", "").unwrap_err().text().to_owned();
        assert_eq!(text, "error parsing url-set byte count: strconv.Atoi: parsing \"abc\": invalid syntax");
        assert!(ask("", "-1").is_ok());
        assert!(ask("moon", "8").unwrap_err().text().starts_with("unsupported entropy source \"moon\""));
    }
}
