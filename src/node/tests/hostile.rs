//! What messages that are nearly right may do to a node. Each is made of a seed, which a failure names.

use fastrand::Rng;

use super::*;
use crate::chain::filter::Filter;
use crate::chain::members::{MEMBERS_MAX, Member, MemberId};
use crate::chain::record::EntryBody;
use crate::store::history::listing::Listing;

const SEEDS: u64 = 40;
const REQUESTS: u64 = 50;
const EXCHANGES: u64 = 30;
/// An answer takes milliseconds; a machine that is busy with other tests needs longer.
const ANSWER_MAX: std::time::Duration = std::time::Duration::from_secs(5);

fn any_seq(rng: &mut Rng) -> u64 {
    let edge = [1, 2, 20, 39, 40, 41, 60, 1_024, 1_025, u64::MAX - 1, u64::MAX];
    if rng.bool() { rng.u64(1..64) } else { edge[rng.usize(..edge.len())] }
}

fn any_type(rng: &mut Rng) -> LogType {
    if rng.u8(..4) > 0 {
        return LogType::MESSAGES;
    }
    LogType { is_control: rng.bool(), is_branch: rng.bool(), keep_days: rng.u16(..3) }
}

fn any_origin(rng: &mut Rng, own: Origin) -> Origin {
    [own, X, origin(rng.u16(..20))][rng.usize(..3)]
}

/// The true hash or another one.
fn any_hash(rng: &mut Rng, log: &Log, seq: u64) -> ChainHash {
    if rng.bool() && seq <= 60 { log.head(seq).hash } else { ChainHash([rng.u8(..4); 32]) }
}

fn any_heads(rng: &mut Rng, own: Origin, log: &Log) -> (Heads, [u8; 16]) {
    let mut vector = Vector::default();
    for _ in 0..rng.usize(..6) {
        let (origin, log_type) = (any_origin(rng, own), any_type(rng));
        let (one, other) = (any_seq(rng), any_seq(rng));
        let floor = match rng.u8(..3) {
            0 => Head { seq: one.min(other), hash: any_hash(rng, log, one.min(other)) },
            _ => Head::genesis(origin, log_type),
        };
        let head = Head { seq: one.max(other), hash: any_hash(rng, log, one.max(other)) };
        vector.insert(origin, LogSpan { log_type, floor, head });
    }
    if rng.u8(..3) == 0 {
        let (origin, seq) = (any_origin(rng, own), any_seq(rng));
        let before = vector.head(origin).filter(|head| head.seq < seq);
        vector.cut(origin, seq, before);
    }
    let base = (rng.u8(..4) == 0).then_some([rng.u8(..2); 16]);
    let digest = if rng.u8(..4) == 0 { [1; 16] } else { short(vector.digest()) };
    (Heads { base, changes: vector.iter().collect(), cuts: vector.cuts().collect() }, digest)
}

/// A part of the log X as its owner has it, with a change or two.
fn any_run(rng: &mut Rng, own: Origin, log: &Log) -> Run {
    let first = rng.u64(1..=60);
    let mut run = log.run(first, rng.u64(first..=60));
    if rng.u8(..3) == 0 {
        run.origin = any_origin(rng, own);
    }
    (run.log_type, run.before.hash) = (any_type(rng), any_hash(rng, log, first - 1));
    if rng.u8(..6) == 0 {
        run.before.seq = any_seq(rng).min(u64::MAX - 100);
    }
    if rng.u8(..4) == 0 {
        run.before = Head::genesis(run.origin, run.log_type);
    }
    let (origin, log_type, altered) = (run.origin, run.log_type, rng.usize(..run.entries.len()));
    for (at, entry) in run.entries.iter_mut().enumerate() {
        let seq = run.before.seq + 1 + at as u64;
        let (mut key, mut account) = (EntryKey { origin, seq, ..entry.key() }, String::new());
        let (mut kind, mut content) = (entry.kind(), entry.content().to_vec());
        if at == altered {
            match rng.u8(..6) {
                0 => kind = EntryKind::of(rng.u8(1..)).expect("a kind"),
                1 => key.stamp = Stamp([0, 1, u64::MAX, STAMP][rng.usize(..4)]),
                2 => account = "é".repeat(rng.usize(..=65)),
                3 => content = vec![rng.u8(..); rng.usize(..200)],
                4 => content = super::content(rng.u128(..60), "forged"),
                _ => {}
            }
        }
        let body =
            EntryBody { kind, account: &account, digest: Digest::of(kind, &content), content: &content };
        *entry = Entry::encode(key, log_type, &body);
    }
    run
}

