//! `sos operator generate-root`.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use clap::Args;
use serde_json::{Value, json};

use super::Failure;
use super::client::{Client, ClientArgs};
use super::output::{self, Format, Rows, number, text, truth};
use super::secret_argument::{self, SecretArgument};
use super::terminal::Terminal;
use crate::secret::{SecretString, fill_random};

/// Length of today's root tokens: `hvs.` and 24 characters.
const TOKEN_LENGTH: usize = 28;
const ATTEMPT: &str = "sys/generate-root/attempt";

/// Flags of `operator generate-root`.
#[derive(Args, Debug)]
pub(super) struct GenerateRootArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Begin; without -otp the server makes the one-time password
    #[arg(long)]
    init: bool,
    /// Give up what was begun
    #[arg(long)]
    cancel: bool,
    /// Print how far it is
    #[arg(long)]
    status: bool,
    /// Make a one-time password for -init
    #[arg(long)]
    generate_otp: bool,
    /// Decode the encoded token with -otp, without asking a server; `-` reads it from the standard input
    #[arg(long, value_name = "ENCODED", value_parser = secret_argument::parse)]
    decode: Option<SecretArgument>,
    /// The one-time password
    #[arg(long, value_parser = secret_argument::parse)]
    otp: Option<SecretArgument>,
    /// The nonce printed by -init; goes with every share
    #[arg(long)]
    nonce: Option<String>,
    /// A share; `-` reads it from the standard input, without it you are asked
    #[arg(value_parser = secret_argument::parse)]
    key: Option<SecretArgument>,
}

pub(super) fn run(args: GenerateRootArgs, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let format = args.client.format(terminal)?;
    if let Some(encoded) = &args.decode {
        return print_decoded(encoded.expose(), args.otp.as_ref().map(SecretArgument::expose), format, terminal);
    }
    let client = args.client.client(terminal)?;
    let getting = |error| Failure::request("getting root generation status", error);
    if args.generate_otp {
        let status = client.get(ATTEMPT).map_err(getting)?;
        let length = usize::try_from(number(&status, "otp_length")).unwrap_or(0);
        let otp = one_time_password(if length == 0 { TOKEN_LENGTH } else { length });
        return print_value("otp", &otp, format, terminal);
    }
    if args.cancel {
        client.delete(ATTEMPT).map_err(|error| Failure::request("canceling root token generation", error))?;
        terminal.print("Success! Root token generation canceled (if it was started)")?;
        return Ok(0);
    }
    if args.init {
        let body = args.otp.as_ref().map_or_else(|| json!({}), |otp| json!({ "otp": otp.expose() }));
        let status = client.put(ATTEMPT, &body).map_err(|error| Failure::request("initializing root generation", error))?;
        return print_status(&status, format, terminal);
    }
    let status = client.get(ATTEMPT).map_err(getting)?;
    if args.status {
        return print_status(&status, format, terminal);
    }
    provide(args, &client, &status, format, terminal)
}

fn provide(
    args: GenerateRootArgs,
    client: &Client,
    before: &Value,
    format: Format,
    terminal: &mut Terminal<'_>,
) -> Result<u8, Failure> {
    if !truth(before, "started") {
        let message =
            "No root generation is in progress. Start a root generation by running \"sos operator generate-root -init\".";
        return Err(Failure::usage(message));
    }
    let nonce = match args.key {
        Some(_) => args.nonce.ok_or_else(|| Failure::usage("Missing nonce value: specify it via the -nonce flag"))?,
        None => args.nonce.unwrap_or_else(|| text(before, "nonce")),
    };
    let question = format!("Operation nonce: {nonce}\nUnseal Key (will be hidden): ");
    let key = terminal.key(args.key.as_ref(), &question)?;
    let body = json!({ "key": key.expose(), "nonce": nonce });
    let status = client.put("sys/generate-root/update", &body).map_err(|error| Failure::request("posting unseal key", error))?;
    print_status(&status, format, terminal)
}

