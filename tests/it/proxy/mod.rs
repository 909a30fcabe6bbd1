//! Do sends through the proxy succeed in time while nodes behind it fail?

mod upstream_faults;
