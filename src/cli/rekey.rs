//! `sos operator rekey`.

use clap::Args;
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, ClientArgs, ClientError};
use super::output::{self, Format, Rows, number, text, texts, truth};
use super::secret_argument::{self, SecretArgument};
use super::terminal::Terminal;

/// Flags of `operator rekey`.
#[derive(Args, Debug)]
pub(super) struct RekeyArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Begin: say how many new shares there shall be
    #[arg(long)]
    init: bool,
    /// Give up what was begun
    #[arg(long)]
    cancel: bool,
    /// Print how far it is
    #[arg(long)]
    status: bool,
    /// With -init: the new shares count only when they have been given back once. Else: work on that verification
    #[arg(long)]
    verify: bool,
    /// Number of new shares
    #[arg(long, alias = "n", default_value_t = 5, value_name = "N")]
    key_shares: u32,
    /// Number of new shares that are needed
    #[arg(long, alias = "t", default_value_t = 3, value_name = "T")]
    key_threshold: u32,
    /// The nonce printed by -init; goes with every share
    #[arg(long)]
    nonce: Option<String>,
    /// Whose shares: barrier (unseal keys), or recovery where an HSM unseals
    #[arg(long, default_value = "barrier", value_parser = ["barrier", "recovery", "hsm"], ignore_case = true)]
    target: String,
    /// A present share; `-` reads it from the standard input, without it you are asked
    #[arg(value_parser = secret_argument::parse)]
    key: Option<SecretArgument>,
}

/// The endpoints of one rekey operation.
struct Paths {
    init: String,
    update: String,
    verify: String,
    key_name: &'static str,
}

impl Paths {
    fn new(args: &RekeyArgs) -> Self {
        let (base, key_name) = match args.target.to_ascii_lowercase().as_str() {
            "barrier" => ("sys/rekey", "Unseal"),
            _ => ("sys/rekey-recovery-key", "Recovery"),
        };
        Self { init: format!("{base}/init"), update: format!("{base}/update"), verify: format!("{base}/verify"), key_name }
    }

    /// What -status and -cancel work on.
    fn attempt(&self, verify: bool) -> &str {
        if verify { &self.verify } else { &self.init }
    }
}

pub(super) fn run(args: RekeyArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    let client = args.client.client(terminal)?;
    let paths = Paths::new(&args);
    if args.cancel {
        client.delete(paths.attempt(args.verify)).map_err(|error| Failure::request("canceling rekey", error))?;
        terminal.print("Success! Canceled rekeying (if it was started)")?;
        return Ok(0);
    }
    if args.init {
        return init(&args, &client, &paths, format, terminal);
    }
    if args.status {
        return status(&client, &paths, args.verify, format, terminal);
    }
    provide(args, &client, &paths, format, terminal)
}

fn init(args: &RekeyArgs, client: &Client, paths: &Paths, format: Format, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let body = json!({
        "secret_shares": args.key_shares, "secret_threshold": args.key_threshold, "require_verification": args.verify,
    });
    let reply = client.put(&paths.init, &body).map_err(|error| Failure::request("initializing rekey", error))?;
    if format == Format::Table {
        terminal.complain(
            "WARNING! The new keys are shown once, to whoever gives the last present key. Without them there is no recovery.\n",
        );
    }
    // Older servers answer -init with an empty body.
    let reply = if reply.is_null() { read(client, &paths.init)? } else { reply };
    print_status(&reply, false, format, terminal)
}

fn read(client: &Client, path: &str) -> Result<Value, Failure> {
    client.get(path).map_err(|error: ClientError| Failure::request("reading rekey status", error))
}

fn status(client: &Client, paths: &Paths, verify: bool, format: Format, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let reply = read(client, paths.attempt(verify))?;
    print_status(&reply, verify, format, terminal)
}

fn print_status(reply: &Value, verify: bool, format: Format, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let fields = reply.get("data").filter(|data| data.is_object()).unwrap_or(reply);
    match format {
        Format::Json => terminal.print(output::json(fields)?)?,
        Format::Table if verify => terminal.print(verification_table(fields))?,
        Format::Table => terminal.print(table(fields))?,
    }
    Ok(0)
}

