//! Does a reader of the feed get every message, wherever it reads and whatever happens to the nodes, and at what cost?

mod delivery;
mod load;
