use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    barrier::{Barrier, View},
    core::{clock::Clock, request::Operation},
    secret::SecretBytes,
    storage::{self, InMem},
};

const MINUTE: Duration = Duration::from_secs(60);

async fn store() -> (Arc<TokenStore>, Clock, Arc<Barrier>) {
    let clock = Clock::movable();
    let barrier = Arc::new(Barrier::new(Arc::new(InMem::open().unwrap())));
    barrier.initialize(&SecretBytes::new(vec![1; 32]), storage::Txn::new(), Txn::new(), clock.now()).await.unwrap();
    let view = |prefix| View::new(barrier.clone(), prefix).unwrap();
    let store = TokenStore::open(view("sys/token"), view("cubbyhole"), clock.clone()).await.unwrap();
    (store, clock, barrier)
}

async fn wrapped(store: &TokenStore) -> WrapInfo {
    wrap(store, br#"{"data":{"a":1}}"#.to_vec(), Some(404), MINUTE, "kv/a", Some("inner".into())).await.unwrap()
}

#[tokio::test]
async fn an_answer_comes_out_once_and_leaves_nothing() {
    let (store, _, barrier) = store().await;
    let info = wrapped(&store).await;
    assert_eq!((info.ttl, info.creation_path.as_str(), info.wrapped_accessor.as_deref()), (60, "kv/a", Some("inner")));
    let entry = store.lookup(&info.token).unwrap().unwrap();
    assert!(entry.is_wrapping() && entry.num_uses == 1 && !entry.renewable && entry.explicit_max_ttl == 60);
    assert_eq!(lookup(&store, &entry).unwrap().creation_ttl, 60);
    let out = unwrap(&store, &info.token).await.unwrap();
    assert_eq!((out.envelope.as_slice(), out.record.status), (br#"{"data":{"a":1}}"#.as_slice(), Some(404)));
    assert_eq!(unwrap(&store, &info.token).await.unwrap_err().text(), invalid_token().text());
    assert!(barrier.scan("cubbyhole/", None, 10).unwrap().is_empty());
    assert!(barrier.scan("sys/token/id/", None, 10).unwrap().is_empty());
}

#[tokio::test]
async fn of_two_that_unwrap_at_once_one_wins() {
    let (store, _, _) = store().await;
    let info = wrapped(&store).await;
    let (one, two) = tokio::join!(unwrap(&store, &info.token), unwrap(&store, &info.token));
    assert!(one.is_ok() != two.is_ok());
}

#[tokio::test]
async fn wrapped_answers_end_with_their_time() {
    let (store, clock, barrier) = store().await;
    let info = wrapped(&store).await;
    clock.advance(MINUTE);
    assert!(unwrap(&store, &info.token).await.is_err());
    store.sweep(10).await.unwrap();
    assert!(barrier.scan("cubbyhole/", None, 10).unwrap().is_empty());
}

#[tokio::test]
async fn jwts_stand_for_the_token_inside() {
    let (store, _, _) = store().await;
    let info = wrapped(&store).await;
    let jwt = store.wrapping_jwt(&info, "").unwrap();
    assert_eq!(store.lookup(&jwt).unwrap().unwrap().accessor, info.accessor);
    assert!(unwrap(&store, &jwt).await.is_ok());
    assert!(unwrap(&store, &info.token).await.is_err());
}

#[tokio::test]
async fn only_the_signature_of_a_live_token_is_verified() {
    let (store, _, _) = store().await;
    let info = wrapped(&store).await;
    let jwt = store.wrapping_jwt(&info, "").unwrap();
    // The live token inside another one's signature opens nothing.
    let other = store.wrapping_jwt(&wrapped(&store).await, "").unwrap();
    let (claims, signature) = (jwt.expose().rsplit_once('.').unwrap().0, other.expose().rsplit_once('.').unwrap().1);
    let forged = SecretString::new(format!("{claims}.{signature}"));
    assert!(store.lookup(&forged).unwrap().is_none());
    assert_eq!(store.verifications(), 1);
    unwrap(&store, &jwt).await.unwrap();
    let before = store.verifications();
    assert!(store.lookup(&jwt).unwrap().is_none(), "used up");
    let nobodys = WrapInfo { token: SecretString::new("hvs.nobody".into()), ..wrapped(&store).await };
    assert!(store.lookup(&store.wrapping_jwt(&nobodys, "").unwrap()).unwrap().is_none());
    let root = WrapInfo { token: store.create_root(None).await.unwrap(), ..nobodys };
    assert!(store.lookup(&store.wrapping_jwt(&root, "").unwrap()).unwrap().is_none(), "not a wrapping token");
    assert!(store.lookup(&SecretString::new(format!("x.y.{}", "A".repeat(176)))).unwrap().is_none());
    assert_eq!(store.verifications(), before);
}

#[tokio::test]
async fn tokens_are_judged_before_anything_else() {
    let (store, _, _) = store().await;
    let good = wrapped(&store).await.token;
    let root = store.create_root(None).await.unwrap();
    let judge = |own: Option<&SecretString>, body: String| {
        let mut request = Request::internal(Operation::Update, "sys/wrapping/unwrap", body.clone());
        request.token = own.map(SecretString::duplicate);
        let object = RawObject::parse(body.as_bytes()).unwrap();
        named_token(&request, &object)
            .and_then(|token| validate(&store, &token))
            .map_err(|failure| (failure.kind(), failure.text().to_owned()))
    };
    let named = |token: &SecretString| format!("{{\"token\":\"{}\"}}", token.expose());
    assert!(judge(Some(&good), String::new()).is_ok() && judge(Some(&root), named(&good)).is_ok());
    assert_eq!(judge(Some(&root), String::new()).unwrap_err().0, Kind::Invalid);
    assert_eq!(judge(Some(&good), named(&root)).unwrap_err().0, Kind::Invalid);
    let empty = (Kind::Denied, "error validating wrapping token: token is empty".to_owned());
    assert_eq!(judge(None, "{}".into()).unwrap_err(), empty);
    assert_eq!(judge(Some(&good), "{\"token\":\"\"}".into()).unwrap_err().0, Kind::Denied);
}
