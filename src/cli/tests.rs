use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::thread::JoinHandle;

use super::*;
use crate::secret::SecretString;

/// A request as the server saw it: its line, its token and its body.
#[derive(Debug, PartialEq)]
struct Seen {
    line: String,
    token: String,
    body: String,
}

/// Answers one prepared reply per request, then ends.
fn server(replies: Vec<(u16, &'static str)>) -> (String, mpsc::Receiver<Seen>, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for (code, body) in replies {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            let mut seen = Seen { line: String::new(), token: String::new(), body: String::new() };
            reader.read_line(&mut seen.line).unwrap();
            let mut length = 0;
            loop {
                let mut header = String::new();
                reader.read_line(&mut header).unwrap();
                let Some((name, value)) = header.trim().split_once(": ") else { break };
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.parse().unwrap(),
                    "x-vault-token" => seen.token = value.into(),
                    _ => {}
                }
            }
            let mut content = vec![0; length];
            reader.read_exact(&mut content).unwrap();
            seen.body = String::from_utf8(content).unwrap();
            seen.line = seen.line.trim().trim_end_matches(" HTTP/1.1").into();
            sender.send(seen).unwrap();
            let head = format!("HTTP/1.1 {code} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            reader.get_mut().write_all((head + body).as_bytes()).unwrap();
        }
    });
    (address, receiver, thread)
}

/// Exit code, standard output and error output of a command line.
fn sos(line: &str, address: &str, input: &str) -> (u8, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut terminal = Terminal {
        out: Box::new(&mut out),
        err: Box::new(&mut err),
        input: Box::new(input.as_bytes()),
        prompt: Box::new(|_| Ok(SecretString::new("typed\n".into()))),
        environment: Box::new(|name| match name {
            "VAULT_ADDR" => Some(address.to_string()),
            "VAULT_TOKEN" => Some("hvs.token".into()),
            _ => None,
        }),
    };
    let code = run_with(line.split(' ').map(OsString::from).collect(), &mut terminal);
    drop(terminal);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

const SEALED: &str = r#"{"type":"pkcs11","recovery_seal":true,"initialized":true,"sealed":true,"sealed_reason":"hsm unreachable","t":3,"n":5,
    "progress":1,"nonce":"","version":"1.14.0","storage_type":"sled"}"#;

#[test]
fn status_prints_vaults_table_and_exit_code() {
    let (address, seen, thread) = server(vec![(200, SEALED), (503, "{\"errors\":[\"sealed\"]}")]);
    let (code, out, err) = sos("sos status", &address, "");
    thread.join().unwrap();
    assert_eq!((code, err.as_str()), (2, ""));
    let expected = "\
Key                      Value
---                      -----
Seal Type                pkcs11
Initialized              true
Sealed                   true
Sealed Reason            hsm unreachable
Total Recovery Shares    5
Threshold                3
Unseal Progress          1/3
Unseal Nonce             n/a
Version                  1.14.0
Storage Type             sled
HA Enabled               false
";
    assert_eq!(out, expected);
    let first = seen.recv().unwrap();
    assert_eq!((first.line.as_str(), first.token.as_str()), ("GET /v1/sys/seal-status", "hvs.token"));
}

