//! `sos hsm doctor`: looks at one token as the server would use it, and says what to fix.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::client::Client;
use super::config::HsmConfig;
use super::pin::PinMemory;
use super::proto::Inspection;
use super::{DownReason, Hsm, HsmError, TokenFacts};

/// Mechanisms that the report names, with what they are needed for.
const MECHANISMS: [(u64, &str, &str); 10] = [
    (0x1080, "CKM_AES_KEY_GEN", "every key"),
    (0x1087, "CKM_AES_GCM", "AES Transit keys in the HSM; the best seal"),
    (0x2109, "CKM_AES_KEY_WRAP", "zone master keys"),
    (0x0009, "CKM_RSA_PKCS_OAEP", "escrow of zone master keys; a seal without GCM"),
    (0x1082, "CKM_AES_CBC", "a seal without GCM"),
    (0x1041, "CKM_ECDSA", "EC Transit keys in the HSM"),
    (0x0003, "CKM_RSA_X_509", "RSA Transit keys in the HSM"),
    (0x1057, "CKM_EDDSA", "Ed25519 Transit keys in the HSM"),
    (0x210A, "CKM_AES_KEY_WRAP_PAD", "wrapping private keys, on modules where it is RFC 5649"),
    (0x210B, "CKM_AES_KEY_WRAP_KWP", "wrapping private keys"),
];

/// Something that calls for action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub fix: String,
    /// Whether the HSM cannot be used before it is fixed.
    pub fatal: bool,
}

/// What the doctor found. `Display` prints it for an operator.
#[derive(Default)]
pub struct Report {
    client: Option<Arc<Client>>,
    facts: Option<Arc<TokenFacts>>,
    inspection: Option<Inspection>,
    ready_after: Option<Duration>,
    /// What to fix.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether the server could use this HSM as it is.
    pub fn usable(&self) -> bool {
        !self.problems.iter().any(|problem| problem.fatal)
    }

    /// The HSM, where it passed the self-test; it stays logged in as long as this.
    pub fn hsm(&self) -> Option<Arc<dyn Hsm>> {
        self.client.clone().map(|client| client as Arc<dyn Hsm>)
    }

    /// Lets go of the HSM.
    pub async fn close(self) {
        if let Some(client) = self.client {
            client.close().await;
        }
    }

    /// What the self-test found out.
    pub fn facts(&self) -> Option<&TokenFacts> {
        self.facts.as_deref()
    }

    /// Name under which the module's peculiarities are known.
    pub fn vendor(&self) -> Option<&str> {
        self.inspection.as_ref().map(|inspection| inspection.vendor.as_str())
    }

    fn note(&mut self, what: String, fix: &str) {
        self.problems.push(Problem { what, fix: fix.into(), fatal: false });
    }
}

/// Starts a worker as the server would, and asks it. The PIN is tried once at most, and not at all when `memory` says
/// that the token refused it before.
pub async fn run(config: HsmConfig, memory: Arc<dyn PinMemory>) -> Report {
    let wanted_sessions = config.max_sessions;
    let by_slot = config.slot.is_some() && config.token_label.is_none() && config.token_serial.is_none();
    let mut report = Report::default();
    if by_slot {
        report.note("the token is chosen by slot number, which moves on many tokens".into(), "set token_label instead of slot");
    }
    let started = Instant::now();
    let client = Client::start(config, memory);
    match client.ready().await {
        Ok(facts) => {
            report.ready_after = Some(started.elapsed());
            advise_on_kinds(&mut report, &facts);
            report.facts = Some(facts);
        }
        Err(error) => {
            report.problems.push(unusable(&error));
            client.close().await;
            return report;
        }
    }
    match client.inspect().await {
        Ok(inspection) => {
            advise_on_token(&mut report, &inspection, wanted_sessions);
            report.inspection = Some(inspection);
        }
        Err(error) => report.problems.push(unusable(&error)),
    }
    report.client = Some(client);
    report
}

fn unusable(error: &HsmError) -> Problem {
    let (what, fix) = match error {
        HsmError::Unavailable { reason, detail } => (format!("{}: {detail}", reason.word()), fix(*reason)),
        other => (other.to_string(), fix(DownReason::DeviceError)),
    };
    Problem { what, fix: fix.into(), fatal: true }
}

