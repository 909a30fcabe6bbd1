//! ChatChain: a distributed chat log that keeps accepting messages while any one of its nodes runs.
//!
//! A *network* is a handful of *nodes*. Each node keeps every message in its own store and accepts messages alone. In the
//! background it exchanges with its peers whatever either of them lacks, until all are equal. A *proxy* keeps no state on
//! disk and passes each request to a node that answers. There is no leader, no quorum and no clock that must be right.
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
//! | [`commands`] | one file per command | what servers do inside |
//! | [`cli`], [`config`] | the command line and the settings | anything that runs |
//! | [`guide`] | the text of the guide | everything |
//! | [`output`] | all printing | where the text comes from |
//! | [`fault`] | faults planted on purpose, to test the tests | everything |
//!
//! Imports run one way: commands → client → api → chain; node → client, serve, replica → store → chain; proxy → client,
//! serve, api. The tests in `tests/it/tidy` check this.
//!
//! # The four flows
//!
//! 1. **A send**: `serve` → `node/http/send` (a checked message) → `node/writer` (the inbox, then a batch) →
//!    `replica/committer` (decide, commit) → `chain/logs` and `store/log` → the change signal → the answer, after
//!    `node/http/acks` has waited for further copies if they are asked for.
//! 2. **An exchange**: `node/cluster/sync` wakes → `replica/exchange` and `chain/sync` plan → `store/log` reads →
//!    `chain/sync/wire` → the peer's `node/cluster/sync` → the peer's writer → its answer, which takes the same path here.
//! 3. **Through the proxy**: `serve` → `proxy/forward` → `proxy/plan` (when to ask one more upstream) →
//!    `proxy/upstreams` (which one next) → `client` → a node. A feed stays in `proxy/feed`: when its node ends, the
//!    feed goes on at the next one.
//! 4. **A command**: `main` → `cli` → `config` → `commands/*` → `client` → `output`.
//!
//! Reads: `node/http/history` → `store/history/listing`. A feed is not queued for its readers: `node/http/feed` reads
//! `store/history/feed_scan` from the reader's cursor (`chain/cursor`, `chain/frontier`), and at the end `node/live_feed`,
//! the newest messages in memory, which advance with the same change signal.
//!
//! # What always holds
//!
//! - What is acknowledged is on disk, fsynced; so is what is advertised to peers.
//! - A process appends only to a log that it began itself since it opened its store. So no sequence number is ever used
//!   twice, whatever was restored or copied.
//! - A message's identity is its id and the digest of its content. The same message sent again is always a duplicate.
//! - Every record carries a check that is verified on every read.
//! - What a member last said of itself overrides what others say of it. So all nodes agree on the members, whatever
//!   they learned first.
//! - History depends on the vector alone: nodes with equal digests list the same bytes.
//! - A cursor means the same on every node, and no reader is moved past an entry that it was not given.

pub mod api;
pub mod chain;
pub mod cli;
pub mod client;
pub mod commands;
pub mod config;
pub mod fault;
pub mod guide;
pub mod node;
pub mod output;
pub mod proxy;
pub mod replica;
pub mod serve;
pub mod store;
