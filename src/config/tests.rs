use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::wire::duration::format_duration;

fn none(_: &str) -> Option<String> {
    None
}

fn read_with(text: &str, environment: Environment<'_>) -> Result<(Config, Vec<Warning>), ConfigError> {
    let document = hcl::parse("sos.hcl", text)?;
    from_documents(Config::default(), &[document], environment)
}

fn read(text: &str) -> (Config, Vec<Warning>) {
    read_with(text, &none).unwrap()
}

fn refused(text: &str) -> String {
    read_with(text, &none).unwrap_err().to_string()
}

const BASE: &str = "storage \"inmem\" {}\nlistener \"tcp\" { tls_disable = 1 }\n";

fn with(text: &str) -> String {
    format!("{BASE}{text}")
}

fn tcp(config: &Config, index: usize) -> &TcpListener {
    match &config.listeners[index] {
        Listener::Tcp(listener) => listener,
        Listener::Unix(_) => panic!("not tcp"),
    }
}

#[test]
fn the_limit_of_failed_authentications_is_read_and_checked() {
    assert_eq!(read(&with("")).0.failed_auth_limit, None);
    let limit = |text: &str| read(&with(text)).0.failed_auth_limit.unwrap();
    let some = |burst, per_second| FailedAuthLimit::Some { burst, per_second };
    assert_eq!(limit("failed_auth_limit { burst = 7 per_second = 3 }"), some(Some(7), Some(3)));
    assert_eq!(limit("failed_auth_limit { per_second = 3 }"), some(None, Some(3)));
    assert_eq!(limit("failed_auth_limit { disabled = true }"), FailedAuthLimit::None);
    for wrong in ["burst = 0", "per_second = -1", "burst = 1000001"] {
        let text = refused(&with(&format!("failed_auth_limit {{ {wrong} }}")));
        assert!(text.contains("must be from 1 to 1000000") && text.contains("disabled = true"), "{text}");
    }
    let text = refused(&with("failed_auth_limit {}\nfailed_auth_limit {}"));
    assert!(text.contains("only one failed_auth_limit"), "{text}");
    assert!(read(&with("failed_auth_limit { bursts = 1 }")).1[0].message.contains("bursts"));
}

#[test]
fn a_whole_file_loads_without_warnings() {
    let (config, warnings) = read(
        r#"
        storage "sled" { path = "/var/lib/sos" }
        listener "tcp" {
          address = "0.0.0.0:8200"  tls_cert_file = "c.pem"  tls_key_file = "k.pem"
          tls_client_ca_file = "ca.pem", tls_require_and_verify_client_cert = "true", tls_min_version = "tls13"
          max_request_size = "1MiB" max_connections_per_address = 500
        }
        listener "unix" { address = "/run/sos.sock" socket_mode = "0660" socket_user = "sos" }
        seal "pkcs11" {
          lib = "/usr/lib/softhsm/libsofthsm2.so" token_label = "sos" pin = "1234" key_label = "k" mechanism = "0x1087"
          max_sessions = 8 rsa_oaep_hash = "sha256" force_rw_session = "true" escrow = false
        }
        zone "tk1a" { rotation_period = "8760h" }
        api_addr = "https://x:8200" cluster_name = "c" default_lease_ttl = "1h" max_lease_ttl = 7200
        log_level = "debug" log_format = "json" pid_file = "/run/sos.pid" ui = true disable_mlock = true
        audit_paths = ["/srv/log"] default_protection_level = "software" vault_version = "1.15.2"
        "#,
    );
    assert_eq!(warnings, []);
    assert_eq!(config.storage, Some(Storage::Sled { path: "/var/lib/sos".into(), limits: StorageLimits::default() }));
    let listener = tcp(&config, 0);
    assert_eq!((listener.address.as_str(), listener.max_request_size), ("0.0.0.0:8200", 1 << 20));
    assert_eq!(listener.max_connections_per_address, Some(500));
    let tls = listener.tls.as_ref().unwrap();
    assert!(tls.require_client_cert && tls.min_version == TlsVersion::Tls13);
    assert!(matches!(&config.listeners[1], Listener::Unix(unix) if unix.mode == Some(0o660)));
    let seal = &config.seals[0];
    assert_eq!(
        (seal.mechanism, seal.max_sessions, seal.rsa_oaep_hash),
        (Some(SealMechanism::AesGcm), Some(8), Some(OaepHash::Sha256))
    );
    assert!(seal.force_rw_session && !seal.escrow && seal.generate_key);
    assert!(seal.pin.as_ref().unwrap().same_as("1234"));
    assert_eq!(config.zones[0].rotation_period, Some(Duration::from_secs(8760 * 3600)));
    assert_eq!(
        (format_duration(config.default_lease_ttl), format_duration(config.max_lease_ttl)),
        ("1h0m0s".into(), "2h0m0s".into())
    );
    assert_eq!((config.log_level, config.log_format), (Some(LogLevel::Debug), Some(LogFormat::Json)));
    assert_eq!(config.default_protection, Some(Protection::Software));
    assert!(!format!("{config:?}").contains("1234"));
}

