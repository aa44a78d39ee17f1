//! Searching the memory of processes for secrets that must be gone: raw, reversed (as libraries keep large numbers),
//! and as text in base64 (once and twice, as backups have it), hex
//! and decimal.
//!
//! Every secret is searched for by windows of sixteen bytes, so that what an allocator or a later use has partly
//! overwritten is found as well.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use base64::{Engine, prelude::BASE64_STANDARD};
use openssl::bn::BigNum;

/// Bytes that must be alike to count as a trace.
const WINDOW: usize = 16;
/// Bits of the filter that most positions of memory do not pass.
const FILTER_BITS: u32 = 22;

/// Secrets to search for, with all their forms.
#[derive(Default)]
pub struct Canaries {
    names: Vec<String>,
    /// By their first eight bytes.
    windows: HashMap<[u8; 8], Vec<Window>>,
    filter: Vec<bool>,
}

struct Window {
    canary: usize,
    form: &'static str,
    rest: [u8; WINDOW - 8],
}

/// A trace: the canary and its form, and where it lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trace {
    pub canary: String,
    pub form: &'static str,
    pub place: String,
}

fn slot(bytes: [u8; 4]) -> usize {
    (u32::from_le_bytes(bytes).wrapping_mul(0x9e37_79b1) >> (32 - FILTER_BITS)) as usize
}

impl Canaries {
    /// Adds random bytes: a key, a plaintext.
    pub fn bytes(&mut self, name: &str, bytes: &[u8]) {
        let canary = self.named(name);
        self.add(canary, "raw", bytes);
        self.encodings(canary, bytes);
    }

    /// Adds a large number, big endian.
    pub fn number(&mut self, name: &str, number: &[u8]) {
        let canary = self.named(name);
        self.add(canary, "raw", number);
        let reversed: Vec<u8> = number.iter().rev().copied().collect();
        self.add(canary, "reversed", &reversed);
        self.encodings(canary, number);
        let decimal = BigNum::from_slice(number).unwrap().to_dec_str().unwrap();
        self.add(canary, "decimal", decimal.as_bytes());
    }

    /// Adds a text: a token, a password, a backup.
    pub fn text(&mut self, name: &str, text: &str) {
        let canary = self.named(name);
        self.add(canary, "text", text.as_bytes());
        self.encodings(canary, text.as_bytes());
    }

    fn encodings(&mut self, canary: usize, bytes: &[u8]) {
        self.add(canary, "hex", hex::encode(bytes).as_bytes());
        self.add(canary, "hex", hex::encode_upper(bytes).as_bytes());
        for from in 0..3 {
            let whole = &bytes[from..];
            let whole = &whole[..whole.len() / 3 * 3];
            self.add(canary, "base64", BASE64_STANDARD.encode(whole).as_bytes());
        }
        // A backup is base64 of JSON that has keys in base64.
        let inner = BASE64_STANDARD.encode(bytes);
        for from in 0..3 {
            let whole = &inner.as_bytes()[from..];
            let whole = &whole[..whole.len() / 3 * 3];
            self.add(canary, "base64 of base64", BASE64_STANDARD.encode(whole).as_bytes());
        }
    }

    fn named(&mut self, name: &str) -> usize {
        self.names.push(name.to_owned());
        self.names.len() - 1
    }

    fn add(&mut self, canary: usize, form: &'static str, bytes: &[u8]) {
        assert!(bytes.len() >= WINDOW, "{} is too short to be told from chance", self.names[canary]);
        if self.filter.is_empty() {
            self.filter = vec![false; 1 << FILTER_BITS];
        }
        let last = bytes.len() - WINDOW;
        for at in (0..last).step_by(WINDOW / 2).chain([last]) {
            let window = &bytes[at..at + WINDOW];
            self.filter[slot(window[..4].try_into().unwrap())] = true;
            let rest = window[8..].try_into().unwrap();
            self.windows.entry(window[..8].try_into().unwrap()).or_default().push(Window { canary, form, rest });
        }
    }