fn table(fields: &Value) -> String {
    let mut rows = Rows::default();
    rows.add("Nonce", text(fields, "nonce"));
    rows.add("Started", truth(fields, "started").to_string());
    if truth(fields, "started") {
        let (progress, required) = (number(fields, "progress"), number(fields, "required"));
        let verifying = if progress == required { " (verification in progress)" } else { "" };
        rows.add("Rekey Progress", format!("{progress}/{required}{verifying}"));
        rows.add("New Shares", text(fields, "n"));
        rows.add("New Threshold", text(fields, "t"));
        rows.add("Verification Required", truth(fields, "verification_required").to_string());
        rows.add_field("Verification Nonce", fields, "verification_nonce");
    }
    rows.table()
}

fn verification_table(fields: &Value) -> String {
    let mut rows = Rows::default();
    rows.add("Started", truth(fields, "started").to_string());
    rows.add("New Shares", text(fields, "n"));
    rows.add("New Threshold", text(fields, "t"));
    rows.add("Verification Nonce", text(fields, "nonce"));
    rows.add("Verification Progress", format!("{}/{}", number(fields, "progress"), number(fields, "t")));
    rows.table()
}

fn provide(args: RekeyArgs, client: &Client, paths: &Paths, format: Format, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let before = client.get(paths.attempt(args.verify)).map_err(|error| Failure::request("getting rekey status", error))?;
    if !truth(&before, "started") {
        return Err(Failure::usage("No rekey is in progress. Start a rekey process by running \"sos operator rekey -init\"."));
    }
    // Someone at a terminal sees the nonce and can compare; a script must name the attempt it means.
    let nonce = match args.key {
        Some(_) => args.nonce.ok_or_else(|| Failure::usage("Missing nonce value: specify it via the -nonce flag"))?,
        None => args.nonce.unwrap_or_else(|| text(&before, "nonce")),
    };
    let question = format!("Rekey operation nonce: {nonce}\n{} Key (will be hidden): ", paths.key_name);
    let key = terminal.key(args.key.as_ref(), &question)?;
    let path = if args.verify { &paths.verify } else { &paths.update };
    let body = json!({ "key": key.expose(), "nonce": nonce });
    let reply = client.put(path, &body).map_err(|error| Failure::request("posting unseal key", error))?;
    if !truth(&reply, "complete") {
        return status(client, paths, args.verify, format, terminal);
    }
    texts(&reply, "warnings").iter().for_each(|warning| terminal.complain(format!("WARNING: {warning}")));
    if args.verify {
        terminal.print("Rekey verification successful. The rekey operation is complete and the new keys are now active.")?;
        return Ok(0);
    }
    match format {
        Format::Json => terminal.print(output::json(&reply)?)?,
        Format::Table => terminal.print(new_keys(&reply, &before, paths))?,
    }
    Ok(0)
}

fn new_keys(reply: &Value, before: &Value, paths: &Paths) -> String {
    let (hex, base64) = (texts(reply, "keys"), texts(reply, "keys_base64"));
    let keys = if base64.len() == hex.len() { base64 } else { hex };
    let mut lines: Vec<_> = keys.iter().enumerate().map(|(index, key)| format!("Key {}: {key}", index + 1)).collect();
    lines.extend([String::new(), format!("Operation nonce: {}", text(reply, "nonce")), String::new()]);
    let (n, t, kind) = (text(before, "n"), text(before, "t"), paths.key_name.to_ascii_lowercase());
    lines.push(format!("Vault {kind} keys rekeyed to {n} key shares and a key threshold of {t}."));
    if truth(before, "verification_required") {
        let nonce = text(reply, "verification_nonce");
        lines.push("They do not count yet: keep the present ones, and give the new ones once with -verify.".into());
        lines.push(format!("Verification nonce: {nonce}"));
    } else {
        lines.push("Give the shares above to different people and keep them offline: they are shown only now.".into());
    }
    lines.join("\n")
}
