//! The store's files give back the room of what was overwritten and deleted, under load and after it, and keep every
//! acknowledged write meanwhile.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Place, Server};

const PATIENCE: Duration = Duration::from_secs(60);

/// Names and the last acknowledged number of each.
type Acknowledged = BTreeMap<String, usize>;

/// The most that a store's files may take whatever they hold: each of the journal's two files up to 32 MiB, and some more.
const AT_MOST: u64 = 72 << 20;

/// Bytes of the records' files and of the journal.
fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).map(|entries| entries.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries.iter().map(|entry| entry.path()).map(|path| if path.is_dir() { bytes_in(&path) } else { size(&path) }).sum()
}

/// A file may go while it is looked at; the reserve for a full disk is none of the records.
fn size(file: &Path) -> u64 {
    if file.ends_with("reserve") { 0 } else { file.metadata().map_or(0, |found| found.len()) }
}

fn write(server: &Server<'_>, name: &str, number: usize) {
    server.put(name, json!({"number": number, "filling": "z".repeat(4000)})).ok();
}

#[track_caller]
fn all_there(server: &Server<'_>, acknowledged: &Acknowledged, when: &str) {
    for (name, number) in acknowledged {
        let reply = server.get(name);
        assert_eq!((reply.status, &reply.body["data"]["number"]), (200, &json!(number)), "{when}: {name}: {}", reply.text);
    }
}

/// Does something with each name by four clients at once.
fn by_four(names: &[String], each: impl Fn(&str) + Sync) {
    let each = &each;
    std::thread::scope(|scope| {
        for quarter in names.chunks(names.len().div_ceil(4)) {
            scope.spawn(move || quarter.iter().for_each(|name| each(name)));
        }
    });
}

/// Writes, overwrites and deletes by four clients, and deletes `many` meanwhile, until the files were written anew and a
/// little longer.
fn load_until_compacted(server: &Server<'_>, many: &[String], acknowledged: &mut Acknowledged) {
    let done = AtomicBool::new(false);
    let client = |client: usize| {
        let mut kept = Acknowledged::new();
        for number in 0.. {
            let name = format!("kv/stays-{client}-{}", number % 12);
            write(server, &name, number);
            kept.insert(name, number);
            let passing = format!("kv/goes-{client}-{number}");
            write(server, &passing, number);
            server.call("DELETE", &passing, None).ok();
            if done.load(Ordering::Relaxed) {
                break;
            }
        }
        kept
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|number| scope.spawn(move || client(number))).collect();
        by_four(many, |name| drop(server.call("DELETE", name, None).ok()));
        let until = Instant::now() + PATIENCE;
        let in_use = || server.log().contains("written anew and in use");
        while !in_use() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(300));
        done.store(true, Ordering::Relaxed);
        assert!(in_use(), "the files are not written anew under load\n{}", server.log());
        clients.into_iter().for_each(|client| acknowledged.extend(client.join().unwrap()));
    });
}

fn files_shrink_and_keep_everything(storage: &str) {
    let place = Place::shamir();
    let bounded = place.plain_config(storage).replace("\" }", "\" compact_above = \"256KiB\" }");
    place.configure(&bounded);
    let mut server = place.start();
    let made = server.init_shamir(1, 1);
    server.put("sys/mounts/kv", json!({"type": "kv", "options": {"version": "1"}})).ok();
    let mut acknowledged = Acknowledged::new();
    let many: Vec<String> = (0..600).map(|number| format!("kv/many-{number}")).collect();
    by_four(&many, |name| write(&server, name, 1));
    load_until_compacted(&server, &many, &mut acknowledged);
    all_there(&server, &acknowledged, "after the load");

    // After the load: nobody writes any more, and the files shrink to what is left.
    by_four(&many, |name| write(&server, name, 2));
    let full = bytes_in(&place.path("store"));
    by_four(&many, |name| drop(server.call("DELETE", name, None).ok()));
    let until = Instant::now() + PATIENCE;
    while bytes_in(&place.path("store")) * 2 > full.max(8 << 20) {
        assert!(Instant::now() < until, "{full} bytes became {}\n{}", bytes_in(&place.path("store")), server.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    all_there(&server, &acknowledged, "after the files have shrunk");
    drop(server);

    let mut server = place.start();
    server.unseal(&made.shares);
    server.token = Some(made.root);
    all_there(&server, &acknowledged, "after a restart");
    assert_eq!(server.get("kv/many-7").status, 404);
}

#[test]
fn files_of_sled_shrink_and_keep_everything() {
    files_shrink_and_keep_everything("sled");
}

#[test]
fn files_of_redb_shrink_and_keep_everything() {
    files_shrink_and_keep_everything("redb");
}

/// A few secrets overwritten without a pause, which never are more than the journal keeps from redb: its files are looked at
/// meanwhile, after a kill, and when nobody writes any more.
fn overwriting_does_not_grow_the_files(storage: &str) {
    let place = Place::shamir();
    place.configure(&place.plain_config(storage));
    let mut server = place.start();
    let made = server.init_shamir(1, 1);
    server.put("sys/mounts/kv", json!({"type": "kv", "options": {"version": "1"}})).ok();
    let (written, most) = (AtomicU64::new(0), AtomicU64::new(0));
    let filling = "z".repeat(200_000);
    let client = |client: u64| {
        let mut acknowledged = Acknowledged::new();
        for number in 0.. {
            if written.fetch_add(1, Ordering::Relaxed) >= 600 {
                break;
            }
            let name = format!("kv/over-{client}");
            server.put(&name, json!({"number": number, "filling": filling})).ok();
            acknowledged.insert(name, number);
            most.fetch_max(bytes_in(&place.path("store")), Ordering::Relaxed);
        }
        acknowledged
    };
    let client = &client;
    let acknowledged: Acknowledged = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|number| scope.spawn(move || client(number))).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let most = most.into_inner();
    assert!(most < AT_MOST, "{storage}: the files took {most} bytes while 120 MB were written over the same four secrets");
    server.kill();

    let mut server = place.start();
    server.unseal(&made.shares);
    server.token = Some(made.root);
    all_there(&server, &acknowledged, "after a kill");
    let until = Instant::now() + PATIENCE;
    // redb's own file, two files of a calm journal, and some more.
    while bytes_in(&place.path("store")) > 16 << 20 {
        assert!(Instant::now() < until, "{storage}: {} bytes in a calm store", bytes_in(&place.path("store")));
        std::thread::sleep(Duration::from_millis(50));
    }
    all_there(&server, &acknowledged, "when it is calm");
}

#[test]
fn overwriting_does_not_grow_the_files_of_sled() {
    overwriting_does_not_grow_the_files("sled");
}

#[test]
fn overwriting_does_not_grow_the_files_of_redb() {
    overwriting_does_not_grow_the_files("redb");
}
