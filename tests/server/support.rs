//! A place on disk with its configuration, the server running on it, and requests to that server.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take before the test fails. The machines of tests are slow and shared.
const PATIENCE: Duration = Duration::from_secs(40);

/// A folder with a configuration, a store and perhaps a token; servers come and go on it.
pub struct Place {
    folder: tempfile::TempDir,
    with_hsm: bool,
    /// More environment for the servers.
    pub environment: Vec<(String, String)>,
}

/// Says that a test did not run, past the test harness's capture.
pub fn left_out(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_string();
    let _ = writeln!(std::io::stderr(), "\n*** SERVER TEST LEFT OUT: {name}: {why} ***");
}

/// Shows a figure, past the test harness's capture.
pub fn measured(text: &str) {
    let _ = writeln!(std::io::stderr(), "measured: {text}");
}

/// The SoftHSM module: `SOS_TEST_PKCS11` or Debian's place.
fn softhsm() -> Option<PathBuf> {
    let module = std::env::var_os("SOS_TEST_PKCS11").map_or("/usr/lib/softhsm/libsofthsm2.so".into(), PathBuf::from);
    if module.exists() {
        return Some(module);
    }
    left_out(&format!("no SoftHSM at {} (install softhsm2 or set SOS_TEST_PKCS11)", module.display()));
    None
}

/// The Kryoptic module: `SOS_TEST_KRYOPTIC` or where softhsm/build-modules puts it.
fn kryoptic() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/target/debug/libsos_kryoptic.so");
    std::env::var_os("SOS_TEST_KRYOPTIC").map_or_else(built, PathBuf::from)
}

impl Place {
    /// A sled store under plain Shamir shares.
    pub fn shamir() -> Self {
        Self::shamir_on("sled")
    }

