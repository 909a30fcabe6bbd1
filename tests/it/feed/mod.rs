//! Does a reader of the feed get every message, from every node and through node failures, and what does it cost a
//! node?

mod delivery;
mod load;
