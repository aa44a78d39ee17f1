//! What the client does when the module misbehaves, through the proxy module (softhsm/build-modules).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki_sys::{CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_KEY_TYPE_INCONSISTENT, CKR_MECHANISM_INVALID};
use sos::hsm::{Client, DownReason, FilePinMemory, Hsm, HsmConfig, HsmError, KeyId, KeyKind, KeySource, Status, WrappedKey};

use crate::support::{Token, back, item, left_out, memory, module_path, ready, status};

/// A SoftHSM token behind the proxy.
pub struct Faulty {
    token: Token,
}

impl Faulty {
    pub fn new() -> Option<Self> {
        let token = Token::softhsm()?;
        let proxy = module_path("SOS_TEST_PROXY", "libsos_pkcs11_proxy.so");
        if !proxy.exists() {
            left_out("the proxy module is not built (softhsm/build-modules)");
            return None;
        }
        fs::create_dir(token.folder.path().join("faults")).unwrap();
        Some(Self { token: Token { folder: token.folder, module: proxy } })
    }

    pub fn config(&self) -> HsmConfig {
        let mut config = self.token.config();
        config.deadline = Duration::from_millis(1000);
        config.environment.push(("SOS_PROXY_MODULE".into(), crate::support::softhsm().unwrap().display().to_string()));
        config.environment.push(("SOS_PROXY_FAULTS".into(), self.token.folder.path().join("faults").display().to_string()));
        config
    }

    fn fault(&self, name: &str) -> PathBuf {
        self.token.folder.path().join("faults").join(name)
    }

    fn set(&self, name: &str, value: &str) {
        fs::write(self.fault(name), value).unwrap();
    }

    fn logins(&self) -> usize {
        self.noted("logins")
    }

    /// How often the proxy has noted something.
    fn noted(&self, what: &str) -> usize {
        fs::read_to_string(self.fault(what)).map_or(0, |text| text.lines().count())
    }

