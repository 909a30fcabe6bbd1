//! Does the proxy hide a failing node from its clients?

mod upstream_faults;
