//! Zones over HTTP.

use serde_json::json;

use crate::support::Place;

#[test]
fn made_listed_rotated_and_used() {
    let Some(place) = Place::hsm() else { return };
    let mut server = place.start();
    server.init(1, 1);
    let often = server.put("sys/sos/zones/tk1a", json!({"rotation_period": "1s"}));
    assert!(often.status == 400 && often.errors().contains("an hour or more"), "{}", often.text);
    server.put("sys/sos/zones/tk1a", json!({"rotation_period": "8760h"})).ok();
    assert_eq!(server.put("sys/sos/zones/tk1a", json!({})).ok()["data"]["current_version"], 1);
    assert_eq!(server.put("sys/sos/zones/-bad", json!({})).status, 404, "no such path");
    assert_eq!(server.get("sys/sos/zones/none").status, 404);
    let names = server.call("LIST", "sys/sos/zones", None).ok();
    assert_eq!(names["data"]["keys"], json!(["default", "tk1a"]));

    let zone = server.get("sys/sos/zones/tk1a").ok();
    assert_eq!((&zone["data"]["current_version"], &zone["data"]["rotation_period"]), (&json!(1), &json!(31536000)));
    assert_eq!(zone["data"]["versions"]["1"]["escrow"], true);
    server.put("sys/sos/zones/tk1a/rotate", json!({})).ok();
    assert_eq!(server.get("sys/sos/zones/tk1a").ok()["data"]["current_version"], 2);

    assert_eq!(server.put("sys/mounts/t", json!({"type": "transit", "options": {"zone": "unknown"}})).status, 400);
    server.put("sys/mounts/t", json!({"type": "transit", "options": {"zone": "tk1a"}})).ok();

    // An empty mount can be taken to another zone; one with keys stays where its keys are wrapped.
    for zone in ["default", "tk1a", "default"] {
        server.put("sys/mounts/t/tune", json!({"options": {"zone": zone}})).ok();
    }
    server.put("t/keys/k", json!({"protection_level": "software"})).ok();
    assert_eq!(server.get("t/keys/k").ok()["data"]["zone"], "default");
    let refused = server.put("sys/mounts/t/tune", json!({"options": {"zone": "tk1a"}}));
    assert!(refused.status == 400 && refused.errors().contains("make a new mount"), "{}", refused.text);
    server.put("sys/mounts/t/tune", json!({"options": {"protection": "software"}})).ok();
    server.put("sys/mounts/t/tune", json!({"options": {"zone": "default"}})).ok();
    assert_eq!(server.get("t/keys/k").ok()["data"]["zone"], "default");

    // It takes sudo.
    let policy = r#"path "sys/sos/zones/*" { capabilities = ["create", "read", "update", "list"] }"#;
    server.put("sys/policies/acl/zones", json!({"policy": policy})).ok();
    let child = server.put("auth/token/create", json!({"policies": ["zones"]})).ok();
    server.token = Some(child["auth"]["client_token"].as_str().unwrap().into());
    assert_eq!(server.get("sys/sos/zones/tk1a").status, 403);
}