fn print_status(status: &Value, format: Format, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    if format == Format::Json {
        terminal.print(output::json(status)?)?;
        return Ok(0);
    }
    let mut rows = Rows::default();
    rows.add("Nonce", text(status, "nonce"));
    rows.add("Started", truth(status, "started").to_string());
    rows.add("Progress", format!("{}/{}", number(status, "progress"), number(status, "required")));
    rows.add("Complete", truth(status, "complete").to_string());
    match text(status, "encoded_token") {
        token if !token.is_empty() => rows.add("Encoded Token", token),
        _ => rows.add_field("Encoded Root Token", status, "encoded_root_token"),
    }
    let otp = text(status, "otp");
    if !otp.is_empty() {
        terminal.complain(
            "A One-Time-Password has been generated for you and is shown in the OTP field: keep it, it decodes the root token.",
        );
        rows.add("OTP", otp);
    }
    if number(status, "otp_length") > 0 {
        rows.add("OTP Length", text(status, "otp_length"));
    }
    terminal.print(rows.columns())?;
    Ok(0)
}

fn print_value(name: &str, value: &SecretString, format: Format, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    match format {
        Format::Table => terminal.print(value.expose())?,
        Format::Json if name == "otp" => {
            terminal.print(output::json(&json!({ "otp": value.expose(), "otp_length": value.expose().len() }))?)?;
        }
        Format::Json => terminal.print(output::json(&json!({ name: value.expose() }))?)?,
    }
    Ok(0)
}

fn print_decoded(encoded: &str, otp: Option<&str>, format: Format, terminal: &mut Terminal<'_>) -> Result<u8, Failure> {
    let otp = otp.filter(|otp| !otp.is_empty()).ok_or_else(|| Failure::usage("Missing otp: use -otp to supply it"))?;
    let encoded = match encoded {
        "-" => terminal.everything()?,
        text => SecretString::new(text.to_string()),
    };
    let token = decode(encoded.expose().trim(), otp)
        .map_err(|problem| Failure::usage(format!("Error decoding root token: {problem}")))?;
    print_value("token", &token, format, terminal)
}

/// The token is the base64-decoded text XOR the one-time password, byte by byte.
pub(super) fn decode(encoded: &str, otp: &str) -> Result<SecretString, &'static str> {
    let engine = if encoded.ends_with('=') { STANDARD } else { STANDARD_NO_PAD };
    let mut bytes = zeroize::Zeroizing::new(engine.decode(encoded).map_err(|_| "the encoded token is not base64")?);
    if bytes.is_empty() || bytes.len() != otp.len() {
        return Err("the encoded token and the one-time password differ in length");
    }
    bytes.iter_mut().zip(otp.bytes()).for_each(|(byte, pad)| *byte ^= pad);
    let text = std::str::from_utf8(&bytes).map_err(|_| "the result is no token: check the one-time password")?;
    Ok(SecretString::new(text.to_string()))
}

/// Letters and digits, each equally likely.
fn one_time_password(length: usize) -> SecretString {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut byte = [0];
        fill_random(&mut byte);
        // 248 is the largest multiple of 62 that fits: higher bytes would favour the first letters.
        if byte[0] < 248 {
            text.push(char::from(ALPHABET[usize::from(byte[0] % 62)]));
        }
    }
    SecretString::new(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_is_an_exclusive_or() {
        let token = "hvs.abcdefghijklmnopqrstuvwx";
        let otp = one_time_password(TOKEN_LENGTH);
        let mixed: Vec<u8> = token.bytes().zip(otp.expose().bytes()).map(|(a, b)| a ^ b).collect();
        for encoded in [STANDARD.encode(&mixed), STANDARD_NO_PAD.encode(&mixed)] {
            assert_eq!(decode(&encoded, otp.expose()).unwrap().expose(), token);
        }
        assert!(decode("AAAA", otp.expose()).is_err());
        assert!(decode("%", otp.expose()).is_err());
        assert!(decode("", "").is_err());
    }

    #[test]
    fn passwords_have_the_length_asked_for() {
        let otp = one_time_password(28);
        assert!(otp.expose().len() == 28 && otp.expose().bytes().all(|b| b.is_ascii_alphanumeric()));
        assert!(!otp.same_as(one_time_password(28).expose()));
    }
}