#[test]
fn a_python_clients_test_configuration_loads() {
    let (config, warnings) = read(
        r#"{"backend":{"inmem":{}},"listener":{"tcp":{"address":"127.0.0.1:8200","tls_cert_file":"c","tls_key_file":"k"}},
            "disable_mlock":true,"default_lease_ttl":"768h","max_lease_ttl":"768h"}"#,
    );
    assert_eq!(warnings, []);
    assert_eq!(config.storage, Some(Storage::Inmem));
    assert_eq!(tcp(&config, 0).tls.as_ref().unwrap().cert_file, PathBuf::from("c"));
    assert_eq!(config.default_lease_ttl, DEFAULT_LEASE_TTL);
}

#[test]
fn defaults_are_vaults() {
    let (config, _) = read(BASE);
    assert_eq!(tcp(&config, 0).address, "127.0.0.1:8200");
    assert_eq!((tcp(&config, 0).max_request_size, tcp(&config, 0).max_connections_per_address), (32 << 20, None));
    assert_eq!((config.max_lease_ttl, config.vault_version.as_str()), (DEFAULT_LEASE_TTL, "1.14.0"));
    assert!(config.seals.is_empty() && config.audit_paths.contains(&"stdout".to_string()));
    for disable in ["true", "1", "\"true\"", "\"1\""] {
        let (config, _) =
            read(&format!("storage \"inmem\" {{}} listener \"tcp\" {{ tls_disable = {disable} address = \":8201\" }}"));
        let listener = tcp(&config, 0);
        assert_eq!(listener.place.to_string(), "sos.hcl:1:20");
        assert_eq!(listener, &TcpListener { place: listener.place.clone(), ..TcpListener::plain("0.0.0.0:8201") });
    }
}

#[test]
fn settings_of_the_seal_that_change_nothing_say_so() {
    for setting in ["generate_key = false", "key_id = \"01\"", "disable_software_encryption = true"] {
        let (_, warnings) = read(&with(&format!("seal \"pkcs11\" {{ lib = \"l\" token_label = \"t\" {setting} }}")));
        assert!(warnings.len() == 1 && warnings[0].to_string().contains("has no effect"), "{setting}: {warnings:?}");
    }
}

#[test]
fn unknown_and_unneeded_keys_are_warnings_with_their_place() {
    let (_, warnings) = read(&with("telemetry { statsd_address = \"x\" }\nplugin_directory = \"p\"\ncolour = 1"));
    let texts: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(texts[0], "sos.hcl:3:1: telemetry in the configuration has no effect here and is ignored");
    assert!(texts[1].starts_with("sos.hcl:4:1: plugin_directory"));
    assert_eq!(texts[2], "sos.hcl:5:1: unknown key colour in the configuration: it is ignored; check its spelling");
    let (_, warnings) = read("storage \"inmem\" {}\nlistener \"tcp\" { tls_disable = 1\n tls_cret_file = \"x\" }");
    assert_eq!(warnings[0].at, Position { line: 3, column: 2 });
}

