//! The storage engine: the files, how they are opened, and how a panic of redb becomes an error.

pub mod catch_panic;
pub mod files;
pub mod open_policy;
