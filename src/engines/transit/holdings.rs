//! What the HSM at hand can hold of Transit's keys: a table for auditors, docs/hsm/modules.md.
//!
//! Nothing here knows what a module can do. Each cell is the answer of [`Protection`] to the question that a request asks
//! it, and each reason is the text that the request's client reads; both rest on the module's self-test.

use std::fmt;

use serde::Serialize;

use super::{
    alg::KeyType,
    protect::{Demands, Level, MountProtection, Protection},
};
use crate::{
    core::failure::{Failure, Kind},
    hsm::doctor::Report,
};

/// What is done with a key, in groups that are allowed or refused together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Use {
    /// Making a key and rotating it, also by itself.
    Make,
    /// Encrypt, decrypt, rewrap, data keys.
    Encrypt,
    /// Sign, verify, certificate requests.
    Sign,
    /// HMACs under the HMAC key of a version.
    Hmac,
    /// Keys that contexts derive; convergent encryption.
    Derive,
    /// Import and restore: the key was outside before.
    Import,
    /// Export, BYOK export and backup.
    Export,
}

impl Use {
    /// All groups, in the order of columns.
    pub const ALL: [Self; 7] = [Self::Make, Self::Encrypt, Self::Sign, Self::Hmac, Self::Derive, Self::Import, Self::Export];

    fn heading(self) -> &'static str {
        match self {
            Use::Make => "make, rotate",
            Use::Encrypt => "encrypt, decrypt",
            Use::Sign => "sign, verify",
            Use::Hmac => "HMAC",
            Use::Derive => "derived keys",
            Use::Import => "import, restore",
            Use::Export => "export, backup",
        }
    }

    /// Whether keys of a type are used so at all, wherever they are.
    fn suits(self, kind: KeyType) -> bool {
        match self {
            Use::Encrypt => kind.supports_encryption(),
            Use::Sign => kind.supports_signing(),
            Use::Derive => kind.supports_derivation(),
            Use::Make | Use::Hmac | Use::Import | Use::Export => true,
        }
    }
}

/// Whether something can be done with keys of a type at a level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It can.
    Yes,
    /// It is refused, with the text that a client gets.
    No(String),
    /// The type has no such use.
    Unsuited,
}

/// A type at a level.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The type.
    #[serde(rename = "type")]
    pub kind: KeyType,
    /// The level.
    #[serde(rename = "protection_level")]
    pub level: Level,
    /// Whether it is the level of a key whose request and mount name none.
    pub default: bool,
    /// An answer for each of [`Use::ALL`].
    pub uses: [Answer; 7],
}

/// The whole table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Holdings {
    /// All types at all levels.
    pub rows: Vec<Row>,
}

impl Holdings {
    /// Asks `protection` about keys of every type at every level. Fails while the HSM cannot be used.
    pub fn of(protection: &Protection) -> Result<Self, Failure> {
        let mount = MountProtection { zone: "default".into(), default_level: protection.default_level, required: None };
        let mut rows = Vec::new();
        for kind in KeyType::ALL {
            let plain = Demands { kind, derived: false, exportable: false, backup: false };
            let default = protection.choose(None, &mount, plain).ok();
            for level in Level::ALL {
                let mut uses = Use::ALL.map(|_| Answer::Unsuited);
                for (answer, asked) in uses.iter_mut().zip(Use::ALL).filter(|(_, asked)| asked.suits(kind)) {
                    let chosen = match asked {
                        Use::Derive => protection.choose(Some(level), &mount, Demands { derived: true, ..plain }),
                        Use::Export => {
                            protection.choose(Some(level), &mount, Demands { exportable: true, backup: true, ..plain })
                        }
                        Use::Import => protection.choose_for_given(Some(level), &mount, plain),
                        Use::Make | Use::Encrypt | Use::Sign | Use::Hmac => protection.choose(Some(level), &mount, plain),
                    };
                    *answer = match chosen {
                        Ok(_) => Answer::Yes,
                        Err(failure) if failure.kind() == Kind::Invalid => Answer::No(failure.text().to_owned()),
                        Err(failure) => return Err(failure),
                    };
                }
                rows.push(Row { kind, level, default: default == Some(level), uses });
            }
        }
        Ok(Self { rows })
    }
}

/// A table in Markdown, then the reasons by number.
impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headings = Use::ALL.map(Use::heading).join(" | ");
        writeln!(f, "| type | level | {headings} |\n|---|---|{}", "---|".repeat(Use::ALL.len()))?;
        let mut reasons: Vec<&str> = Vec::new();
        for row in &self.rows {
            let default = if row.default { ", default" } else { "" };
            write!(f, "| {} | `{}`{default} |", row.kind.name(), row.level.word())?;
            for answer in &row.uses {
                match answer {
                    Answer::Yes => f.write_str(" yes |")?,
                    Answer::Unsuited => f.write_str(" |")?,
                    Answer::No(reason) => {
                        let known = reasons.iter().position(|known| known == reason);
                        let at = known.unwrap_or_else(|| {
                            reasons.push(reason);
                            reasons.len() - 1
                        });
                        write!(f, " no ({}) |", at + 1)?;
                    }
                }
            }
            writeln!(f)?;
        }
        if !reasons.is_empty() {
            writeln!(f)?;
        }
        for (at, reason) in reasons.iter().enumerate() {
            writeln!(f, "{}. {reason}", at + 1)?;
        }
        Ok(())
    }
}

/// What `sos hsm doctor` found out about one HSM, in Markdown: the table, or why there is none. It holds nothing that
/// differs between two tokens of one module.
pub fn page(report: &Report, default_level: Level) -> String {
    let refused = |why: &str| format!("The HSM cannot be used, so it holds no key of any type: {why}.\n");
    let Some(hsm) = report.hsm() else {
        let problem = report.problems.iter().find(|problem| problem.fatal);
        return refused(problem.map_or("it does not answer", |problem| problem.what.as_str()));
    };
    let protection = Protection { hsm: Some(hsm), default_level, ..Protection::default() };
    let holdings = match Holdings::of(&protection) {
        Ok(holdings) => holdings,
        Err(failure) => return refused(failure.text()),
    };
    let mut page = String::new();
    if let Some(facts) = report.facts() {
        let (seal, longest) = (facts.seal_mechanism, facts.max_plaintext);
        page = format!("Mechanism of the seal: {seal:?}. Longest plaintext of one encryption: {longest} bytes.\n\n");
    }
    page.push_str(&holdings.to_string());
    page
}
