//! ChatChain: a distributed chat log that keeps accepting messages while any one of its nodes runs.
//!
//! A *network* is a handful of *nodes*. Each node keeps every message in its own store and accepts messages alone. In
//! the background it exchanges with its peers what either of them lacks, until all nodes store the same. A *proxy*
//! keeps no state on disk and passes each request to a node that answers. There is no leader, no quorum and no clock
//! that must be right.
//!
//! # The map
//!
//! | module | what it owns | what it must not know |
//! |---|---|---|
//! | [`chain`] | messages, stamps, logs, vectors, cursors, the sync protocol: pure | files, sockets, clocks, randomness |
//! | [`store`] | two redb files: the logs, and the index that is derived from them | HTTP, tokio |
//! | [`replica`] | one store and its logs: decide, commit, exchange, repair | threads, sockets, clocks |
//! | [`api`] | the HTTP contract: paths, bodies, queries, error codes | who serves or sends them |
//! | [`client`] | requests to one server or to several | the store |
//! | [`serve`] | accepting connections, authentication, limits | messages, beyond their size |
//! | [`node`] | the writer, the HTTP handlers, the exchanges with peers | the proxy |
//! | [`proxy`] | finding a node that answers | the store, the node, the logs |
//! | [`commands`] | the commands, from arguments to what is printed | what servers do inside |
//! | [`cli`], [`config`] | the command line and the settings | anything that runs |
//! | [`guide`] | the text of the guide | everything |
//! | [`output`] | all printing | where the text comes from |
//! | [`error_text`] | errors of the system in words, without numbers | everything |
//! | [`fault`] | faults planted on purpose, to test the tests | everything |
//!
//! Imports run one way: commands → client → api → chain; node → client, serve, replica → store → chain; proxy → client,
//! serve, api. The tests in `tests/it/tidy` check this.
//!
//! # The six flows
//!
//! Each arrow leads to the next file to read, below `src`. A folder without a file means its `mod.rs`.
//!
//! 1. **A send**: `serve` → `node/slot` (the open store, or 503) → `node/http/send` (a checked message, made by
//!    `api/message`) → `node/writer` → `node/writer/inbox` → the writer's thread, in `node/writer` again →
//!    `replica/committer` → `replica/decide` (duplicate, conflict or new by `store/index/overlay`; `chain/logs` assigns
//!    the entry's key) → `store` → `store/log` (one durable commit) → `store/index/memtable` → the change signal, in
//!    `node/writer` → `node/http/acks` if further copies are asked for → the answer, in `node/http/send`. Later, the
//!    indexer thread moves the entry to the index file: `store/index`.
//! 2. **An exchange**: `node/cluster/sync` wakes → `replica/exchange` plans the request with `chain/sync` →
//!    `replica/runs` reads entries through `store/log/reader` → `chain/sync/wire` → `client` → at the peer
//!    `node/cluster/answer` → `replica/exchange` → `node/writer` → `replica/committer` →
//!    `replica/decide` (`chain/logs` admits the entries). `node/cluster/sessions` keeps what both sides know between
//!    exchanges. The peer's answer takes the same path back, through `node/cluster/arriving_answer`: its runs are stored
//!    as they arrive, and `replica/pace` sizes the next message by that. `node/cluster` then records what the peer
//!    holds, which wakes the sends that wait for copies. While all that takes long, `node/cluster/side_push` sends new
//!    entries beside it. Where two copies of a log differ: `chain/sync/bisect` → `replica/forks` → `replica/cut`.
//! 3. **Through the proxy**: `serve` → `proxy/run` → `proxy/forward` → `proxy/plan` (when to ask one more node) →
//!    `proxy/upstreams` (which node to ask next) → `client` → a node. `proxy/feed` keeps a feed open when its node
//!    ends. `proxy/prober` finds out which nodes answer.
//! 4. **A command**: `main` → `cli` → `commands` (reads the settings with `config` and calls the command) →
//!    `commands/<name>` → `client/servers` (which server to ask) → `client` → `output`.
//! 5. **Damage**: `store/log/reader` checks each record that it reads, for requests and for the scrub
//!    (`node/maintenance` → `replica/scrub`) → `store/log/damage` (the list of damaged entries) → `node/cluster` →
//!    `replica/repair` (which peer to ask) → `node/cluster/sync` asks in the next exchange → `replica/exchange`
//!    separates repairs from new entries → `node/writer` → `replica/committer` compares them with the hash chain and
//!    writes them. Meanwhile, `node/http/read` repeats a read for a moment. If no peer has the entry:
//!    `node/maintenance` → `node/cluster` → `replica/repair` (gives up) → `node/writer` → `replica/committer` →
//!    `replica/cut` → `replica/purge` → `store` → `store/index/purge` and `store/log/purge`. If the index lacks a
//!    row: `node/maintenance` → `store/index` (invalidated) → `node/store_fault` → flow 6, which rebuilds the index.
//! 6. **Opening a store**: `commands/serving` → `node/run` → `node/recovery` → `store/recovery/crash_count` (how the
//!    last processes ended) → `store/recovery/open_rules` (the policy that follows) → `store` → `store/recovery` →
//!    `store/log` → `chain/logs` → `store/index` → `node/run` again, which starts the writer, the indexer, the
//!    exchanges and the maintenance, and gives the node to requests (`node/slot`). A log that cannot be opened:
//!    `store/recovery` → `store/recovery/salvage` → `store/recovery/record_scan` and `store/recovery/lossy_file`. If
//!    an open store fails, `node/store_fault` makes `node/run` close it, and this flow begins again at
//!    `node/recovery`.
//!
//! Reads: `node/http/history` → `node/http/position` (waits for the own writes of the client) → `node/http/page`, if there
//! is a limit → `node/http/read` (short reads at once, long ones in turn) → `store/history/listing` →
//! `store/history/merge`, or `store/history/user_scan` for one user → `node/http/streamed`. A feed has no queue per
//! reader: `node/http/feed` reads `store/history/feed_scan` from the reader's cursor (`chain/cursor`, `chain/frontier`;
//! `store/history/snapshots` finds the snapshots that it names); at the end it reads `node/live_feed`, the newest
//! messages in memory, which advances with the change signal.
//!
//! The words of the code, each with its one definition, are in the [glossary](guide::internals).
//!
//! # What always holds
//!
//! - What is acknowledged is on disk, fsynced; so is what is advertised to peers.
//! - A process appends only to a log that it began itself since it opened its store. So no place in a log is used
//!   twice, whatever was restored or copied. The one exception, a machine that is cloned while its node runs, ends in a
//!   cut.
//! - A message's identity is its id and the digest of its content. The same message sent again is always a duplicate.
//! - Every record carries a check that is verified on every read.
//! - What a member last said of itself overrides what others say of it. So all nodes come to the same members, whatever
//!   they learned first.
//! - History depends on the vector alone: nodes with equal digests list the same bytes.
//! - A cursor means the same on every node, and no reader is moved past an entry that it was not given.

pub mod api;
pub mod chain;
pub mod cli;
pub mod client;
pub mod commands;
pub mod config;
pub mod error_text;
pub mod fault;
pub mod guide;
pub mod node;
pub mod output;
pub mod proxy;
pub mod replica;
pub mod serve;
pub mod store;
