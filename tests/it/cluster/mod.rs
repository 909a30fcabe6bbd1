//! Do nodes agree: do all hold the same messages and know the same members, while nodes join, move, leave and fail?

mod exchange;
mod links;
mod members;
mod outage;
pub mod scale;
