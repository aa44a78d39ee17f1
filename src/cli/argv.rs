//! Vault's spelling of flags for clap: one dash becomes two.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// `-flag` becomes `--flag`, `-h` becomes `--help`, `-v` becomes `--version`. A lone `-` (standard input) and
/// everything behind `--` stay as they are.
pub(super) fn normalise(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut plain = false;
    let one = |(index, argument): (usize, OsString)| {
        plain |= argument == "--";
        let bytes = argument.as_bytes();
        let single = bytes.len() > 1 && bytes[0] == b'-' && bytes[1] != b'-';
        match bytes {
            b"-h" | b"-?" if !plain => OsString::from("--help"),
            b"-v" if !plain => OsString::from("--version"),
            _ if index == 0 || plain || !single => argument,
            _ => {
                let mut doubled = OsString::from("-");
                doubled.push(&argument);
                doubled
            }
        }
    };
    arguments.into_iter().enumerate().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(arguments: &str) -> String {
        let words = arguments.split(' ').map(OsString::from).collect();
        normalise(words).into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_dash_becomes_two() {
        assert_eq!(normalised("sos server -config=a --dev -log-level debug"), "sos server --config=a --dev --log-level debug");
        assert_eq!(normalised("sos operator rekey -n=3 -"), "sos operator rekey --n=3 -");
        assert_eq!(normalised("-sos -h"), "-sos --help");
        assert_eq!(normalised("sos -v"), "sos --version");
        assert_eq!(normalised("sos a -- -b"), "sos a -- -b");
    }
}
