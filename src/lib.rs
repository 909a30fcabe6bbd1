//! ChatChain: a chat and message log that keeps working while any one of its nodes does.
//!
//! A *network* is a handful of *nodes*. Each keeps every message in its own store, accepts messages alone, and
//! exchanges with its peers in the background what either lacks, until all are equal. A *proxy* is a stateless
//! door to whichever node answers. There is no leader, no quorum and no clock that must be right.
//!
//! # The map
//!
//! | module | what it owns | what it must not know |
//! |---|---|---|
//! | [`chain`] | messages, stamps, logs, vectors, the exchange: pure | files, sockets, clocks, randomness |
//! | [`store`] | two redb files: the logs, and what is derived from them | HTTP, tokio |
//! | [`replica`] | one store and its logs: decide, commit, exchange, mend | threads, sockets, clocks |
//! | [`api`] | the HTTP contract: bodies, queries, error codes | who serves or sends them |
//! | [`client`] | asking servers, one or many | the store |
//! | [`serve`] | accepting connections, the lock, bounds, refusals | messages beyond their size |
//! | [`node`] | the one writer, history, exchanges with peers | the proxy |
//! | [`proxy`] | finding a node that answers | the store, the node, the logs |
//! | [`commands`] | one file per command | what servers do inside |
//! | [`cli`], [`config`] | what was typed, and what it comes to | anything that runs |
//! | [`fault`] | mistakes planted on purpose, in tests of the tests | everything |
//! | [`guide`] | the text of the guide | everything |
//! | [`output`] | all printing | where it came from |
//!
//! Imports run one way: commands → client → api → chain; node → client, serve, replica → store → chain; proxy → client,
//! serve, api. A test (`tests/it/tidy`) holds the sources to it.
//!
//! # The four flows
//!
//! 1. **A send**: `node/http` → `node/send` (checked message) → `node/inbox` → `node/writer` (a batch; move the signal,
//!    answer) → `replica/pen` (decide, commit) → `chain/log` and `store/log` → back to `node/send`.
//! 2. **An exchange**: `node/replicate` wakes → `replica/exchange` and `chain/sync` plan → `store/log` reads →
//!    `chain/wire` → the peer's `node/replicate` → its writer → its answer, and the same way back.
//! 3. **Through the proxy**: `proxy/run` → `proxy/forward` → `proxy/course` (when to ask one more) → `proxy/upstreams`
//!    (which node next) → `proxy/forward` → `client` → a node.
//!    A feed goes the same way, and `proxy/feed` stays with it: when the node ends, it asks the next one.
//! 4. **A command**: `main` → `cli` → `config` → `commands/*` → `client` → `output`.
//!
//! Nothing is queued for whoever follows the feed, they read it: `node/feed` → `store/follow` (what it has not seen, by its cursor:
//! `chain/cursor`, `chain/seqs`) → at the end `node/hub`, the newest messages in memory, moved by the same change signal.
//!
//! # What always holds
//!
//! - What is acknowledged is on disk, fsynced; what is advertised to peers is too.
//! - A process appends only to a log that it began itself since it opened its store. So no position is ever used
//!   twice, whatever was restored or copied.
//! - A message's identity is its id and the digest of its content. The same again is a duplicate for ever.
//! - Every record carries a check that is verified on every read.
//! - A member's own newest word is the truth about it; all nodes come to the same members, whatever they heard first.
//! - History depends on the vector alone: nodes with equal digests list the same bytes.
//! - A cursor means the same on every node, and no reader is led past an entry that it was not given.

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
