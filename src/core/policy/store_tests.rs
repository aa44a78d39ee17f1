//! Policies in a store in memory.

use super::*;
use crate::{
    barrier::Barrier,
    secret::SecretBytes,
    storage::{self, InMem},
};

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

async fn view() -> View {
    let barrier = Arc::new(Barrier::new(Arc::new(InMem::open().unwrap())));
    let root = SecretBytes::new(vec![7; 32]);
    barrier.initialize(&root, storage::Txn::new(), Txn::new(), NOW).await.unwrap();
    View::new(barrier, "sys/policy").unwrap()
}

async fn store() -> PolicyStore {
    let store = PolicyStore::new(view().await);
    store.install_builtin(NOW).await.unwrap();
    store
}

async fn put(store: &PolicyStore, name: &str, document: &str) -> Result<(), PolicyError> {
    store.put(name, document, WriteOptions::default(), NOW).await
}

const READ_A: &str = r#"path "a" { capabilities = ["read"] }"#;
const LIST_A: &str = r#"path "a" { capabilities = ["list"] }"#;

#[tokio::test]
async fn names_are_folded_and_listed() {
    let store = store().await;
    put(&store, "MiXed", READ_A).await.unwrap();
    for name in ["a/b", "..", ".", "50%/%2f"] {
        put(&store, name, READ_A).await.unwrap();
    }
    let policy = store.get(" MIXED ").unwrap().unwrap();
    assert_eq!((policy.name.as_str(), policy.document.as_str(), policy.version), ("mixed", READ_A, 1));
    assert_eq!(store.list().await.unwrap(), [".", "..", "50%/%2f", "a/b", "default", "mixed"]);
    store.delete("Mixed").await.unwrap();
    store.delete("Mixed").await.unwrap();
    assert_eq!(store.get("mixed").unwrap(), None);
}

#[tokio::test]
async fn builtin_policies_are_protected() {
    let store = store().await;
    assert_eq!(store.get("root").unwrap().unwrap().document, "");
    assert!(store.get("default").unwrap().unwrap().document.contains("auth/token/lookup-self"));
    for name in ["root", "response-wrapping", "ROOT"] {
        let folded = name.to_lowercase();
        let error = put(&store, name, READ_A).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot update \"{folded}\" policy"));
        let error = store.delete(name).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot delete \"{folded}\" policy"));
    }
    assert_eq!(store.delete("default").await.unwrap_err().to_string(), "cannot delete default policy");
    put(&store, "default", READ_A).await.unwrap();
    store.install_builtin(NOW).await.unwrap();
    assert_eq!(store.get("default").unwrap().unwrap().document, READ_A, "a changed default policy stays");
}

#[tokio::test]
async fn a_change_takes_effect_at_once() {
    let store = store().await;
    let capabilities = || store.acl_for(&["default", "p"], None).unwrap().capabilities("a");
    assert_eq!(capabilities(), ["deny"]);
    put(&store, "p", READ_A).await.unwrap();
    assert_eq!(capabilities(), ["read"]);
    put(&store, "p", LIST_A).await.unwrap();
    assert_eq!(capabilities(), ["list"]);
    store.delete("p").await.unwrap();
    assert_eq!(capabilities(), ["deny"]);
}

#[tokio::test]
async fn lists_are_shared_until_something_changes() {
    let store = store().await;
    let first = store.acl_for(&["default"], None).unwrap();
    assert!(Arc::ptr_eq(&first, &store.acl_for(&["default".to_owned()], None).unwrap()));
    store.invalidate();
    assert!(!Arc::ptr_eq(&first, &store.acl_for(&["default"], None).unwrap()));
    assert!(store.acl_for(&["root"], None).unwrap().is_root());
    assert!(!store.acl_for(&["default", "root"], None).unwrap().is_root());
}

#[tokio::test]
async fn identities_have_lists_of_their_own() {
    let store = store().await;
    put(&store, "p", r#"path "x/{{identity.entity.name}}" { capabilities = ["read"] }"#).await.unwrap();
    let mut ann = TemplateIdentity { id: "1".into(), name: "ann".into(), ..Default::default() };
    let may = |identity: Option<&TemplateIdentity>, path| store.acl_for(&["p"], identity).unwrap().capabilities(path);
    assert_eq!(may(Some(&ann), "x/ann"), ["read"]);
    assert_eq!(may(None, "x/ann"), ["deny"]);
    ann.name = "anna".into();
    ann.version += 1;
    assert_eq!(may(Some(&ann), "x/ann"), ["deny"]);
    assert_eq!(may(Some(&ann), "x/anna"), ["read"]);
}

#[tokio::test]
async fn check_and_set() {
    let store = store().await;
    let write = async |cas, cas_required| store.put("p", READ_A, WriteOptions { cas, cas_required }, NOW).await;
    write(Some(0), false).await.unwrap();
    assert!(matches!(write(Some(7), false).await, Err(PolicyError::CasMismatch)));
    assert!(matches!(write(Some(-1), false).await, Err(PolicyError::CasExists)));
    write(Some(1), true).await.unwrap();
    assert!(matches!(write(None, false).await, Err(PolicyError::CasRequired)));
    assert_eq!(store.get("p").unwrap().unwrap().version, 2);
}

#[tokio::test]
async fn a_damaged_policy_refuses_its_holders() {
    let view = view().await;
    let store = PolicyStore::new(view.clone());
    view.commit(Txn::new().put("p", b"{}".to_vec())).await.unwrap();
    assert!(matches!(store.acl_for(&["p"], None), Err(PolicyError::Damaged { .. })));
    assert!(store.acl_for(&["other"], None).is_ok());
}

#[tokio::test]
async fn writes_at_the_same_time_are_all_counted() {
    let store = Arc::new(store().await);
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { put(&store, "p", READ_A).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(store.get("p").unwrap().unwrap().version, 8);
}

#[test]
fn keys_read_back() {
    for name in ["a", "a/b", "a%b", "%2f", "%252f/", ".", "..", "...", "a.b", "%2e"] {
        assert_eq!(name_of(&key_of(name)), name);
        assert!(!key_of(name).contains('/'));
    }
}
