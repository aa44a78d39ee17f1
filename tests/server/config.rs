//! Configuration files: what is wrong is named with its file, line and fix; what is unknown is named in the log.

use crate::support::Place;

#[test]
fn errors_name_file_line_and_fix() {
    let place = Place::shamir();
    let good = place.plain_config("sled");
    for (text, line, fix) in [
        (format!("{good}default_lease_ttl = \"soon\"\n"), 4, "default_lease_ttl"),
        (format!("{good}seal \"pkcs11\" {{\n  lib = \"/x.so\"\n  token_label = \"x\"\n  pin = 1234\n}}\n"), 7, "pin = "),
        ("storage \"raft\" {\n  path = \"/x\"\n}\n".to_string(), 1, "storage \"redb\""),
        (format!("{good}listener \"tcp\" {{\n"), 5, ""),
        (
            format!("{}\nlistener \"tcp\" {{ address = \"127.0.0.1:0\" }}\n", place.storage_stanza("sled")),
            3,
            "tls_disable = true",
        ),
    ] {
        place.configure(&text);
        let said = place.refused();
        let at = format!("sos.hcl:{line}:");
        assert!(said.contains(&at) && said.contains(fix), "expected {at} and {fix:?} in: {said}");
    }
    place.configure("listener \"tcp\" { address = \"127.0.0.1:0\" tls_disable = true }\n");
    assert!(place.refused().contains("storage \"redb\""));
}

#[test]
fn unknown_keys_are_warned_about_by_name() {
    let place = Place::shamir();
    place.configure(&format!("{}defautl_lease_ttl = \"1h\"\ncluster_name = \"here\"\n", place.plain_config("sled")));
    let server = place.start();
    let log = server.log();
    assert!(log.contains("defautl_lease_ttl") && log.contains("sos.hcl:4:"), "{log}");
    assert!(!log.contains("cluster_name"), "{log}");
}

#[test]
fn json_and_a_taken_port() {
    let place = Place::shamir();
    let first = place.start();
    let address = first.url().trim_start_matches("http://").to_string();
    let json = serde_json::json!({
        "storage": {"inmem": {}},
        "disable_mlock": true,
        "listener": {"tcp": {"address": address, "tls_disable": 1}},
    });
    place.configure(&json.to_string());
    let said = place.refused();
    assert!(said.contains(&address) && said.contains("another server"), "{said}");
}

#[test]
fn what_only_shows_at_the_start_names_its_place_too() {
    let place = Place::shamir();
    let file = place.path("sos.hcl").display().to_string();
    for (second, wrong) in [("", "name of its own"), ("name = \"b\"", "same token")] {
        let seal = |more: &str| format!("seal \"pkcs11\" {{ lib = \"/nonexistent.so\" token_label = \"a\" pin = \"1\" {more} }}");
        place.configure(&format!("{}\n{}\n{}\n", place.plain_config("inmem"), seal(""), seal(second)));
        let said = place.refused();
        assert!(said.contains(&format!("{file}:6")) && said.contains(wrong), "{said}");
    }

    place.configure(
        "storage \"inmem\" {}\nlistener \"tcp\" { address = \"127.0.0.1:0\" tls_cert_file = \"/nonexistent.pem\" tls_key_file = \"/nonexistent.key\" }\n",
    );
    let said = place.refused();
    assert!(said.contains(&format!("{file}:2:")) && said.contains("/nonexistent.pem"), "{said}");

    place.configure("listener \"tcp\" { address = \"127.0.0.1:0\" tls_disable = true }\n");
    let said = place.refused();
    assert!(said.contains(&file) && said.contains("no storage is configured"), "{said}");
}