    /// A store of this kind under plain Shamir shares.
    pub fn shamir_on(storage: &str) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap(), with_hsm: false, environment: Vec::new() };
        place.configure(&place.plain_config(storage));
        place
    }

    /// A place whose servers find their files through the library of tests/powercut; rules go to the folder `faults`.
    pub fn behind_faults(storage: &str) -> Option<Self> {
        let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/powercut/debug/libsos_powercut.so");
        let library = std::env::var_os("SOS_TEST_POWERCUT").map_or(library, PathBuf::from);
        if !library.exists() {
            left_out("the library that makes file calls fail is not built (tests/powercut/build)");
            return None;
        }
        let mut place = Self::shamir_on(storage);
        fs::create_dir(place.path("faults")).unwrap();
        place.environment = vec![
            ("LD_PRELOAD".into(), library.display().to_string()),
            ("SOS_POWERCUT_ROOT".into(), place.path("store").display().to_string()),
            ("SOS_POWERCUT_FAULTS".into(), place.path("faults").display().to_string()),
        ];
        Some(place)
    }

    /// A place whose HSM is reached through the proxy module of softhsm/proxy; faults go to the folder `faults`.
    pub fn behind_proxy() -> Option<Self> {
        let proxy = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/target/debug/libsos_pkcs11_proxy.so");
        let proxy = std::env::var_os("SOS_TEST_PROXY").map_or(proxy, PathBuf::from);
        if !proxy.exists() {
            left_out("the proxy module is not built (softhsm/build-modules)");
            return None;
        }
        let mut place = Self::hsm()?;
        fs::create_dir(place.path("faults")).unwrap();
        let real = fs::read_link(place.path("module.so")).unwrap();
        fs::remove_file(place.path("module.so")).unwrap();
        std::os::unix::fs::symlink(proxy, place.path("module.so")).unwrap();
        place.environment = vec![
            ("SOS_PROXY_MODULE".into(), real.display().to_string()),
            ("SOS_PROXY_FAULTS".into(), place.path("faults").display().to_string()),
        ];
        Some(place)
    }

    /// Sets a fault of [`Place::behind_faults`] or [`Place::behind_proxy`], whole or not at all.
    pub fn fault(&self, name: &str, text: &str) {
        fs::write(self.path("fault"), text).unwrap();
        fs::rename(self.path("fault"), self.path("faults").join(name)).unwrap();
    }

    /// Takes a fault back.
    pub fn mend(&self, name: &str) {
        let _ = fs::remove_file(self.path("faults").join(name));
    }

    /// A sled store under the HSM seal, with a token of its own.
    pub fn hsm() -> Option<Self> {
        Self::hsm_on("sled")
    }

    /// A store of this kind under the HSM seal.
    pub fn hsm_on(storage: &str) -> Option<Self> {
        let module = softhsm()?;
        let place = Self { folder: tempfile::tempdir().unwrap(), with_hsm: true, environment: Vec::new() };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/make-token");
        let made = Command::new(script).arg(place.path("hsm")).arg("sos-test").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::os::unix::fs::symlink(module, place.path("module.so")).unwrap();
        place.configure(&format!("{}\n{}", place.plain_config(storage), place.seal_stanza()));
        Some(place)
    }

    /// A sled store under SoftHSM, with Kryoptic configured as second HSM and not enrolled.
    pub fn two_hsms() -> Option<Self> {
        let module = kryoptic();
        if !module.exists() {
            left_out("Kryoptic is not built (softhsm/build-modules)");
            return None;
        }
        let place = Self::hsm()?;
        place.make_kryoptic_token();
        let first = place.seal_stanza().replace("key_label", "name = \"softhsm\" priority = 1 key_label");
        let second = format!(
            "seal \"pkcs11\" {{ name = \"kryoptic\" priority = 2 lib = \"{}\" token_label = \"sos-test\" pin_file = \"{}\" key_label = \"test\" }}",
            module.display(),
            place.path("kryoptic/pin").display()
        );
        place.configure(&format!("{}\n{first}\n{second}\n", place.plain_config("sled")));
        Some(place)
    }

    /// An empty Kryoptic token, in place of the one that was there.
    pub fn make_kryoptic_token(&self) {
        let _ = fs::remove_file(self.path("kryoptic/token.sql"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm/kryoptic/make-token");
        let made = Command::new(script).arg(self.path("kryoptic")).arg(kryoptic()).arg("sos-test").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// Storage and one listener on a free port.
    pub fn plain_config(&self, storage: &str) -> String {
        format!("{}\nlistener \"tcp\" {{ address = \"127.0.0.1:0\" tls_disable = true }}\n", self.storage_stanza(storage))
    }

    pub fn storage_stanza(&self, storage: &str) -> String {
        format!("disable_mlock = true\nstorage {storage:?} {{ path = \"{}\" }}", self.path("store").display())
    }

    pub fn seal_stanza(&self) -> String {
        format!(
            "seal \"pkcs11\" {{ lib = \"{}\" token_label = \"sos-test\" pin_file = \"{}\" key_label = \"test\" }}",
            self.path("module.so").display(),
            self.path("hsm/pin").display()
        )
    }

    /// Writes the configuration file.
    pub fn configure(&self, text: &str) {
        fs::write(self.path("sos.hcl"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The server's command, not started.
    pub fn command(&self) -> Command {
        self.command_of(&["server", &format!("-config={}", self.path("sos.hcl").display())])
    }

    /// `sos` with these arguments and the place's tokens in reach, not started.
    pub fn command_of(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sos"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        if self.with_hsm {
            command.env("SOFTHSM2_CONF", self.path("hsm/softhsm2.conf"));
            command.env("KRYOPTIC_CONF", self.path("kryoptic/token.conf"));
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// Starts a server and waits until it listens; it may be sealed.
    pub fn start(&self) -> Server<'_> {
        self.start_as(self.command())
    }

    /// Starts a server that kills itself when it passes a named point (src/crashpoint.rs).
    pub fn start_to_crash_at(&self, point: &str) -> Server<'_> {
        let mut command = self.command();
        command.env("SOS_CRASH_AT", point);
        self.start_as(command)
    }

    /// The labels of all objects on the token of [`Place::hsm`], sorted.
    pub fn objects(&self) -> Vec<String> {
        // Past the proxy, which takes its time.
        let real = self.environment.iter().find(|(name, _)| name == "SOS_PROXY_MODULE");
        let module = real.map_or_else(|| self.path("module.so"), |(_, module)| module.into());
        self.objects_by(&module, &self.path("hsm/pin"))
    }

    /// The labels of all objects on Kryoptic's token of [`Place::two_hsms`], sorted.
    pub fn objects_on_kryoptic(&self) -> Vec<String> {
        self.objects_by(&kryoptic(), &self.path("kryoptic/pin"))
    }

    fn objects_by(&self, module: &Path, pin: &Path) -> Vec<String> {
        let pin = fs::read_to_string(pin).unwrap();
        let mut command = Command::new("pkcs11-tool");
        command.arg("--module").arg(module).args(["--token-label", "sos-test", "--login", "--pin", pin.trim(), "-O"]);
        command.env("SOFTHSM2_CONF", self.path("hsm/softhsm2.conf")).env("KRYOPTIC_CONF", self.path("kryoptic/token.conf"));
        let done = command.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let shown = String::from_utf8_lossy(&done.stdout).into_owned();
        let label = |line: &str| Some(line.trim().strip_prefix("label:")?.trim().to_owned());
        let mut labels: Vec<String> = shown.lines().filter_map(label).collect();
        labels.sort();
        labels
    }

    /// Starts a server that may have so many descriptors.
    pub fn start_limited(&self, descriptors: u32) -> Server<'_> {
        let plain = self.command();
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(format!("ulimit -n {descriptors}; exec \"$0\" \"$@\""))
            .arg(plain.get_program())
            .args(plain.get_args());
        command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
        self.start_as(command)
    }

    fn start_as(&self, mut command: Command) -> Server<'_> {
        let log = self.path("server.log");
        let before = fs::read_to_string(&log).map_or(0, |text| text.len());
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        let mut server = Server { place: self, child, log, log_start: before, urls: Vec::new(), token: None };
        let wanted = fs::read_to_string(self.path("sos.hcl")).unwrap().matches("listener \"").count();
        let began = Instant::now();
        while server.urls.len() < wanted {
            if let Some(status) = server.child.try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", server.log());
            }
            assert!(began.elapsed() < PATIENCE, "the server does not listen:\n{}", server.log());
            std::thread::sleep(Duration::from_millis(10));
            let text = server.log();
            server.urls = text.lines().filter_map(|line| Some(line.split_once("listening url=")?.1.trim().to_string())).collect();
        }
        server
    }

    /// Runs the server where it must refuse to start; answers what it says.
    pub fn refused(&self) -> String {
        let done = self.command().output().unwrap();
        assert!(!done.status.success(), "the server was expected to refuse this configuration");
        String::from_utf8_lossy(&done.stderr).into_owned()
    }
}

/// A running server; killed when dropped.
pub struct Server<'a> {
    pub place: &'a Place,
    child: Child,
    log: PathBuf,
    log_start: usize,
    /// Where it listens.
    pub urls: Vec<String>,
    /// Sent with every request.
    pub token: Option<String>,
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What init gave out.
pub struct Made {
    pub root: String,
    pub shares: Vec<String>,
}

/// An answer; JSON null where the body is empty or no JSON.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: Value,
    pub text: String,
}