#[test]
fn status_as_json_and_by_field() {
    let open = r#"{"type":"shamir","initialized":true,"sealed":false,"t":1,"n":1}"#;
    let (address, _seen, thread) =
        server(vec![(200, open), (200, r#"{"ha_enabled":false}"#), (403, r#"{"errors":["permission denied"]}"#), (200, open)]);
    let (code, out, _) = sos("sos operator status -format=json", &address, "");
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((json["sealed"].as_bool(), json["ha_enabled"].as_bool()), (Some(false), Some(false)));
    assert_eq!(sos("sos status -field=type", &address, "").1, "shamir\n");
    thread.join().unwrap();
}

#[test]
fn an_unreachable_server_is_exit_code_one_for_status_and_two_elsewhere() {
    let closed = "http://127.0.0.1:1";
    let (code, _, err) = sos("sos status", closed, "");
    assert!(code == 1 && err.contains("cannot reach the server at http://127.0.0.1:1"), "{err}");
    assert_eq!(sos("sos operator seal", closed, "").0, 2);
}

#[test]
fn init_asks_for_what_the_seal_needs() {
    let shamir = r#"{"type":"shamir","recovery_seal":false,"sealed":true}"#;
    let keys = r#"{"keys":["aa","bb"],"keys_base64":["qg==","uw=="],"root_token":"hvs.root"}"#;
    let (address, seen, thread) = server(vec![(200, shamir), (200, keys)]);
    let (code, out, _) = sos("sos operator init -n=2 -key-threshold 2", &address, "");
    thread.join().unwrap();
    assert_eq!(code, 0);
    assert!(out.starts_with("Unseal Key 1: qg==\nUnseal Key 2: uw==\n\nInitial Root Token: hvs.root\n"), "{out}");
    seen.recv().unwrap();
    let init = seen.recv().unwrap();
    assert_eq!(init.line, "PUT /v1/sys/init");
    assert_eq!(init.body, r#"{"recovery_shares":0,"recovery_threshold":0,"secret_shares":2,"secret_threshold":2}"#);

    let recovery =
        r#"{"keys":[],"keys_base64":[],"recovery_keys":["aa"],"recovery_keys_base64":["qg=="],"root_token":"hvs.root"}"#;
    let (address, seen, thread) = server(vec![(200, SEALED), (200, recovery)]);
    let (_, out, _) = sos("sos operator init -recovery-shares=1 -recovery-threshold=1 -format=json", &address, "");
    thread.join().unwrap();
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["recovery_keys_b64"], serde_json::json!(["qg=="]));
    assert_eq!(json["unseal_keys_b64"], serde_json::json!([]));
    assert_eq!(json["unseal_shares"], 1);
    seen.recv().unwrap();
    assert_eq!(
        seen.recv().unwrap().body,
        r#"{"recovery_shares":1,"recovery_threshold":1,"secret_shares":0,"secret_threshold":0}"#
    );
}

#[test]
fn init_status_has_its_own_exit_codes() {
    let (address, _seen, thread) = server(vec![(200, r#"{"initialized":false}"#)]);
    assert_eq!(sos("sos operator init -status", &address, ""), (2, "Vault is not initialized\n".into(), String::new()));
    thread.join().unwrap();
}

#[test]
fn unseal_takes_the_key_from_the_prompt_or_the_standard_input() {
    for (line, input, key) in [
        ("sos operator unseal", "", "typed"),
        ("sos operator unseal -", "piped\n", "piped"),
        ("sos operator unseal -reset=false given", "", "given"),
    ] {
        let (address, seen, thread) = server(vec![(200, SEALED), (503, "{}")]);
        let (code, out, _) = sos(line, &address, input);
        thread.join().unwrap();
        assert!(code == 0 && out.contains("Unseal Progress"), "{line}");
        assert_eq!(seen.recv().unwrap().body, format!(r#"{{"key":"{key}","migrate":false}}"#));
    }
}

#[test]
fn a_refusal_prints_vaults_error() {
    let (address, _seen, thread) = server(vec![(403, r#"{"errors":["permission denied"]}"#)]);
    let (code, _, err) = sos("sos operator seal", &address, "");
    thread.join().unwrap();
    let expected = format!(
        "Error sealing: Error making API request.\n\nURL: PUT {address}/v1/sys/seal\nCode: 403. Errors:\n\n* permission denied\n"
    );
    assert_eq!((code, err), (2, expected));
}

#[test]
fn rekey_sends_key_and_nonce_to_the_target() {
    let started = r#"{"nonce":"n1","started":true,"t":2,"n":3,"progress":0,"required":1}"#;
    let done = r#"{"complete":true,"nonce":"n1","keys":["aa"],"keys_base64":["qg=="]}"#;
    let (address, seen, thread) = server(vec![(200, started), (200, done)]);
    let (code, out, _) = sos("sos operator rekey -target=recovery -nonce=n1 -", &address, "share");
    thread.join().unwrap();
    assert!(code == 0 && out.starts_with("Key 1: qg==\n\nOperation nonce: n1\n"), "{out}");
    assert_eq!(seen.recv().unwrap().line, "GET /v1/sys/rekey-recovery-key/init");
    let update = seen.recv().unwrap();
    assert_eq!(
        (update.line.as_str(), update.body.as_str()),
        ("PUT /v1/sys/rekey-recovery-key/update", r#"{"key":"share","nonce":"n1"}"#)
    );

    let (address, _seen, thread) = server(vec![(200, started)]);
    let (_, out, _) = sos("sos operator rekey -status", &address, "");
    thread.join().unwrap();
    assert!(out.contains("Rekey Progress           0/1\n"), "{out}");
}

#[test]
fn generate_root_shows_the_attempt_and_decodes_without_a_server() {
    let attempt = r#"{"nonce":"n1","started":true,"progress":0,"required":3,"complete":false,"otp":"abc","otp_length":28}"#;
    let (address, seen, thread) = server(vec![(200, attempt)]);
    let (_, out, err) = sos("sos operator generate-root -init", &address, "");
    thread.join().unwrap();
    assert!(out.contains("OTP           abc\n") && err.contains("One-Time-Password"), "{out}");
    assert_eq!(seen.recv().unwrap().line, "PUT /v1/sys/generate-root/attempt");

    let (code, out, _) = sos("sos operator generate-root -decode=CQQF -otp=abc", "http://127.0.0.1:1", "");
    assert_eq!((code, out.as_str()), (0, "hff\n"));
    let (code, _, err) = sos("sos operator generate-root -decode CQQF", "http://127.0.0.1:1", "");
    assert_eq!((code, err.as_str()), (1, "Missing otp: use -otp to supply it\n"));
    let (code, out, _) = sos("sos operator generate-root -decode - -otp abc -format=json", "http://127.0.0.1:1", "CQQF\n");
    assert_eq!((code, out.contains("\"token\": \"hff\"")), (0, true));
}

#[test]
fn rotate_prints_the_new_term() {
    let status = r#"{"term":2,"install_time":"2026-01-01T00:00:00Z","encryptions":7,"data":{"term":2,"install_time":"2026-01-01T00:00:00Z","encryptions":7}}"#;
    let (address, _seen, thread) = server(vec![(204, ""), (200, status)]);
    let (code, out, _) = sos("sos operator rotate", &address, "");
    thread.join().unwrap();
    assert!(code == 0 && out.contains("Key Term            2\n"), "{out}");
}

#[test]
fn the_version_depends_on_the_programs_name() {
    for line in ["sos version", "sos -version", "sos --version"] {
        assert!(sos(line, "", "").1.starts_with(concat!("SOS v", env!("CARGO_PKG_VERSION"))), "{line}");
    }
    assert_eq!(sos("/usr/bin/vault version", "", "").1.split(' ').nth(1), Some("v1.14.0"));
}

#[test]
fn wrong_use_is_exit_code_one_and_help_is_zero() {
    assert_eq!(sos("sos operator init -no-such-flag", "", "").0, 1);
    assert_eq!(sos("sos server", "", ""), (1, String::new(), "Must specify at least one config path using -config\n".into()));
    let (code, out, _) = sos("sos server -h", "", "");
    assert!(code == 0 && out.contains("--dev-root-token-id"), "{out}");
}

#[test]
fn the_doctor_names_what_is_wrong_in_the_configuration() {
    let (code, _, err) = sos("sos hsm doctor -config=/no/such/file.hcl", "", "");
    assert!(code == 1 && err.contains("cannot read the configuration /no/such/file.hcl"), "{err}");
}
