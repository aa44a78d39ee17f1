//! What the fuzz targets in `fuzz/` call: every parser of bytes that a client, a store or the worker process hands in.
//!
//! Each target takes any bytes and must come back: a panic, an answer that is no JSON, or an "internal error" for what a
//! client sent is a finding. Inputs go through the same code as real ones, most of them through a whole server in
//! memory. The tests run all seeds and all inputs that were once findings through the same functions.

mod parsers;
mod server;
#[cfg(test)]
mod tests;
mod transit;

/// A function that takes any bytes.
pub type Target = fn(&[u8]);

/// All targets by the names that `fuzz/fuzz_targets` and `fuzz/seeds` use.
pub const TARGETS: [(&str, Target); 13] = [
    ("ciphertext", transit::ciphertext),
    ("backup", transit::backup),
    ("imported", transit::imported),
    ("batch", transit::batch),
    ("paths", parsers::paths),
    ("bodies", parsers::bodies),
    ("hcl", parsers::hcl),
    ("tokens", parsers::tokens),
    ("records", parsers::records),
    ("worker", parsers::worker),
    ("snapshots", parsers::snapshots),
    ("journal", parsers::journal),
    ("files", parsers::files),
];

/// Runs one input through the target of a name.
///
/// # Panics
/// When there is no such target, and when the input is a finding.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    match target {
        Some((_, target)) => target(data),
        None => panic!("no fuzz target is named {name}"),
    }
}