fn any_members(rng: &mut Rng) -> Vec<(MemberId, Member)> {
    let member = |rng: &mut Rng| {
        let id = MemberId { node_id: rng.u16(..), store_id: [rng.u8(..); 16] };
        let address = ["127.0.0.1:9", "", "no address", "[::1]:65535"][rng.usize(..4)].to_owned();
        let incarnation_id = [[0; 16], [1; 16], [0xff; 16]][rng.usize(..3)];
        (id, Member { incarnation_id, forget_count: rng.u16(..), address })
    };
    (0..rng.usize(..40)).map(|_| member(rng)).collect()
}

fn any_message(rng: &mut Rng, own: Origin, log: &Log) -> SyncMessage {
    let mut hello = hello(rng.u16(2..6));
    hello.is_guest = rng.u8(..5) == 0;
    hello.incarnation_id = [[0; 16], [1; 16], [0xff; 16]][rng.usize(..3)];
    let mut request = SyncMessage::quiet(hello, [0; 16], rng.u64(..));
    if rng.bool() {
        let (heads, digest) = any_heads(rng, own, log);
        (request.heads, request.digest) = (Some(heads), digest);
    }
    (request.need_full, request.wants_any, request.more) = (rng.bool(), rng.bool(), rng.bool());
    request.entries_only = rng.u8(..4) == 0;
    request.own = rng.bool().then(|| any_origin(rng, own));
    request.budget = rng.bool().then(|| [0, 1, u32::MAX][rng.usize(..3)]);
    for _ in 0..rng.usize(..8) {
        let (one, other) = (any_seq(rng), any_seq(rng));
        let origin = any_origin(rng, own);
        request.wants.push(EntryRange { origin, first: one.min(other), last: one.max(other) });
    }
    request.runs = (0..rng.usize(..4)).map(|_| any_run(rng, own, log)).collect();
    request.members_digest = rng.bool().then(|| [rng.u8(..); 8]);
    request.members = any_members(rng);
    request
}

/// The bytes of a message, or what an accident leaves of them.
fn spoiled(rng: &mut Rng, message: &SyncMessage) -> Vec<u8> {
    let mut bytes = message.encode();
    // Beyond the head: another network, or our own store id, is another story.
    let from = bytes.len().min(90);
    match rng.u8(..4) {
        0 => bytes.truncate(rng.usize(from..=bytes.len())),
        1 => bytes.extend((0..rng.usize(..40)).map(|_| rng.u8(..))),
        2 if from < bytes.len() => {
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(from..bytes.len());
                bytes[at] = rng.u8(..);
            }
        }
        _ => {}
    }
    bytes
}

/// How often each of these messages is listed.
fn listed(bench: &Bench, ids: &[u128]) -> Option<Vec<usize>> {
    let logs = Arc::new(Logs::clone(&bench.node.logs()));
    let mut listing = Listing::new(&bench.node.store, logs, Filter::default(), None, false).ok()?;
    let contents: Vec<Vec<u8>> = ids.iter().map(|id| content(*id, "mine")).collect();
    let mut counts = vec![0; ids.len()];
    while !listing.is_done() {
        for entry in listing.next_chunk(1_000).ok()? {
            if let Some(at) = contents.iter().position(|content| content == entry.content()) {
                counts[at] += 1;
            }
        }
    }
    Some(counts)
}

/// What came of the requests of some seeds. Requests that do nothing would prove nothing.
#[derive(Debug, Default)]
struct Tally {
    answered: usize,
    malformed: usize,
    /// Entries in the logs at the end; 65 of each seed are honest.
    entries: u64,
    cuts: usize,
    own_log_cut: usize,
}

/// Every honest message is listed once. A listing that meets a cut asks to be begun again.
fn check_listed(bench: &Bench, honest: &[u128], when: &str) {
    let counts = (0..100).find_map(|_| listed(bench, honest));
    assert_eq!(counts, Some(vec![1; honest.len()]), "{when}");
}

/// What peers sent is bounded, and was not taken for damage.
fn check_bounds(bench: &Bench, seed: u64) {
    let roster = bench.node.cluster.roster();
    assert!(roster.members().count() <= MEMBERS_MAX, "seed {seed}");
    assert!(roster.numbers().len() <= MEMBERS_MAX, "seed {seed}");
    drop(roster);
    assert_eq!(bench.node.store.log().damage().count(), 0, "seed {seed}: what is sent is no damage");
    assert_eq!(bench.node.store.read_failure(), None, "seed {seed}");
    assert!(bench.node.cluster.warnings(&bench.node).len() < 100, "seed {seed}");
}

