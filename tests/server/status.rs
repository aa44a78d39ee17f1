//! What an operator sees: `sos status`, `sys/sos/status`, `sys/metrics`.

use serde_json::json;

use crate::support::{Place, eventually, request};

#[test]
fn status_and_metrics_tell_what_an_operator_watches() {
    let Some(place) = Place::hsm() else { return };
    let open = "\nlistener \"tcp\" { address = \"127.0.0.1:0\" tls_disable = true telemetry { unauthenticated_metrics_access = true } }\n";
    let backup = format!("backup {{ folder = \"{}\" }}\n", place.path("backups").display());
    place.configure(&format!("{}\n{}{open}{backup}", place.plain_config("sled"), place.seal_stanza()));
    let mut server = place.start();
    let metrics = |server: &crate::support::Server<'_>, listener: usize, token: Option<&str>| {
        request(&server.urls[listener], "GET", "/v1/sys/metrics?format=prometheus", token, None).unwrap()
    };
    // A server that was never initialised shows figures too, on the listener that may.
    let text = metrics(&server, 1, None).text;
    assert!(text.lines().any(|line| line.starts_with("vault_core_unsealed{") && line.ends_with(" 0")), "{text}");
    assert_eq!(metrics(&server, 0, None).status, 503);
    let made = server.init(3, 2);
    eventually("the first scheduled backup", || {
        metrics(&server, 1, None).text.contains("sos_backup_successes_total{") && {
            let text = metrics(&server, 1, None).text;
            text.lines().any(|line| line.starts_with("sos_backup_successes_total{") && line.ends_with(" 1"))
        }
    });
    let text = metrics(&server, 0, Some(&made.root)).text;
    for (name, value) in
        [("vault_core_unsealed", "1"), ("sos_hsm_ready", "1"), ("sos_backup_overdue", "0"), ("sos_transit_worn_versions", "0")]
    {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
        assert_eq!(line.and_then(|line| line.rsplit(' ').next()), Some(value), "{name}: {text}");
    }
    assert!(text.contains("hsm=\"pkcs11\"") && text.contains("sos_store_disk_free_bytes{"), "{text}");
    assert_eq!(metrics(&server, 0, None).status, 403);
    let json = server.get("sys/metrics").ok();
    assert!(
        json["Gauges"].as_array().unwrap().iter().any(|gauge| gauge["Name"] == "sos.hsm.ready" && gauge["Value"] == 1.0),
        "{json}"
    );
    assert_eq!(server.get("sys/metrics?format=other").status, 400);

    let (code, out, err) = server.operator(&["status"], "");
    assert_eq!(code, Some(0), "{err}");
    for part in ["HSM pkcs11", "ready (token sos-test, serial ", "Last Commit", "Disk Free", "Store Key", "term 1", "Last Backup"]
    {
        assert!(out.contains(part), "{part} is missing:\n{out}");
    }
    assert!(err.is_empty() && !out.contains("never") && !out.contains("Restored"), "{out}{err}");
    // Without a token the state of an open server is Vault's and nothing more.
    server.token = None;
    assert_eq!(server.get("sys/sos/status").status, 403);
    let (code, out, _) = server.operator(&["status"], "");
    assert!(code == Some(0) && !out.contains("Disk Free"), "{out}");
    // A token that does not count any more is not passed over in silence.
    server.token = Some("hvs.gone".to_owned());
    let (code, out, err) = server.operator(&["status"], "");
    assert!(code == Some(0) && !out.contains("Disk Free") && err.contains("the server refuses the token"), "{out}{err}");

    server.token = Some(made.root.clone());
    server.put("sys/seal", json!({})).ok();
    server.token = None;
    let sealed = server.get("sys/sos/status").ok();
    assert_eq!((&sealed["sealed_reason"], &sealed["hsms"][0]["state"]), (&json!("sealed-by-operator"), &json!("ready")));
    assert!(sealed.get("store").is_none(), "{sealed}");
    let (code, out, _) = server.operator(&["status"], "");
    assert_eq!(code, Some(2));
    assert!(out.contains("Sealed Reason") && out.contains("HSM pkcs11"), "{out}");
}