fn fix(reason: DownReason) -> &'static str {
    match reason {
        DownReason::ModuleMissing => {
            "set lib to the vendor's PKCS#11 library for this machine; this user must be able to read it and what it links to"
        }
        DownReason::TokenMissing => {
            "set token_label (or slot) to one of the tokens named above, or initialise the token with the vendor's tool"
        }
        DownReason::PinRefused => "correct the PIN in pin_file: it is not tried again until it changes",
        DownReason::PinLocked => "have the security officer reset the user PIN, or log in once by hand with the right one",
        DownReason::PinMissing => "set pin_file to a file with mode 0600 that this user owns and that holds the user PIN",
        DownReason::PostureRefused => {
            "this module lets keys out or lacks a mechanism: change the token's policy with the vendor's tool, or use another module"
        }
        DownReason::DeviceError => {
            "check that the module's own configuration and the way to the device are in place for this user, and see the log"
        }
    }
}

fn advise_on_token(report: &mut Report, inspection: &Inspection, wanted_sessions: Option<usize>) {
    if inspection.pin_count_low {
        report.note("a wrong PIN was tried lately".into(), "find out who does it before the token locks");
    }
    if inspection.pin_to_be_changed {
        report.note("the token wants its user PIN changed".into(), "change it with the vendor's tool and in pin_file");
    }
    if let Some(wanted) = wanted_sessions.filter(|wanted| inspection.sessions < *wanted) {
        let what = format!("max_sessions is {wanted}, but the token gave {}", inspection.sessions);
        report.note(what, "raise the token's session limit or lower max_sessions");
    }
    if !inspection.mechanisms.contains(&0x0009) {
        report.note(
            "the module has no CKM_RSA_PKCS_OAEP: zone master keys cannot be escrowed".into(),
            "use another module, or set escrow = false and accept that losing this HSM is losing its keys",
        );
    }
}

fn advise_on_kinds(report: &mut Report, facts: &TokenFacts) {
    for support in facts.support.iter().filter(|support| !support.wrapped) {
        let place = if support.token { "hsm-only or software" } else { "software only" };
        let what = format!("{:?} Transit keys: {place} ({})", support.kind, support.reason);
        report.note(what, "nothing, unless such keys must live in the HSM: that needs another module");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(facts) = &self.facts {
            show_facts(f, facts)?;
        }
        if let Some(inspection) = &self.inspection {
            show_inspection(f, inspection)?;
        }
        if let Some(took) = self.ready_after {
            writeln!(f, "Ready after       {} ms (load, login, self-test)", took.as_millis())?;
        }
        for problem in &self.problems {
            let word = if problem.fatal { "PROBLEM" } else { "Note" };
            writeln!(f, "{word}: {}\n  fix: {}", problem.what, problem.fix)?;
        }
        f.write_str(if self.usable() { "The HSM can be used." } else { "The HSM cannot be used." })
    }
}

fn show_facts(f: &mut fmt::Formatter<'_>, facts: &TokenFacts) -> fmt::Result {
    writeln!(f, "Module            {}", facts.module)?;
    writeln!(f, "Token             {} (serial {})", facts.label, facts.serial)?;
    writeln!(f, "PIN               accepted")?;
    writeln!(f, "Posture           attributes as stated; wrap and extractable copy of a seal-like key refused")?;
    writeln!(f, "Seal mechanism    {:?}", facts.seal_mechanism)?;
    writeln!(f, "Longest plaintext {} bytes", facts.max_plaintext)?;
    let kinds: Vec<_> = facts.support.iter().filter(|kind| kind.wrapped).map(|kind| format!("{:?}", kind.kind)).collect();
    writeln!(f, "Key kinds         {}", if kinds.is_empty() { "none".into() } else { kinds.join(", ") })
}

fn show_inspection(f: &mut fmt::Formatter<'_>, inspection: &Inspection) -> fmt::Result {
    writeln!(f, "Model             {} (known as {})", inspection.model, inspection.vendor)?;
    writeln!(f, "Slot              {}", inspection.slot)?;
    let limit = inspection.session_limit.map_or("unlimited".to_string(), |limit| limit.to_string());
    writeln!(f, "Sessions          {} in use, limit {limit}", inspection.sessions)?;
    for (number, name, purpose) in MECHANISMS {
        let has = if inspection.mechanisms.contains(&number) { "yes" } else { "no " };
        writeln!(f, "Mechanism         {has} {name}: {purpose}")?;
    }
    if let (Some(small), Some(large)) = (inspection.small_per_second, inspection.bytes_per_second) {
        writeln!(f, "Speed             {small}/s for 32 bytes, {} MiB/s for 64 KiB, in one session", large >> 20)?;
    }
    Ok(())
}
