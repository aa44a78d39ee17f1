//! Who may delete a Transit key whose own record is damaged: whether its deletion is allowed cannot be read any more.

use serde_json::{Value, json};

use super::{
    envelope::Answer,
    request::{Operation, Request},
    testing::unsealed_core,
};
use crate::{secret::SecretString, storage};

#[tokio::test]
async fn a_damaged_key_is_deleted_by_who_has_sudo_on_its_path() {
    let core = unsealed_core().await;
    let root = core.active().unwrap().tokens.create_root(None).await.unwrap();
    let ask = async |token: &SecretString, operation: Operation, path: &str, body: Value| -> Answer {
        let mut request = Request::internal(operation, path, body.to_string());
        request.token = Some(token.duplicate());
        core.handle(request).await
    };
    let said = |answer: &Answer| String::from_utf8(answer.body.clone()).unwrap();
    assert_eq!(ask(&root, Operation::Update, "sys/mounts/t", json!({ "type": "transit" })).await.status, 204);
    assert_eq!(ask(&root, Operation::Update, "t/keys/k", json!({})).await.status, 200);
    let path = core.barrier.scan("logical/", None, 100).unwrap();
    let path = path.into_iter().map(|(path, _)| path).find(|path| path.ends_with("/key/k")).unwrap();
    core.barrier.raw().commit(storage::Txn::new().put(path, b"rotten".to_vec())).await.unwrap();
    // The key is in memory as it was: a change looks at it anew.
    assert_eq!(ask(&root, Operation::Update, "t/keys/k/rotate", json!({})).await.status, 500);
    let mut tokens = Vec::new();
    for (name, more) in [("may", ""), ("sudo", ", \"sudo\"")] {
        let policy = format!("path \"t/keys/*\" {{ capabilities = [\"delete\", \"read\"{more}] }}");
        ask(&root, Operation::Update, &format!("sys/policies/acl/{name}"), json!({ "policy": policy })).await;
        let made = ask(&root, Operation::Update, "auth/token/create", json!({ "policies": [name] })).await;
        let made: Value = serde_json::from_slice(&made.body).unwrap();
        tokens.push(SecretString::new(made["auth"]["client_token"].as_str().unwrap().to_owned()));
    }
    let [may, sudo] = tokens.as_slice() else { panic!() };
    let refused = ask(may, Operation::Delete, "t/keys/k", json!({})).await;
    assert!(refused.status == 500 && said(&refused).contains("capability sudo"), "{}", said(&refused));
    assert_eq!(ask(&root, Operation::List, "t/keys/", json!({})).await.status, 200, "it is still there");
    let deleted = ask(sudo, Operation::Delete, "t/keys/k", json!({})).await;
    assert!(deleted.status == 200 && said(&deleted).contains("1 versions"), "{}", said(&deleted));
    assert_eq!(ask(sudo, Operation::Read, "t/keys/k", json!({})).await.status, 404);
    assert!(core.barrier.scan("logical/", None, 100).unwrap().iter().all(|(path, _)| !path.contains("/material/")));
}