async fn attack(seed: u64, tally: &mut Tally) {
    let (mut rng, bench, log) = (Rng::with_seed(seed), Bench::new(), Log::new(X, 60, 1, "theirs"));
    let mut honest: Vec<u128> = (1_000..1_020).collect();
    let mut own = X;
    for id in &honest {
        own = bench.send(*id).await.origin;
    }
    bench.push(&log, 1, 40, 40).await;
    for request in 0..REQUESTS {
        let message = any_message(&mut rng, own, &log);
        let bytes = Bytes::from(spoiled(&mut rng, &message));
        if let Ok(decoded) = SyncMessage::decode(&bytes) {
            tally.answered += 1;
            let answer = answer::answer(&bench.node, decoded, bytes);
            let answered = tokio::time::timeout(ANSWER_MAX, answer).await;
            let answer = answered.unwrap_or_else(|_| panic!("seed {seed}: no answer to request {request}"));
            let answer = answer.unwrap_or_else(|why| panic!("seed {seed}, request {request}: {why:?}"));
            assert!(answer.encode().len() < 16 << 10, "seed {seed}: the answer to request {request} is long");
        } else {
            tally.malformed += 1;
        }
        if request % 10 == 9 {
            let id = u128::from(2_000 + request);
            tally.own_log_cut += usize::from(bench.node.logs().vector().cut_of(own).is_some());
            own = bench.send(id).await.origin;
            honest.push(id);
            check_listed(&bench, &honest, &format!("seed {seed}, request {request}"));
        }
    }
    tally.entries += bench.node.logs().vector().entries();
    tally.cuts += bench.node.logs().vector().cuts().count();
    check_bounds(&bench, seed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_survives_requests_that_are_nearly_right_and_loses_nothing() {
    let mut tally = Tally::default();
    for seed in 0..SEEDS {
        attack(seed, &mut tally).await;
    }
    let Tally { answered, malformed, entries, cuts, own_log_cut } = tally;
    assert!(answered > 300 && malformed > 100 && cuts > 20 && own_log_cut > 5, "{tally:?}");
    assert!(entries > 70 * SEEDS, "{tally:?}");
}

/// Zeros, or a run of tiny entries: how long they are unpacked, and packed.
static BOMBS: std::sync::LazyLock<Vec<(usize, Vec<u8>)>> = std::sync::LazyLock::new(|| {
    let bomb = |(length, is_run): (usize, bool)| {
        let mut raw = vec![0; length];
        if is_run {
            let run_head = 16 + LogType::BYTES + 8 + 32 + 32;
            raw[0] = 4; // a run
            raw[1..5].copy_from_slice(&u32::try_from(length - 5).expect("fits").to_be_bytes());
            let entry = [1, 0, 1, 0]; // its kind, the length of its account, its stamp, the length of its content
            let bytes = raw[5 + run_head..].iter_mut().zip(entry.iter().cycle());
            bytes.for_each(|(byte, value)| *byte = *value);
        }
        (length, zstd::bulk::compress(&raw, 1).expect("compresses"))
    };
    let kinds = [1 << 16, 1 << 20, 16 << 20, 40 << 20].map(|length| [(length, false), (length, true)]);
    kinds.into_iter().flatten().map(bomb).collect()
});

/// A peer that answers every exchange with something else.
struct Answerer {
    rng: Rng,
    /// The log that the node appends to.
    own: Origin,
    log: Log,
    /// Answers that were well-formed.
    whole: usize,
}

impl Answerer {
    fn answer(&mut self, request: &SyncMessage) -> Vec<u8> {
        let mut message = any_message(&mut self.rng, self.own, &self.log);
        message.hello.is_guest = self.rng.u8(..10) == 0;
        message.hello.node_id = self.rng.u16(2..4);
        message.runs.extend(request.wants.iter().take(4).map(|want| self.false_run(want)));
        let bytes = match self.rng.u8(..10) {
            0 => self.bomb(message),
            1 => (0..self.rng.usize(..300)).map(|_| self.rng.u8(..)).collect(),
            2 => spoiled(&mut self.rng, &message),
            _ => message.encode(),
        };
        self.whole += usize::from(SyncMessage::decode(&bytes).is_ok());
        bytes
    }

    /// One entry for a range that the node asked for: that of the log X, or a forged one.
    fn false_run(&mut self, want: &EntryRange) -> Run {
        if want.origin == X && want.first <= 60 && self.rng.bool() {
            return self.log.run(want.first, want.first);
        }
        let content = content(self.rng.u128(..60), "forged");
        let key = EntryKey { stamp: Stamp(STAMP), origin: want.origin, seq: want.first };
        let entry = Entry::new(key, EntryKind::Message, Digest::of(EntryKind::Message, &content), &content);
        let hash = any_hash(&mut self.rng, &self.log, want.first - 1);
        let genesis = Head::genesis(want.origin, LogType::MESSAGES);
        let before = if want.first == 1 { genesis } else { Head { seq: want.first - 1, hash } };
        let (log_type, entries) = (LogType::MESSAGES, vec![entry]);
        Run { origin: want.origin, log_type, before, entries, is_damaged: false }
    }

    /// A message with sections of runs that are short packed and long unpacked. Their length is named truly or not.
    fn bomb(&mut self, message: SyncMessage) -> Vec<u8> {
        const PACKED: u8 = 8;
        let (length, frame) = &BOMBS[self.rng.usize(..BOMBS.len())];
        let named = u32::try_from([*length, 100, 16 << 20][self.rng.usize(..3)]).expect("fits");
        let section = [&named.to_be_bytes(), frame.as_slice()].concat();
        let mut bytes = SyncMessage { runs: Vec::new(), ..message }.encode();
        for _ in 0..self.rng.usize(1..4) {
            bytes.push(PACKED);
            bytes.extend_from_slice(&u32::try_from(section.len()).expect("is short").to_be_bytes());
            bytes.extend_from_slice(&section);
        }
        bytes
    }

    /// The answer as it comes: at once, in small parts, or without an end.
    fn body(&mut self, bytes: Vec<u8>) -> axum::body::Body {
        let size = self.rng.usize(1..200);
        let parts: Vec<Bytes> = bytes.chunks(size).map(Bytes::copy_from_slice).collect();
        let parts = futures_util::stream::iter(parts).then(|part| async {
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>(part)
        });
        // A section that a newer program might have, again and again.
        let mut unknown = vec![7; 5 + 0xfffb];
        unknown[..5].copy_from_slice(&[99, 0, 0, 0xff, 0xfb]);
        let unknown = Bytes::from(unknown);
        match self.rng.u8(..20) {
            0 => {
                let endless = futures_util::stream::repeat_with(move || Ok(unknown.clone()));
                axum::body::Body::from_stream(parts.chain(endless))
            }
            1..4 => axum::body::Body::from_stream(parts),
            _ => axum::body::Body::from(bytes),
        }
    }
}

async fn serve_answers(
    answerer: Arc<std::sync::Mutex<Answerer>>,
    bench: &mut Bench,
) -> crate::config::ConfiguredPeer {
    let handler = |body: Bytes| async move {
        let request = SyncMessage::decode(&body).expect("a node sends what is well-formed");
        let mut answerer = answerer.lock().expect("no panic with the lock");
        let bytes = answerer.answer(&request);
        let headers = [(axum::http::header::CONTENT_TYPE, crate::api::media::BINARY)];
        axum::response::IntoResponse::into_response((headers, answerer.body(bytes)))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("is bound").into();
    let router = axum::Router::new().route(crate::api::path::SYNC, axum::routing::post(handler));
    bench.serving.spawn(crate::serve::serve(listener, router, None, 1, CancellationToken::new()));
    crate::config::ConfiguredPeer { node_id: None, addr }
}

/// What came of the answers of some seeds.
#[derive(Debug, Default)]
struct AnswersTally {
    whole: usize,
    failed: usize,
    entries: u64,
    cuts: usize,
}

async fn attack_with_answers(seed: u64, tally: &mut AnswersTally) {
    let log = Log::new(X, 60, 1, "theirs");
    let answerer = Answerer { rng: Rng::with_seed(seed), own: X, log, whole: 0 };
    let answerer = Arc::new(std::sync::Mutex::new(answerer));
    let mut server = Bench::new(); // its tasks serve the answers
    let peer = serve_answers(answerer.clone(), &mut server).await;
    let bench = Bench::with_peers(vec![peer]);
    let (mut client, mut honest) = (sync::SyncClient::new(0), Vec::new());
    let (friend, log) = (Log::new(origin(77), EXCHANGES, 1, "a friend's"), Log::new(X, 60, 1, "theirs"));
    bench.push(&log, 1, 40, 40).await;
    for exchange in 0..EXCHANGES {
        if exchange % 4 == 0 {
            let id = u128::from(1_000 + exchange);
            let own = bench.send(id).await.origin;
            answerer.lock().expect("no panic with the lock").own = own;
            honest.push(id);
        }
        let exchanged = client.exchange(&bench.node, exchange % 3 == 0);
        let exchanged = tokio::time::timeout(ANSWER_MAX, exchanged).await;
        let exchanged = exchanged.unwrap_or_else(|_| panic!("seed {seed}: exchange {exchange} does not end"));
        tally.failed += usize::from(exchanged.is_err());
        if exchange % 10 == 9 {
            let (seq, when) = (exchange + 1, format!("seed {seed}, exchange {exchange}"));
            let pushed = bench.push(&friend, seq - 9, seq, seq);
            tokio::time::timeout(ANSWER_MAX, pushed).await.unwrap_or_else(|_| panic!("{when}: no answer"));
            assert_eq!(bench.seq(origin(77)), seq, "{when}: an honest peer's entries are stored");
            check_listed(&bench, &honest, &when);
        }
    }
    tally.whole += answerer.lock().expect("no panic with the lock").whole;
    tally.entries += bench.node.logs().vector().entries();
    tally.cuts += bench.node.logs().vector().cuts().count();
    check_bounds(&bench, seed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_survives_answers_that_are_nearly_right_and_loses_nothing() {
    let mut tally = AnswersTally::default();
    for seed in 0..SEEDS {
        attack_with_answers(seed, &mut tally).await;
    }
    let AnswersTally { whole, failed, entries, cuts } = tally;
    assert!(whole > 400 && failed > 100 && cuts > 20, "{tally:?}");
    assert!(entries > 80 * SEEDS, "{tally:?}");
}

/// Prints a step of a measurement: its time, the memory of this process now and at most, and the size of the log file.
fn say(step: &str, began: std::time::Instant, bench: &Bench) {
    let took = began.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let memory = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    let memory = memory.collect::<Vec<_>>().join(", ").split_whitespace().collect::<Vec<_>>().join(" ");
    let file = bench.node.store.log_file_bytes() >> 20;
    let line = format!("{step}: {took:.2} s, {memory}, log.redb {file} MB\n");
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).expect("writes");
}

/// What as many invented logs cost as a peer may begin at once. Run it alone, with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn cost_of_65_536_invented_logs() {
    let (bench, now) = (Bench::new(), std::time::Instant::now);
    bench.send(1).await;
    say("one message", now(), &bench);
    let name =
        |n: u32| Origin([n.to_be_bytes(), [1; 4], [2; 4], [3; 4]].concat().try_into().expect("16 bytes"));
    let began = now();
    for first in (0..65_536).step_by(4_096) {
        let run = |n: u32| {
            let mut log = Log::new(name(n), 1, 1, "");
            log.contents[0] = content(u128::from(n) + 10, "old");
            log.run(1, 1)
        };
        let runs = (first..first + 4_096).map(run);
        bench.answer(SyncMessage { runs: runs.collect(), ..quiet() }).await;
    }
    assert_eq!(bench.node.logs().vector().origins(), 65_537);
    say("stored", began, &bench);
    let began = now();
    bench.send(2).await;
    say("a message sent", began, &bench);
    let began = now();
    let answer = bench.answer(SyncMessage { need_full: true, ..quiet() }).await.encode().len();
    say(&format!("an answer with all heads, {answer} bytes"), began, &bench);
    let began = now();
    let digest = short(Vector::default().digest());
    let nothing = Heads { base: None, changes: Vec::new(), cuts: Vec::new() };
    let request = SyncMessage { wants_any: true, need_full: true, digest, heads: Some(nothing), ..quiet() };
    let reply = bench.answer(request).await;
    let (runs, bytes) = (reply.runs.len(), reply.encode().len());
    say(&format!("an answer with all heads and {runs} logs, {bytes} bytes"), began, &bench);
    let began = now();
    while bench.node.store.flush_index().expect("indexes") {}
    say("indexed", began, &bench);
    for (backward, most) in [(true, 50), (false, usize::MAX)] {
        let began = now();
        let (logs, filter) = (Arc::new(Logs::clone(&bench.node.logs())), Filter::default());
        let mut listing = Listing::new(&bench.node.store, logs, filter, None, backward).expect("lists");
        let mut count = 0;
        while !listing.is_done() && count < most {
            count += listing.next_chunk(most).expect("lists").len();
        }
        say(&format!("{count} messages listed"), began, &bench);
    }
    let copy = tempfile::tempdir().expect("temp dir");
    for file in std::fs::read_dir(bench.dir.path()).expect("lists").flatten() {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).expect("copies");
    }
    for step in ["opened as after a crash", "opened again"] {
        let began = now();
        let (store, _) = Store::open(copy.path(), "test", now_ms()).expect("opens");
        say(step, began, &bench);
        store.commit_for_fast_open().expect("commits");
    }
}