    /// Traces in a piece of memory, with the offset of each.
    fn search(&self, memory: &[u8], mut found: impl FnMut(usize, &str, &'static str)) {
        for at in 0..memory.len().saturating_sub(WINDOW - 1) {
            let first = [memory[at], memory[at + 1], memory[at + 2], memory[at + 3]];
            if !self.filter[slot(first)] {
                continue;
            }
            let window = &memory[at..at + WINDOW];
            let Some(candidates) = self.windows.get(&window[..8]) else { continue };
            for Window { canary, form, rest } in candidates {
                if *rest == window[8..] {
                    found(at, &self.names[*canary], form);
                }
            }
        }
    }

    /// Traces in all readable memory of a process.
    pub fn traces(&self, pid: u32) -> Vec<Trace> {
        let program = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let role = if program.contains("hsm-worker") { "worker" } else { "server" };
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let mut traces = BTreeMap::new();
        let mut read = 0;
        for map in maps.lines() {
            let mut fields = map.split_whitespace();
            let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
            let name = fields.nth(3).unwrap_or("anonymous memory");
            if !rights.starts_with('r') || name == "[vvar]" || name == "[vsyscall]" {
                continue;
            }
            let (from, to) = range.split_once('-').unwrap();
            let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
            let mut piece = vec![0; 1 << 20];
            let mut at = from;
            while at < to {
                let wanted = piece.len().min(usize::try_from(to - at).unwrap());
                let Ok(len) = memory.read_at(&mut piece[..wanted], at) else { break };
                read += len;
                self.search(&piece[..len], |offset, canary, form| {
                    let trace = Trace { canary: canary.to_owned(), form, place: format!("{role} {name}") };
                    if std::env::var_os("SOS_TEST_SHOW_MEMORY").is_some() && !traces.contains_key(&trace) {
                        show(&trace, at + offset as u64, from, to, &piece[..len], offset);
                    }
                    *traces.entry(trace).or_insert(0) += 1;
                });
                // Windows that lie across the border of two pieces are found in the second.
                at += if len < wanted || at + len as u64 == to { len } else { len - WINDOW } as u64;
            }
        }
        assert!(read > 1 << 20, "the memory of process {pid} could not be read");
        traces.into_keys().collect()
    }
}

/// The surroundings of a trace, for whoever looks for its origin.
fn show(trace: &Trace, address: u64, from: u64, to: u64, piece: &[u8], offset: usize) {
    use std::io::Write;
    let begin = offset.saturating_sub(64) & !15;
    let mut text = format!("{trace:?} at {address:x} in {from:x}-{to:x}\n");
    for line in piece[begin..(offset + 96).min(piece.len())].chunks(16) {
        let letters: String = line.iter().map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '.' }).collect();
        text += &format!("    {} {letters}\n", hex::encode(line));
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Every form is found wherever it lies, and nothing else is.
#[test]
fn the_search_finds_every_form() {
    let secret: [u8; 48] = sos::secret::random_array();
    let (mut number, mut bytes, mut text) = (Canaries::default(), Canaries::default(), Canaries::default());
    number.number("secret", &secret);
    bytes.bytes("secret", &secret);
    text.text("secret", &hex::encode(secret));
    let found = |canaries: &Canaries, held: &[u8]| {
        let memory = [&[7; 333], held, &[9; 333]].concat();
        let mut forms = Vec::new();
        canaries.search(&memory, |_, _, form| forms.push(form));
        forms.sort_unstable();
        forms.dedup();
        forms
    };
    for before in 0..3 {
        let inside = |bytes: &[u8]| BASE64_STANDARD.encode([&b"{[,"[..before], bytes, b"}]}"].concat());
        let base64 = inside(&secret);
        let twice = inside(BASE64_STANDARD.encode(secret).as_bytes());
        for canaries in [&number, &bytes] {
            assert_eq!(found(canaries, &secret), ["raw"]);
            // What is left of a secret when its ends were overwritten.
            assert_eq!(found(canaries, &secret[5..40]), ["raw"]);
            assert_eq!(found(canaries, base64.as_bytes()), ["base64"]);
            assert_eq!(found(canaries, twice.as_bytes()), ["base64 of base64"]);
            assert_eq!(found(canaries, hex::encode(secret).as_bytes()), ["hex"]);
            assert_eq!(found(canaries, hex::encode_upper(secret).as_bytes()), ["hex"]);
        }
    }
    let reversed: Vec<u8> = secret.iter().rev().copied().collect();
    assert_eq!(found(&number, &reversed), ["reversed"]);
    assert_eq!(found(&number, BigNum::from_slice(&secret).unwrap().to_dec_str().unwrap().as_bytes()), ["decimal"]);
    assert_eq!(found(&text, hex::encode(secret).as_bytes()), ["text"]);
    let other: [u8; 48] = sos::secret::random_array();
    assert!(found(&number, &other).is_empty() && found(&number, hex::encode(other).as_bytes()).is_empty());
}