impl Reply {
    /// The error texts, joined.
    pub fn errors(&self) -> String {
        let errors = self.body["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
    }

    #[track_caller]
    pub fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{} {}", self.status, self.text);
        self.body
    }
}

/// One request over a connection of its own.
pub fn request(url: &str, method: &str, path: &str, token: Option<&str>, body: Option<&str>) -> Result<Reply, ureq::Error> {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .timeout_global(Some(PATIENCE))
        .build();
    let mut request = ureq::http::Request::builder().method(method).uri(format!("{url}{path}"));
    if let Some(token) = token {
        request = request.header("X-Vault-Token", token);
    }
    let mut response = config.new_agent().run(request.body(body.unwrap_or_default()).unwrap())?;
    let text = response.body_mut().read_to_string()?;
    Ok(Reply { status: response.status().as_u16(), body: serde_json::from_str(&text).unwrap_or(Value::Null), text })
}

impl Server<'_> {
    pub fn url(&self) -> &str {
        &self.urls[0]
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The time that the server's threads of this name were at work.
    pub fn cpu_of(&self, name: &str) -> Duration {
        let ticks = |stat: String| -> u64 {
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().map(|thread| thread.unwrap().path());
        let named = threads.filter(|thread| fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim() == name));
        let all: u64 = named.filter_map(|thread| fs::read_to_string(thread.join("stat")).ok()).map(ticks).sum();
        // Linux counts a hundred ticks a second towards programs, whatever it counts for itself.
        Duration::from_millis(all * 10)
    }

    /// What this run has logged.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.get(self.log_start..).unwrap_or_default().to_string()
    }

    /// One request with the server's token; a dropped connection stops the test.
    #[track_caller]
    pub fn call(&self, method: &str, path: &str, body: impl Into<Option<Value>>) -> Reply {
        let body = body.into().map(|body| body.to_string());
        match request(self.url(), method, &format!("/v1/{path}"), self.token.as_deref(), body.as_deref()) {
            Ok(reply) => reply,
            Err(error) => panic!("{method} {path}: {error}\n{}", self.log()),
        }
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.call("GET", path, None)
    }

    #[track_caller]
    pub fn put(&self, path: &str, body: Value) -> Reply {
        self.call("PUT", path, body)
    }

    pub fn status(&self) -> Value {
        self.get("sys/seal-status").ok()
    }

    /// Waits until seal-status satisfies `good`.
    #[track_caller]
    pub fn wait(&self, what: &str, good: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let status = self.status();
            if good(&status) {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "never {what}: {status}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    pub fn wait_unsealed(&self) -> Value {
        self.wait("unsealed", |status| status["sealed"] == false)
    }

    #[track_caller]
    pub fn wait_reason(&self, word: &str) -> Value {
        self.wait(word, |status| status["sealed_reason"] == word)
    }

    /// Initialises over HTTP with so many shares, waits until unsealed where an HSM unseals, and keeps the root token.
    #[track_caller]
    pub fn init(&mut self, shares: u32, threshold: u32) -> Made {
        self.init_as(self.place.with_hsm, shares, threshold)
    }

    /// Initialises under plain shares a place whose configuration names no HSM yet, and unseals.
    #[track_caller]
    pub fn init_shamir(&mut self, shares: u32, threshold: u32) -> Made {
        let made = self.init_as(false, shares, threshold);
        self.unseal(&made.shares[..threshold as usize]);
        made
    }

    /// Enters shares.
    #[track_caller]
    pub fn unseal(&self, shares: &[String]) {
        for share in shares {
            self.put("sys/unseal", json!({"key": share})).ok();
        }
        self.wait_unsealed();
    }

    #[track_caller]
    fn init_as(&mut self, hsm: bool, shares: u32, threshold: u32) -> Made {
        self.wait_reason("not-initialized");
        let kind = if hsm { "recovery" } else { "secret" };
        let mut request = json!({});
        request[format!("{kind}_shares")] = shares.into();
        request[format!("{kind}_threshold")] = threshold.into();
        // The HSM's worker may still be starting.
        let began = Instant::now();
        let reply = loop {
            let reply = self.put("sys/init", request.clone());
            if reply.status != 503 || began.elapsed() > PATIENCE {
                break reply.ok();
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let field = if hsm { "recovery_keys_base64" } else { "keys_base64" };
        let made = Made {
            root: reply["root_token"].as_str().unwrap().to_string(),
            shares: reply[field].as_array().unwrap().iter().map(|share| share.as_str().unwrap().to_string()).collect(),
        };
        assert_eq!(made.shares.len(), shares as usize);
        if hsm {
            self.wait_unsealed();
        }
        self.token = Some(made.root.clone());
        made
    }

    /// `sos` as an operator's command against this server.
    pub fn operator(&self, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sos"));
        command.env_clear().env("VAULT_ADDR", self.url()).args(arguments);
        if let Some(token) = &self.token {
            command.env("VAULT_TOKEN", token);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let done = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (done.status.code(), text(&done.stdout), text(&done.stderr))
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and how long the server took to end; it must end well.
    pub fn terminate(mut self) -> Duration {
        self.signal(rustix::process::Signal::TERM);
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "ended with {status}:\n{}", self.log());
                return began.elapsed();
            }
            assert!(began.elapsed() < PATIENCE, "does not end on SIGTERM:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the server has killed itself.
    #[track_caller]
    pub fn wait_crashed(mut self) {
        let began = Instant::now();
        while self.alive() {
            assert!(began.elapsed() < PATIENCE, "the point was not passed:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the log says this.
    #[track_caller]
    pub fn wait_log(&self, words: &str) {
        let began = Instant::now();
        while !self.log().contains(words) {
            assert!(began.elapsed() < PATIENCE, "never {words:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the server ends by itself; how, and its log.
    #[track_caller]
    pub fn wait_ended(mut self) -> (std::process::ExitStatus, String) {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.log());
            }
            assert!(began.elapsed() < PATIENCE, "it does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a request that the server may not live to answer.
    pub fn send(&self, method: &str, path: &str, body: &Value) {
        let _ = request(self.url(), method, &format!("/v1/{path}"), self.token.as_deref(), Some(&body.to_string()));
    }

    /// Whether the process still runs.
    pub fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// The pids of the server and its children.
    pub fn pids(&self) -> Vec<u32> {
        let mut pids = vec![self.pid()];
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
            if parent == Some(self.pid()) {
                pids.push(pid);
            }
        }
        pids
    }

    /// Resident memory in MiB.
    pub fn resident(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
    }

    /// A KV version 2 mount.
    #[track_caller]
    pub fn mount_kv(&self, path: &str) {
        self.put(&format!("sys/mounts/{path}"), json!({"type": "kv", "options": {"version": "2"}})).ok();
    }
}

/// Waits until `good`.
#[track_caller]
pub fn eventually(what: &str, good: impl Fn() -> bool) {
    let began = Instant::now();
    while !good() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends these bytes and reads until the server closes or is silent.
pub fn raw(url: &str, bytes: &[u8]) -> String {
    let mut stream = std::net::TcpStream::connect(url.trim_start_matches("http://")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(bytes);
    exchange(&mut stream)
}

/// Reads one answer.
pub fn exchange(stream: &mut impl Read) -> String {
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count) = stream.read(&mut chunk) {
        if count == 0 {
            break;
        }
        answer.extend_from_slice(&chunk[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}
