//! Simulations: the real replica and store code on simulated machines that fail, driven by a seed, without sockets or
//! real time.

mod crash_images;
mod disk;
mod salvage;
mod scripts;
mod sectors;
mod world;
mod worlds;