    async fn until_noted(&self, what: &str, times: usize) {
        for _ in 0..500 {
            if self.noted(what) == times {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what} is noted {} times, not {times}", self.noted(what));
    }
}

/// A zone master key and one wrapped key under it.
async fn wrapped_key(hsm: &Client) -> WrappedKey {
    let master = KeyId::random();
    hsm.create_master_key("sos/test/zone/default/v1", master, &[]).await.unwrap();
    hsm.generate_wrapped(master, KeyKind::Aes256).await.unwrap().wrapped.unwrap()
}

async fn encrypt(hsm: &Client, key: &WrappedKey) -> Result<Vec<Vec<u8>>, HsmError> {
    hsm.encrypt(KeySource::Wrapped(key), vec![item(b"text", b"")]).await
}

#[tokio::test]
async fn a_hang_ends_by_the_deadline_and_the_next_call_works() {
    let Some(faulty) = Faulty::new() else { return };
    let hsm = ready(faulty.config()).await;
    let key = wrapped_key(&hsm).await;
    encrypt(&hsm, &key).await.unwrap();
    faulty.set("hang_once", "");
    let started = Instant::now();
    assert!(matches!(encrypt(&hsm, &key).await, Err(HsmError::Timeout)));
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    encrypt(&hsm, &key).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_crash_costs_a_repeatable_call_nothing_but_time() {
    let Some(faulty) = Faulty::new() else { return };
    let hsm = ready(faulty.config()).await;
    let key = wrapped_key(&hsm).await;
    faulty.set("crash_once", "");
    encrypt(&hsm, &key).await.unwrap();
    assert!(!faulty.fault("crash_once").exists());
    encrypt(&hsm, &key).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_is_killed_comes_back() {
    let Some(faulty) = Faulty::new() else { return };
    let hsm = ready(faulty.config()).await;
    let key = wrapped_key(&hsm).await;
    for _ in 0..3 {
        faulty.set("crash_once", "");
        let _ = encrypt(&hsm, &key).await;
    }
    status(&hsm, |status| matches!(status, Status::Ready(_))).await;
    encrypt(&hsm, &key).await.unwrap();
}

#[tokio::test]
async fn single_device_errors_are_tried_again() {
    let Some(faulty) = Faulty::new() else { return };
    let hsm = ready(faulty.config()).await;
    let key = wrapped_key(&hsm).await;
    let generations = faulty.logins();
    faulty.set("device_error_every", "3");
    for _ in 0..30 {
        encrypt(&hsm, &key).await.unwrap();
    }
    fs::remove_file(faulty.fault("device_error_every")).unwrap();
    encrypt(&hsm, &key).await.unwrap();
    eprintln!("logins after single device errors: {}", faulty.logins() - generations);
}

/// SoftHSM says so of an object that another call destroyed after its handle was found.
#[tokio::test]
async fn a_key_that_seems_to_be_another_is_looked_for_again() {
    let Some(faulty) = Faulty::new() else { return };
    let hsm = ready(faulty.config()).await;
    let key = wrapped_key(&hsm).await;
    for rv in [CKR_KEY_TYPE_INCONSISTENT, CKR_KEY_FUNCTION_NOT_PERMITTED] {
        faulty.set("answer_once", &rv.to_string());
        encrypt(&hsm, &key).await.unwrap();
        assert!(!faulty.fault("answer_once").exists());
    }
    // What a key cannot do at all is not tried again.
    faulty.set("answer_once", &CKR_MECHANISM_INVALID.to_string());
    assert!(matches!(encrypt(&hsm, &key).await, Err(HsmError::Unsupported(_))));
}

#[tokio::test]
async fn a_session_limit_makes_the_pool_smaller() {
    let Some(faulty) = Faulty::new() else { return };
    faulty.set("max_sessions", "3");
    let mut config = faulty.config();
    config.max_sessions = Some(16);
    let hsm = ready(config).await;
    let key = wrapped_key(&hsm).await;
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let (hsm, key) = (hsm.clone(), key.clone());
            tokio::spawn(async move { encrypt(&hsm, &key).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn latency_is_hidden_by_sessions() {
    let Some(faulty) = Faulty::new() else { return };
    let mut config = faulty.config();
    config.max_sessions = Some(18);
    let hsm = ready(config).await;
    let key = wrapped_key(&hsm).await;
    encrypt(&hsm, &key).await.unwrap();
    faulty.set("latency_ms", "10");
    let started = Instant::now();
    let calls: Vec<_> = (0..160)
        .map(|_| {
            let (hsm, key) = (hsm.clone(), key.clone());
            tokio::spawn(async move { encrypt(&hsm, &key).await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    // 160 calls of 10 ms are 1.6 s one after the other.
    assert!(started.elapsed() < Duration::from_millis(800), "{:?}", started.elapsed());
}

/// Batches that take longer than a call may, on a module that gets slow after it was fast, with one session at work and with
/// many: they succeed, single calls beside them are answered in time, and the worker lives on.
#[tokio::test]
async fn a_batch_may_take_longer_than_a_call_and_lets_others_through() {
    for (manufacturer, count) in [(None, 700), (Some("Acme HSM"), 4000)] {
        let Some(faulty) = Faulty::new() else { return };
        let mut config = faulty.config();
        if let Some(name) = manufacturer {
            config.environment.push(("SOS_PROXY_MANUFACTURER".into(), name.into()));
        }
        let deadline = config.deadline;
        let hsm = ready(config).await;
        let key = wrapped_key(&hsm).await;
        let text = |at: usize| format!("text {at}").into_bytes();
        let to_encrypt: Vec<_> = (0..count).map(|at| item(&text(at), b"")).collect();
        let ivs: Vec<_> = to_encrypt.iter().map(|item| item.iv).collect();
        // From here on items are thought to be cheap.
        hsm.encrypt(KeySource::Wrapped(&key), (0..2000).map(|_| item(b"text", b"")).collect()).await.unwrap();
        let logins = faulty.logins();
        faulty.set("latency_ms", "3");
        let beside = {
            let (hsm, key) = (hsm.clone(), key.clone());
            tokio::spawn(async move {
                for count in 0.. {
                    if let Err(error) = encrypt(&hsm, &key).await {
                        panic!("single call {count}: {error}");
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        };
        let began = Instant::now();
        let sealed = hsm.encrypt(KeySource::Wrapped(&key), to_encrypt).await.unwrap();
        assert!(began.elapsed() > deadline, "a batch of {count} items is no test: {:?}", began.elapsed());
        let to_decrypt = sealed.iter().zip(ivs).map(|(sealed, iv)| back(sealed, iv, b"")).collect();
        let opened = hsm.decrypt(KeySource::Wrapped(&key), to_decrypt).await.unwrap();
        assert_eq!(opened.len(), count);
        for (at, opened) in opened.iter().enumerate() {
            assert!(opened.as_ref().unwrap().same_as(&text(at)), "{at}");
        }
        assert!(!beside.is_finished(), "a single call beside the batch failed");
        beside.abort();
        assert!(beside.await.unwrap_err().is_cancelled());
        assert_eq!(faulty.logins(), logins, "the worker was replaced");
    }
}

#[tokio::test]
async fn too_many_waiting_calls_are_refused_at_once() {
    let Some(faulty) = Faulty::new() else { return };
    let mut config = faulty.config();
    config.queue = 8;
    let hsm = ready(config).await;
    let key = wrapped_key(&hsm).await;
    encrypt(&hsm, &key).await.unwrap();
    faulty.set("latency_ms", "100");
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (hsm, key) = (hsm.clone(), key.clone());
            tokio::spawn(async move { encrypt(&hsm, &key).await })
        })
        .collect();
    let mut refused = 0;
    for call in calls {
        refused += usize::from(matches!(call.await.unwrap(), Err(HsmError::Timeout)));
    }
    assert!((12..20).contains(&refused), "{refused} refused");
    fs::remove_file(faulty.fault("latency_ms")).unwrap();
    encrypt(&hsm, &key).await.unwrap();
}

#[tokio::test]
async fn a_removed_token_is_noticed_and_taken_up_again() {
    let Some(faulty) = Faulty::new() else { return };
    let hsm = ready(faulty.config()).await;
    let key = wrapped_key(&hsm).await;
    encrypt(&hsm, &key).await.unwrap();
    faulty.set("removed", "");
    assert!(matches!(encrypt(&hsm, &key).await, Err(HsmError::Unavailable { .. })));
    status(&hsm, |status| matches!(status, Status::Down { .. })).await;
    let started = Instant::now();
    assert!(encrypt(&hsm, &key).await.is_err());
    assert!(started.elapsed() < Duration::from_millis(900), "calls on a missing HSM must fail at once");
    fs::remove_file(faulty.fault("removed")).unwrap();
    status(&hsm, |status| matches!(status, Status::Ready(_))).await;
    encrypt(&hsm, &key).await.unwrap();
}

#[tokio::test]
async fn a_token_folder_that_goes_away_and_comes_back() {
    let Some(token) = Token::softhsm() else { return };
    let mut config = token.config();
    config.health_interval = Duration::from_millis(200);
    let hsm = ready(config).await;
    let seal = KeyId::random();
    hsm.create_seal_key("sos/test/seal/root/v1", seal).await.unwrap();
    let secret = sos::secret::SecretBytes::random(32);
    let sealed = hsm.seal(seal, &secret, b"").await.unwrap();
    let (here, away) = (token.folder.path().join("tokens"), token.folder.path().join("away"));
    fs::rename(&here, &away).unwrap();
    let error = hsm.unseal(&sealed, b"").await.unwrap_err();
    assert!(matches!(error, HsmError::Unavailable { .. }), "{error}");
    status(&hsm, |status| matches!(status, Status::Down { .. })).await;
    fs::rename(&away, &here).unwrap();
    status(&hsm, |status| matches!(status, Status::Ready(_))).await;
    assert!(hsm.unseal(&sealed, b"").await.unwrap().same_as(secret.expose()));
}

#[tokio::test]
async fn a_flood_of_bad_ciphertexts_costs_the_others_little() {
    let Some(faulty) = Faulty::new() else { return };
    let hsm = ready(faulty.config()).await;
    let key = wrapped_key(&hsm).await;
    let good = item(b"text", b"");
    let iv = good.iv;
    let sealed = hsm.encrypt(KeySource::Wrapped(&key), vec![good]).await.unwrap().remove(0);
    let logins = faulty.logins();
    let flood: Vec<_> = (0..4)
        .map(|_| {
            let (hsm, key, sealed) = (hsm.clone(), key.clone(), sealed.clone());
            tokio::spawn(async move {
                for _ in 0..200 {
                    let bad = hsm.decrypt(KeySource::Wrapped(&key), vec![back(&sealed, iv, b"bad")]).await.unwrap();
                    assert!(matches!(bad[0], Err(HsmError::BadInput(_))));
                }
            })
        })
        .collect();
    let started = Instant::now();
    for _ in 0..200 {
        let opened = hsm.decrypt(KeySource::Wrapped(&key), vec![back(&sealed, iv, b"")]).await.unwrap();
        assert!(opened[0].as_ref().unwrap().same_as(b"text"));
    }
    let took = started.elapsed();
    for task in flood {
        task.await.unwrap();
    }
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(faulty.logins(), logins, "nobody was logged in again");
}

#[tokio::test]
async fn a_refused_pin_is_not_tried_again_by_the_next_client() {
    let Some(faulty) = Faulty::new() else { return };
    let pin_file = faulty.token.folder.path().join("pin");
    let right = fs::read_to_string(&pin_file).unwrap();
    fs::write(&pin_file, "wrong-pin\n").unwrap();
    let memory_file = faulty.token.folder.path().join("memory");
    for _ in 0..2 {
        let memory = Arc::new(FilePinMemory::open(&memory_file).unwrap());
        let hsm = Client::start(faulty.config(), memory);
        let down = status(&hsm, |status| matches!(status, Status::Down { .. })).await;
        let Status::Down { reason, detail } = down else { unreachable!() };
        assert_eq!(reason, DownReason::PinRefused);
        assert!(!detail.contains("wrong-pin"));
        // Some tries later it is still one login.
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(faulty.logins(), 1);
    }
    let memory = Arc::new(FilePinMemory::open(&memory_file).unwrap());
    let hsm = Client::start(faulty.config(), memory);
    status(&hsm, |status| matches!(status, Status::Down { reason: DownReason::PinRefused, .. })).await;
    fs::write(&pin_file, right).unwrap();
    status(&hsm, |status| matches!(status, Status::Ready(_))).await;
    assert_eq!(faulty.logins(), 2);
}

#[tokio::test]
async fn what_is_missing_is_said_in_a_word() {
    let Some(token) = Token::softhsm() else { return };
    let down = async |config: HsmConfig| {
        let hsm = Client::start(config, memory());
        match status(&hsm, |status| matches!(status, Status::Down { .. })).await {
            Status::Down { reason, detail } => (reason, detail),
            _ => unreachable!(),
        }
    };
    let mut config = token.config();
    config.lib = "/nonexistent/module.so".into();
    assert_eq!(down(config).await.0, DownReason::ModuleMissing);
    let mut config = token.config();
    config.token_label = Some("another".into());
    let (reason, detail) = down(config).await;
    assert_eq!(reason, DownReason::TokenMissing);
    assert!(detail.contains("sos-test"), "the tokens that are there are named: {detail}");
    let mut config = token.config();
    config.pin = sos::hsm::PinSource::Missing;
    assert_eq!(down(config).await.0, DownReason::PinMissing);
    let mut config = token.config();
    config.environment = vec![("SOFTHSM2_CONF".into(), "/nonexistent/softhsm2.conf".into())];
    assert!(matches!(down(config).await.0, DownReason::DeviceError | DownReason::TokenMissing));
    let mut config = token.config();
    config.worker = Some("/nonexistent/sos".into());
    assert_eq!(down(config).await.0, DownReason::DeviceError);
}

#[tokio::test]
async fn a_worker_ends_with_its_client() {
    let Some(token) = Token::softhsm() else { return };
    let mut config = token.config();
    // A worker that notes its process id.
    let (script, note) = (token.folder.path().join("worker"), token.folder.path().join("pid"));
    let text = format!("#!/bin/sh\necho $$ > {}\nexec {} \"$@\"\n", note.display(), env!("CARGO_BIN_EXE_sos"));
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
    config.worker = Some(script);
    let hsm = ready(config).await;
    let process = PathBuf::from("/proc").join(fs::read_to_string(note).unwrap().trim());
    assert!(process.exists());
    drop(hsm);
    for _ in 0..100 {
        if !process.exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the worker outlived its client");
}

/// SoftHSM rewrites its token's file at C_Login: a process that is killed there can leave an empty one.
#[tokio::test]
async fn a_client_that_goes_in_the_middle_of_a_login_lets_it_finish() {
    let Some(faulty) = Faulty::new() else { return };
    faulty.set("login_ms", "400");
    let hsm = Client::start(faulty.config(), memory());
    faulty.until_noted("logins", 1).await;
    assert_eq!(faulty.noted("logged_in"), 0);
    drop(hsm);
    faulty.until_noted("finalized", 1).await;
    assert_eq!(faulty.noted("logged_in"), 1);

    let hsm = Client::start(faulty.config(), memory());
    faulty.until_noted("logins", 2).await;
    assert_eq!(faulty.noted("logged_in"), 1);
    hsm.close().await;
    assert_eq!((faulty.noted("logged_in"), faulty.noted("finalized")), (2, 2), "it is waited for");
    assert!(hsm.find("sos/").await.is_err());
}

#[tokio::test]
async fn a_client_that_goes_in_the_middle_of_calls_lets_them_finish() {
    let Some(faulty) = Faulty::new() else { return };
    let hsm = ready(faulty.config()).await;
    let key = wrapped_key(&hsm).await;
    encrypt(&hsm, &key).await.unwrap();
    faulty.set("latency_ms", "400");
    let began = Instant::now();
    let call = {
        let (hsm, key) = (hsm.clone(), key.clone());
        tokio::spawn(async move { encrypt(&hsm, &key).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    hsm.close().await;
    // C_Finalize waits for the call.
    assert!(began.elapsed() > Duration::from_millis(350), "{:?}", began.elapsed());
    assert_eq!(faulty.noted("finalized"), 1);
    assert!(call.await.unwrap().is_err(), "nobody is left to hand the answer over");
}
