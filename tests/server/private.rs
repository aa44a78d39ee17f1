//! Nothing that the server writes is for others, and nobody dumps its memory or its worker's.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Place, eventually, left_out, request};

/// A server whose log goes where its configuration says; killed when dropped.
struct Running {
    child: Child,
    url: String,
    token: Option<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    fn start(mut command: Command, log: &Path) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let url = || {
            let text = fs::read_to_string(log).ok()?;
            text.lines().find_map(|line| Some(format!("http://{}", line.split_once("listening url=http://")?.1.trim())))
        };
        let mut running = Self { child, url: String::new(), token: None };
        eventually("the server listens", || url().is_some());
        running.url = url().unwrap();
        running
    }

    #[track_caller]
    fn put(&self, path: &str, body: Value) -> Value {
        let text = body.to_string();
        request(&self.url, "PUT", &format!("/v1/{path}"), self.token.as_deref(), Some(&text)).unwrap().ok()
    }

    fn unsealed(&self) -> bool {
        request(&self.url, "GET", "/v1/sys/health", None, None).unwrap().status == 200
    }

    /// Initialises with one share and waits until it serves.
    fn init(&mut self, with_hsm: bool) {
        let kind = if with_hsm { "recovery" } else { "secret" };
        let shares = json!({format!("{kind}_shares"): 1, format!("{kind}_threshold"): 1});
        let made = std::cell::RefCell::new(Value::Null);
        eventually("init", || {
            let reply = request(&self.url, "PUT", "/v1/sys/init", None, Some(&shares.to_string())).unwrap();
            made.replace(reply.body);
            reply.status == 200
        });
        let made = made.into_inner();
        if !with_hsm {
            self.put("sys/unseal", json!({"key": made["keys_base64"][0]}));
        }
        eventually("unsealed", || self.unsealed());
        self.token = Some(made["root_token"].as_str().unwrap().to_owned());
    }
}

/// Every file and folder below, itself included, with its mode.
fn modes(path: &Path, found: &mut Vec<(PathBuf, u32)>) {
    let about = fs::symlink_metadata(path).unwrap();
    if about.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            modes(&entry.unwrap().path(), found);
        }
    }
    found.push((path.to_owned(), about.permissions().mode() & 0o7777));
}

#[test]
fn whatever_the_umask_files_are_for_the_server_alone() {
    for storage in ["sled", "redb"] {
        let hsm = Place::hsm_on(storage);
        let with_hsm = hsm.is_some();
        let place = hsm.unwrap_or_else(|| Place::shamir_on(storage));
        // All that the server writes goes below a folder that is there already, open to all.
        let root = place.path("written");
        fs::create_dir(&root).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
        let at = |name: &str| root.join(name).display().to_string();
        let seal = if with_hsm { place.seal_stanza() } else { String::new() };
        place.configure(&format!(
            "disable_mlock = true\nstorage {storage:?} {{ path = {:?} }}\nlistener \"tcp\" {{ address = \"127.0.0.1:0\" tls_disable = true }}\n\
             listener \"unix\" {{ address = {:?} }}\nbackup {{ folder = {:?} interval = \"1s\" }}\npid_file = {:?}\nlog_file = {:?}\n\
             audit_paths = [{:?}]\n{seal}\n",
            at("data/store"),
            at("socket"),
            at("backups/made"),
            at("pid"),
            at("log"),
            root.display().to_string(),
        ));
        let plain = place.command();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "umask 000; exec \"$0\" \"$@\""]).arg(plain.get_program()).args(plain.get_args());
        command.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let mut server = Running::start(command, &root.join("log"));
        server.init(with_hsm);
        server.put("sys/audit/file", json!({"type": "file", "options": {"file_path": at("audit/lines")}}));
        server.put("sys/mounts/kv", json!({"type": "kv"}));
        // So large that sled gives it a file of its own.
        server.put("kv/large", json!({"x": "y".repeat(600_000)}));
        let backups = root.join("backups/made");
        eventually("a backup", || fs::read_dir(&backups).is_ok_and(|mut entries| entries.next().is_some()));
        let mut found = Vec::new();
        modes(&root, &mut found);
        let open: Vec<_> = found.iter().filter(|(path, mode)| mode & 0o077 != 0 && *path != root).collect();
        assert!(open.is_empty(), "{storage}: open to others: {open:?}");
        let stored = if storage == "sled" { "data/store/db" } else { "data/store/sos.redb" };
        for name in [stored, "socket", "backups/made", "pid", "log", "audit/lines"] {
            assert!(found.iter().any(|(path, _)| *path == root.join(name)), "{storage} has no {name}: {found:?}");
        }
    }
}

#[test]
fn a_store_that_others_can_look_into_is_warned_of() {
    let place = Place::shamir();
    fs::create_dir(place.path("store")).unwrap();
    fs::set_permissions(place.path("store"), fs::Permissions::from_mode(0o755)).unwrap();
    let server = place.start();
    let log = server.log();
    assert!(log.contains("others can look into the store's folder") && log.contains("0755"), "{log}");
}

/// Whose `/proc/PID/environ` it is: root's for a process that must not be dumped, else its own user's.
fn owner_of_memory(pid: u32) -> u32 {
    fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid()
}

fn children_of(pid: u32) -> Vec<u32> {
    let parent = |pid: &u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<u32>().ok())
    };
    let all = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    all.filter(|child| parent(child) == Some(pid)).collect()
}

fn give(path: &Path, user: u32) {
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path(), user));
    }
    std::os::unix::fs::lchown(path, Some(user), Some(user)).unwrap();
}

#[test]
fn neither_the_server_nor_its_worker_can_be_dumped() {
    const NOBODY: u32 = 65534;
    let Some(place) = Place::hsm() else { return };
    place.configure(&format!(
        "{}\n{}\nlog_file = \"{}\"",
        place.plain_config("sled"),
        place.seal_stanza(),
        place.path("log").display()
    ));
    let is_root = rustix::process::getuid().is_root();
    let plain = place.command();
    let mut command = Command::new(plain.get_program());
    let mut sleeper = Command::new("sleep");
    sleeper.arg("60");
    if is_root {
        // What belongs to root does so either way: the difference shows with another user, who may not reach the build's folder.
        let program = place.path("sos");
        fs::copy(plain.get_program(), &program).unwrap();
        command = Command::new(program);
        give(&place.path("."), NOBODY);
        command.uid(NOBODY).gid(NOBODY);
        sleeper.uid(NOBODY).gid(NOBODY);
    }
    command.args(plain.get_args()).env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut ordinary = sleeper.spawn().unwrap();
    let own = owner_of_memory(ordinary.id());
    ordinary.kill().unwrap();
    ordinary.wait().unwrap();
    if own == 0 {
        return left_out("this user's processes cannot be told from root's");
    }
    let mut server = Running::start(command, &place.path("log"));
    server.init(true);
    let workers = children_of(server.child.id());
    assert!(!workers.is_empty(), "the worker was not found");
    for pid in workers.into_iter().chain([server.child.id()]) {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
        assert_eq!(owner_of_memory(pid), 0, "{}", fs::read_to_string(format!("/proc/{pid}/status")).unwrap());
    }
}
