//! The HSM's worker is not killed in the middle of a call: SoftHSM rewrites its token at each C_Login, and a process that is
//! killed there can leave an empty file. The proxy module notes when a login begins, when it has ended, and C_Finalize.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};

use crate::support::{Place, eventually};

fn count(place: &Place, note: &str) -> usize {
    fs::read_to_string(place.path("faults").join(note)).map_or(0, |text| text.lines().count())
}

/// Logins that began, logins that ended, and ends of the module.
fn counts(place: &Place) -> (usize, usize, usize) {
    (count(place, "logins"), count(place, "logged_in"), count(place, "finalized"))
}

/// A start whose store waits in its opening, and fails when it is [`released`](Stuck::release).
struct Stuck<'a> {
    place: &'a Place,
    server: Child,
}

impl<'a> Stuck<'a> {
    fn start(place: &'a Place) -> Self {
        let settings = place.path("store/conf");
        if !settings.exists() {
            fs::create_dir_all(place.path("store")).unwrap();
            mkfifoat(CWD, &settings, Mode::RUSR | Mode::WUSR).unwrap();
        }
        let server = place.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        Self { place, server }
    }

    fn workers(&self) -> Vec<String> {
        let mut command = Command::new("ps");
        let shown = command.args(["-o", "pid=", "--ppid", &self.server.id().to_string()]).output().unwrap();
        String::from_utf8_lossy(&shown.stdout).split_whitespace().map(str::to_owned).collect()
    }

    /// Answers what the server says and how long it took to end.
    fn release(self) -> (String, Duration) {
        let began = Instant::now();
        drop(OpenOptions::new().write(true).open(self.place.path("store/conf")).unwrap());
        let done = self.server.wait_with_output().unwrap();
        assert!(!done.status.success());
        (String::from_utf8_lossy(&done.stderr).into_owned(), began.elapsed())
    }
}

#[test]
fn starts_that_fail_in_the_middle_of_a_login_leave_the_token_whole() {
    let Some(place) = Place::behind_proxy() else { return };
    place.fault("login_ms", "500");
    for round in 1..=4 {
        let stuck = Stuck::start(&place);
        eventually("the worker logs in", || count(&place, "logins") == round);
        assert_eq!(count(&place, "logged_in"), round - 1, "the login is under way");
        let (said, _) = stuck.release();
        assert!(said.contains("the store cannot be opened"), "{said}");
        assert_eq!(counts(&place), (round, round, round), "{said}");
    }
    place.mend("login_ms");
    fs::remove_file(place.path("store/conf")).unwrap();
    let mut server = place.start();
    server.init(1, 1);
    assert_eq!(server.terminate().as_secs(), 0);
}

#[test]
fn a_login_that_hangs_holds_up_a_failing_start_for_seconds_and_is_killed_then() {
    let Some(place) = Place::behind_proxy() else { return };
    place.fault("hang_login", "");
    let stuck = Stuck::start(&place);
    eventually("the worker logs in", || count(&place, "logins") == 1);
    let workers = stuck.workers();
    assert_eq!(workers.len(), 1, "{workers:?}");
    let (said, took) = stuck.release();
    assert!(took < Duration::from_secs(9), "{took:?}");
    assert!(said.contains("the HSM's worker hangs and is killed"), "{said}");
    eventually("the worker is gone", || workers.iter().all(|pid| !Path::new("/proc").join(pid).exists()));
    assert_eq!(counts(&place), (1, 0, 0));
}

#[test]
fn a_server_that_is_killed_or_stopped_leaves_no_login_half_done() {
    let Some(place) = Place::behind_proxy() else { return };
    place.fault("login_ms", "1500");
    let server = place.start();
    eventually("the worker logs in", || count(&place, "logins") == 1);
    assert_eq!(count(&place, "logged_in"), 0, "the login is under way");
    server.kill();
    eventually("the orphan finishes and ends", || counts(&place) == (1, 1, 1));

    let server = place.start();
    eventually("the worker logs in", || count(&place, "logins") == 2);
    assert_eq!(count(&place, "logged_in"), 1, "the login is under way");
    server.terminate();
    assert_eq!(counts(&place), (2, 2, 2), "it is waited for");
}

#[test]
fn a_start_that_cannot_listen_leaves_the_hsm_alone() {
    let Some(place) = Place::behind_proxy() else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = fs::read_to_string(place.path("sos.hcl")).unwrap();
    place.configure(&config.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string()));
    let said = place.refused();
    assert!(said.contains("cannot listen"), "{said}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(counts(&place), (0, 0, 0));
}
