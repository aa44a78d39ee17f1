//! All seeds, and all inputs that were once findings, through the fuzz targets.

use std::path::PathBuf;

use super::TARGETS;

/// The inputs kept for a target.
fn seeds(name: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn replay(name: &str) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let files = seeds(name);
    assert!(files.len() >= 5, "only {} inputs are kept for {name}", files.len());
    for file in &files {
        println!("{name}: {}", file.display());
        target(&std::fs::read(file).unwrap());
    }
    println!("{name}: {} inputs", files.len());
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed_and_has_its_program() {
            let replayed = [$(stringify!($name)),*];
            let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
            assert_eq!(names, replayed);
            for name in names {
                let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets").join(format!("{name}.rs"));
                assert!(std::fs::read_to_string(program).unwrap().contains(&format!("\"{name}\"")));
            }
        }
    };
}

replays! { ciphertext backup imported batch paths bodies hcl tokens records worker snapshots journal files }
