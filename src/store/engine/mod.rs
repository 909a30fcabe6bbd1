//! The storage engine: where the two files lie, and how a panic of redb becomes an error.

pub(super) mod catch_panic;
pub mod files;
pub mod open_policy;
