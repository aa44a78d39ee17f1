//! Loops without a server: what the crypto library and the disk do by themselves.

use std::{
    io::{Seek, SeekFrom, Write},
    path::Path,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use openssl::{
    ec::{EcGroup, EcKey},
    ecdsa::EcdsaSig,
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    rsa::{Padding, Rsa},
    sign::{RsaPssSaltlen, Signer},
};
use serde_json::json;

use super::Outcome;

/// Signatures per second of each kind and the CPU time of one, on as many threads; each thread has its own copy of the key.
pub fn sign(seconds: f64, threads: usize) -> Outcome {
    let rsa = Rsa::generate(2048)?.private_key_to_der()?;
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let ec = EcKey::generate(&group)?.private_key_to_der()?;
    let ed = PKey::generate_ed25519()?.private_key_to_der()?;
    let rate = |der: &[u8], one: fn(&PKey<Private>) -> Result<usize, openssl::error::ErrorStack>| {
        rate(seconds, threads, || PKey::private_key_from_der(der), one)
    };
    let (rsa, rsa_cpu) = rate(&rsa, rsa_pss)?;
    let (ec, ec_cpu) = rate(&ec, ecdsa)?;
    let (ed, ed_cpu) = rate(&ed, |key| Ok(Signer::new_without_digest(key)?.sign_oneshot_to_vec(&[7; 32])?.len()))?;
    Ok(json!({
        "threads": threads,
        "rsa-2048": rsa,
        "ecdsa-p256": ec,
        "ed25519": ed,
        "cpu_us": { "rsa-2048": rsa_cpu, "ecdsa-p256": ec_cpu, "ed25519": ed_cpu },
    }))
}

/// RSASSA-PSS over SHA-256, the default of Transit.
fn rsa_pss(key: &PKey<Private>) -> Result<usize, openssl::error::ErrorStack> {
    let mut signer = Signer::new(MessageDigest::sha256(), key)?;
    signer.set_rsa_padding(Padding::PKCS1_PSS)?;
    signer.set_rsa_pss_saltlen(RsaPssSaltlen::MAXIMUM_LENGTH)?;
    signer.update(&[7; 32])?;
    Ok(signer.sign_to_vec()?.len())
}

fn ecdsa(key: &PKey<Private>) -> Result<usize, openssl::error::ErrorStack> {
    Ok(EcdsaSig::sign(&[7; 32], &*key.ec_key()?)?.to_der()?.len())
}

/// CPU time of this process so far, in microseconds.
fn cpu_micros() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default().as_secs_f64() * 1e6
}

/// Calls per second of all threads together, and the CPU time of one call in microseconds.
fn rate<K: Send>(
    seconds: f64,
    threads: usize,
    key: impl Fn() -> Result<K, openssl::error::ErrorStack>,
    one: fn(&K) -> Result<usize, openssl::error::ErrorStack>,
) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let start = Barrier::new(threads);
    let end = Duration::from_secs_f64(seconds);
    let before = cpu_micros();
    let rates = thread::scope(|scope| {
        let mut running = Vec::new();
        for _ in 0..threads {
            let key = key()?;
            let start = &start;
            running.push(scope.spawn(move || {
                start.wait();
                let (began, mut done) = (Instant::now(), 0_u32);
                while began.elapsed() < end {
                    std::hint::black_box(one(&key)?);
                    done += 1;
                }
                Ok::<_, openssl::error::ErrorStack>((f64::from(done), f64::from(done) / began.elapsed().as_secs_f64()))
            }));
        }
        let join = |one: thread::ScopedJoinHandle<'_, Result<(f64, f64), _>>| one.join().unwrap_or(Ok((0.0, 0.0)));
        running.into_iter().map(join).collect::<Result<Vec<_>, openssl::error::ErrorStack>>()
    })?;
    let done: f64 = rates.iter().map(|(done, _)| done).sum();
    Ok((rates.iter().map(|(_, rate)| rate).sum(), (cpu_micros() - before) / done.max(1.0)))
}

/// Room that is written before anything is timed, so that no sync has to record a new length.
const ROOM: usize = 8 << 20;

/// Writes of `bytes`, one behind the other in a file that is long enough, each synced: what one writer of a log can
/// be acknowledged at best.
pub fn fsync(dir: &str, bytes: usize, seconds: f64) -> Outcome {
    let path = Path::new(dir).join("fsync-floor");
    let mut file = std::fs::File::create(&path)?;
    file.write_all(&vec![0; ROOM])?;
    file.sync_all()?;
    let data = vec![7; bytes];
    let mut times = Vec::new();
    let (began, mut place) = (Instant::now(), 0);
    while began.elapsed().as_secs_f64() < seconds {
        if place + bytes > ROOM {
            place = 0;
        }
        file.seek(SeekFrom::Start(u64::try_from(place)?))?;
        let one = Instant::now();
        file.write_all(&data)?;
        file.sync_data()?;
        times.push(one.elapsed().as_secs_f64() * 1e3);
        place += bytes;
    }
    let rate = f64::from(u32::try_from(times.len())?) / began.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times.get(times.len() * part / 100).copied();
    Ok(json!({ "per_second": rate, "p50_ms": at(50), "p99_ms": at(99), "bytes": bytes }))
}