#[test]
fn errors_name_file_line_and_fix() {
    for (text, expected) in [
        ("storage \"raft\" {}", "sos.hcl:1:9: storage \"raft\" is not supported: write storage \"redb\""),
        ("storage \"sled\" {}", "needs a folder: write path ="),
        ("storage \"inmem\" {}\nstorage \"redb\" { path = \"x\" }", "sos.hcl:2:1: only one storage"),
        ("listener \"http\" {}", "listener \"http\" is not known"),
        ("listener \"tcp\" {}", "no tls_cert_file: write tls_cert_file ="),
        ("listener \"tcp\" { tls_disable = \"maybe\" }", "tls_disable must be true or false"),
        ("listener \"tcp\" { tls_disable = 1 address = \"::1\" }", "address \"::1\" has no host and port"),
        ("listener \"unix\" {}", "write address = \"/run"),
        ("listener \"unix\" { address = \"x\" socket_mode = \"9\" }", "socket_mode must be a file mode"),
        ("seal \"awskms\" {}", "sos.hcl:1:6: seal \"awskms\" is not supported: write seal \"pkcs11\""),
        ("seal \"pkcs11\" {}", "write lib ="),
        ("seal \"pkcs11\" { lib = \"x\" }", "write token_label ="),
        ("seal \"pkcs11\" { lib = \"x\" slot = 0 pin = 1234 }", "write pin = \"...\""),
        ("seal \"pkcs11\" { lib = \"x\" slot = 0 pin = \"1\" pin_file = \"y\" }", "keep one"),
        ("seal \"pkcs11\" { lib = \"x\" slot = 0 mechanism = \"DES\" }", "write one of \"CKM_AES_GCM\""),
        ("seal \"shamir\" {}\nseal \"pkcs11\" { lib = \"x\" slot = 0 }", "sos.hcl:1:6: seal \"shamir\" beside"),
        ("zone {}", "write zone \"tk1a\""),
        ("zone \"a\" { rotation_period = \"often\" }", "write rotation_period = \"768h\""),
        ("zone \"a\" { rotation_period = \"1s\" }", "must be an hour or more"),
        ("log_level = \"loud\"", "log_level cannot be \"loud\""),
        ("default_lease_ttl = []", "default_lease_ttl must be a duration"),
        ("vault_version = \"one\"", "the form \"1.14.0\""),
        ("audit \"file\" {}", "the audit stanza is not supported"),
        ("", "no storage is configured"),
        ("storage \"inmem\" {}", "no listener is configured"),
    ] {
        let message = refused(text);
        assert!(message.contains(expected), "{text}: {message}");
    }
}

#[test]
fn the_environment_wins_over_a_single_hsm_stanza() {
    let environment = |name: &str| match name {
        "VAULT_HSM_PIN" => Some("9999".to_string()),
        "BAO_HSM_SLOT" => Some("0x10".to_string()),
        "VAULT_HSM_KEY_LABEL" => Some("from-env".to_string()),
        _ => None,
    };
    let stanza = "seal \"pkcs11\" { lib = \"x\" token_label = \"t\" pin = \"1\" key_label = \"k\" }\n";
    let named = stanza.replace("\"t\"", "\"u\" name = \"other\"");
    let (config, _) = read_with(&with(stanza), &environment).unwrap();
    let seal = &config.seals[0];
    assert!(seal.pin.as_ref().unwrap().same_as("9999"));
    assert_eq!((seal.slot, seal.key_label.as_str()), (Some(16), "from-env"));

    let (config, _) = read_with(&with(&(stanza.to_owned() + &named)), &environment).unwrap();
    assert_eq!((config.seals[1].slot, config.seals[1].key_label.as_str()), (None, "k"));
}

#[test]
fn the_environment_alone_can_describe_the_hsm() {
    let environment = |name: &str| match name {
        "VAULT_SEAL_TYPE" => Some("pkcs11".to_string()),
        "VAULT_HSM_LIB" => Some("lib.so".to_string()),
        "VAULT_HSM_TOKEN_LABEL" => Some("t".to_string()),
        _ => None,
    };
    let (config, _) = read_with(BASE, &environment).unwrap();
    assert_eq!(config.seals[0].lib, PathBuf::from("lib.so"));
}

