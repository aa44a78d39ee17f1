//! The status of every kind of failure.

use crate::core::failure::Kind;

/// Exhaustive on purpose: a new kind does not compile until its status is chosen.
pub fn status(kind: Kind) -> u16 {
    match kind {
        Kind::Invalid => 400,
        Kind::Denied => 403,
        Kind::NotFound | Kind::UnsupportedPath => 404,
        Kind::UnsupportedOperation => 405,
        Kind::PreconditionFailed => 412,
        Kind::TooLarge => 413,
        Kind::UnsupportedMediaType => 415,
        Kind::RateLimited => 429,
        Kind::Internal => 500,
        Kind::NotImplemented => 501,
        Kind::Unavailable => 503,
    }
}
