//! A steady load on one server: sends start at a fixed rate, and no send waits for another (an open-loop load).
//!
//! A latency runs from the moment a send was due to the last byte of its answer, so a server that stalls cannot hide
//! the stall. The load runs in a thread of its own beside the test that injects the faults.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::measure::percentile;
use super::{http, messages};

/// A running load.
pub struct Load(JoinHandle<Vec<Answered>>);

/// The result of one send.
#[derive(Debug, Clone)]
struct Answered {
    number: u64,
    due: Instant,
    took: Duration,
    /// Ok for 200 and 201, else a description of the failure.
    outcome: Result<(), String>,
}

/// The latencies of a load, all of whose sends succeeded.
#[derive(Debug, Clone, Copy)]
pub struct Latencies {
    pub count: usize,
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl Load {
    /// Starts to send these numbered messages, `per_second` of them per second.
    pub fn start(server: SocketAddr, numbers: std::ops::Range<u64>, per_second: u32) -> Self {
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(send_all(
                server,
                numbers,
                Duration::from_secs(1) / per_second,
            ))
        };
        Load(std::thread::spawn(run))
    }

    /// Whether all sends have been answered.
    pub fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for the last answer. A failed send fails the test.
    #[track_caller]
    pub fn finish(self) -> Latencies {
        self.finish_each().0
    }

    /// As `finish`; gives also when each message was due to be sent.
    #[track_caller]
    pub fn finish_each(self) -> (Latencies, Vec<(u64, std::time::Instant)>) {
        let answered = self.0.join().expect("the load runs to its end");
        let failed: Vec<_> = answered.iter().filter_map(|one| one.outcome.as_ref().err()).collect();
        assert!(
            failed.is_empty(),
            "{} of {} sends failed, such as: {}",
            failed.len(),
            answered.len(),
            failed[0]
        );
        let times: Vec<_> = answered.iter().map(|one| one.took).collect();
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| percentile(&times, share));
        let due = answered.iter().map(|one| (one.number, one.due.into_std())).collect();
        (Latencies { count: times.len(), p50, p99, max }, due)
    }
}

async fn send_all(server: SocketAddr, numbers: std::ops::Range<u64>, every: Duration) -> Vec<Answered> {
    let idle = Arc::new(Mutex::new(Vec::new()));
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = JoinSet::new();
    for number in numbers {
        let due = tick.tick().await;
        running.spawn(send(server, number, due, Arc::clone(&idle)));
    }
    running.join_all().await
}

type Idle = Arc<Mutex<Vec<TcpStream>>>;

async fn send(server: SocketAddr, number: u64, due: Instant, idle: Idle) -> Answered {
    let body = messages::numbered(number).to_string();
    let request =
        http::encode(server, "POST", "/messages", &[("content-type", "application/json")], body.as_bytes());
    let kept = idle.lock().expect("no task panics with the lock").pop();
    let mut answer = match kept {
        Some(stream) => exchange(stream, &request).await,
        None => Err("no connection".into()),
    };
    if answer.is_err() {
        // No connection was idle, or the server had closed the idle one: open a new one.
        answer = match TcpStream::connect(server).await {
            Ok(stream) => exchange(stream, &request).await,
            Err(e) => Err(format!("cannot connect: {e}")),
        };
    }
    let took = due.elapsed();
    let outcome = answer.and_then(|(stream, answer)| {
        idle.lock().expect("no task panics with the lock").push(stream);
        let good = answer.starts_with("HTTP/1.1 201 ") || answer.starts_with("HTTP/1.1 200 ");
        if good { Ok(()) } else { Err(format!("message {number} after {took:?}: {answer}")) }
    });
    Answered { number, due, took, outcome }
}

/// Sends one request and reads its answer.
async fn exchange(mut stream: TcpStream, request: &[u8]) -> Result<(TcpStream, String), String> {
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    stream.write_all(request).await.map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    while !is_whole(&answer) {
        let read = stream.read_buf(&mut answer).await.map_err(|e| e.to_string())?;
        if read == 0 {
            return Err("the answer is truncated".into());
        }
    }
    String::from_utf8(answer).map(|answer| (stream, answer)).map_err(|e| e.to_string())
}

fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    match length {
        Some(length) => body.len() >= length,
        None => body.ends_with("0\r\n\r\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        for part in ["", "HTTP/1.1 201 Created\r\n", "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{"] {
            assert!(!is_whole(part.as_bytes()), "{part:?}");
        }
        assert!(is_whole(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"));
        assert!(is_whole(b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"));
    }
}
