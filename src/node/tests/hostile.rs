//! What messages that are nearly right may do to a node. Each is made of a seed, which a failure names.

use fastrand::Rng;

use super::*;
use crate::chain::filter::Filter;
use crate::chain::members::{MEMBERS_MAX, Member, MemberId};
use crate::chain::record::EntryBody;
use crate::store::history::listing::Listing;

const SEEDS: u64 = 40;
const REQUESTS: u64 = 50;
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
    LogType { is_control: rng.bool(), keep_days: rng.u16(..3) }
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

fn any_request(rng: &mut Rng, own: Origin, log: &Log) -> Vec<u8> {
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
    let mut bytes = request.encode();
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

async fn attack(seed: u64, tally: &mut Tally) {
    let (mut rng, bench, log) = (Rng::with_seed(seed), Bench::new(), Log::new(X, 60, 1, "theirs"));
    let mut honest: Vec<u128> = (1_000..1_020).collect();
    let mut own = X;
    for id in &honest {
        own = bench.send(*id).await.origin;
    }
    bench.push(&log, 1, 40, 40).await;
    for request in 0..REQUESTS {
        let bytes = Bytes::from(any_request(&mut rng, own, &log));
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
            // A listing that meets a cut asks to be begun again.
            let counts = (0..100).find_map(|_| listed(&bench, &honest));
            assert_eq!(counts, Some(vec![1; honest.len()]), "seed {seed}, request {request}");
        }
    }
    tally.entries += bench.node.logs().vector().entries();
    tally.cuts += bench.node.logs().vector().cuts().count();
    let roster = bench.node.cluster.roster();
    assert!(roster.members().count() <= MEMBERS_MAX, "seed {seed}");
    assert!(roster.numbers().len() <= MEMBERS_MAX, "seed {seed}");
    drop(roster);
    assert_eq!(bench.node.store.log().damage().count(), 0, "seed {seed}: what is sent is no damage");
    assert_eq!(bench.node.store.read_failure(), None, "seed {seed}");
    assert!(bench.node.cluster.warnings(&bench.node).len() < 100, "seed {seed}");
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