#[test]
fn several_seals_stand_in_the_order_of_their_priority() {
    let one = |name: &str, priority: i64| {
        format!("seal \"pkcs11\" {{ lib = \"{name}\" slot = 0 name = \"{name}\" priority = {priority} }}\n")
    };
    let (config, _) = read(&with(&(one("b", 2) + &one("a", 1))));
    assert_eq!(config.seals.iter().map(|seal| seal.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn mechanisms_have_names_and_numbers() {
    for (text, mechanism) in [
        ("CKM_AES_GCM", Some(SealMechanism::AesGcm)),
        ("4231", Some(SealMechanism::AesGcm)),
        ("0x1085", Some(SealMechanism::AesCbcHmac)),
        ("ckm_aes_cbc_pad", Some(SealMechanism::AesCbcHmac)),
        ("9", Some(SealMechanism::RsaOaep)),
        ("0x0009", Some(SealMechanism::RsaOaep)),
        ("CKM_RSA_PKCS_OAEP", Some(SealMechanism::RsaOaep)),
        ("CKM_RSA_PKCS", None),
    ] {
        assert_eq!(SealMechanism::parse(text), mechanism, "{text}");
    }
}

#[test]
fn folders_and_several_files_are_merged_as_vault_does() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("1.hcl", "storage \"inmem\" {} ui = true default_lease_ttl = \"2h\" api_addr = \"a\"");
    write("2.json", r#"{"listener":{"tcp":{"tls_disable":1}},"default_lease_ttl":"1h","api_addr":"b","ui":false}"#);
    write("notes.txt", "not configuration");
    write(".3.hcl.swp.hcl", "broken {");
    let extra = folder.path().join("extra");
    std::fs::write(&extra, "storage \"sled\" { path = \"p\" } listener \"tcp\" { tls_disable = 1 address = \"127.0.0.1:1\" }")
        .unwrap();
    let (config, warnings) = load(&[folder.path().to_path_buf(), extra], &none).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.storage.as_ref().unwrap().kind(), "sled");
    assert_eq!((config.listeners.len(), config.ui, config.api_addr.as_deref()), (2, true, Some("b")));
    assert_eq!(config.default_lease_ttl, Duration::from_secs(7200));

    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(load(&[empty.path().to_path_buf()], &none), Err(ConfigError::EmptyFolder(_))));
    assert!(matches!(load(&["missing.hcl".into()], &none), Err(ConfigError::Read { .. })));
}

#[test]
fn the_development_server_needs_no_file() {
    let (config, _) = load_over(Config::dev("127.0.0.1:8200"), &[], &none).unwrap();
    assert_eq!(config.storage, Some(Storage::Inmem));
    assert!(tcp(&config, 0).tls.is_none());
}

#[test]
fn a_pin_file_must_be_private() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pin");
    std::fs::write(&path, "123456\n").unwrap();
    let text = with(&format!("seal \"pkcs11\" {{ lib = \"x\" slot = 0 pin_file = \"{}\" }}", path.display()));
    let (config, _) = read(&text);
    let mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    let message = config.seals[0].read_pin().unwrap_err().to_string();
    assert!(message.contains("mode 0644") && message.contains("chmod 600"), "{message}");
    mode(0o600);
    assert!(config.seals[0].read_pin().unwrap().unwrap().same_as("123456"));
    std::fs::write(&path, "\n").unwrap();
    assert!(matches!(config.seals[0].read_pin(), Err(PinError::Empty(_))));
}

#[test]
fn an_embedded_store_is_bounded_by_its_stanza() {
    let stanza = |body: &str| format!("storage \"redb\" {{ path = \"/x\"\n{body} }}\nlistener \"tcp\" {{ tls_disable = 1 }}\n");
    let (config, warnings) = read(&stanza("cache_size = \"64MiB\"\ncheck_at_start = \"5s\"\ncompact_above = \"1MiB\""));
    let limits =
        StorageLimits { cache_size: Some(64 << 20), check_at_start: Some(Duration::from_secs(5)), compact_above: Some(1 << 20) };
    assert_eq!(config.storage, Some(Storage::Redb { path: "/x".into(), limits }));
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(refused(&stanza("cache_size = 4096")).contains("cache_size is 4096 bytes, too small"));
    assert!(refused(&stanza("compact_above = 100")).contains("compact_above is 100 bytes"));
    assert!(refused(&stanza("cache_size = \"much\"")).contains("cache_size must be a size"));
}
