//! Clients that wrk cannot be: one that stops at a count, and a crowd that waits for a server to come up.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::Outcome;

type Failed = Box<dyn Error + Send + Sync>;

fn token() -> Result<String, Box<dyn Error>> {
    Ok(std::env::var("VAULT_TOKEN").map_err(|_| "VAULT_TOKEN is not set")?)
}

fn run(work: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// POSTs `body` to `path`, in both of which `{}` stands for a number, until `count` are acknowledged or time is up.
pub fn fill(address: &str, path: &str, body: &str, count: u64, seconds: f64, connections: usize) -> Outcome {
    let token: Arc<str> = token()?.into();
    let next = Arc::new(AtomicU64::new(0));
    run(async {
        let began = Instant::now();
        let end = began + Duration::from_secs_f64(seconds);
        let mut tasks = JoinSet::<Result<u64, Failed>>::new();
        for _ in 0..connections {
            let (address, path, body, token, next) =
                (address.to_owned(), path.to_owned(), body.to_owned(), Arc::clone(&token), Arc::clone(&next));
            tasks.spawn(async move {
                let mut connection = Connection::open(&address).await?;
                let mut done = 0;
                while Instant::now() < end {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let number = number.to_string();
                    let (path, body) = (path.replace("{}", &number), body.replace("{}", &number));
                    match connection.ask("POST", &path, &token, &body).await? {
                        200..300 => done += 1,
                        status => return Err(format!("POST {path}: {status}").into()),
                    }
                }
                Ok(done)
            });
        }
        let mut done = 0;
        while let Some(one) = tasks.join_next().await {
            done += one?.map_err(|error| error.to_string())?;
        }
        Ok(json!({ "written": done, "seconds": began.elapsed().as_secs_f64() }))
    })
}

/// Clients that ask for `path` until they are answered 200, from before the server is there. Times are those of day.
pub fn crowd(address: &str, path: &str, clients: usize, seconds: f64) -> Outcome {
    let token: Arc<str> = token()?.into();
    run(async {
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let (address, path, token) = (address.to_owned(), path.to_owned(), Arc::clone(&token));
            tasks.spawn(async move {
                loop {
                    if let Ok(mut connection) = Connection::open(&address).await {
                        // Sealed answers keep the connection; anything else that is wrong opens a new one.
                        while let Ok(status) = connection.ask("GET", &path, &token, "").await {
                            if status == 200 {
                                return now();
                            }
                            sleep(Duration::from_millis(20)).await;
                        }
                    }
                    sleep(Duration::from_millis(10)).await;
                }
            });
        }
        let mut answered = Vec::new();
        let all = async {
            while let Some(one) = tasks.join_next().await {
                answered.extend(one);
            }
        };
        let _ = timeout(Duration::from_secs_f64(seconds), all).await;
        answered.sort_by(f64::total_cmp);
        Ok(json!({
            "answered": answered.len(),
            "first": answered.first(),
            "median": answered.get(answered.len() / 2),
            "last": answered.last(),
        }))
    })
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// One kept-alive HTTP/1.1 connection.
struct Connection {
    stream: TcpStream,
    host: String,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: &str) -> Result<Self, Failed> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, host: address.to_owned(), buffer: Vec::new() })
    }

    /// Sends a request and reads the whole answer; its status.
    async fn ask(&mut self, method: &str, path: &str, token: &str, body: &str) -> Result<u16, Failed> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nX-Vault-Token: {token}\r\nContent-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.stream.write_all(head.as_bytes()).await?;
        self.buffer.clear();
        let end = loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the connection was closed".into());
            }
            if let Some(at) = self.buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or("no status")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0_usize);
        while self.buffer.len() < end + length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err("the connection was closed".into());
            }
        }
        Ok(status)
    }
}
