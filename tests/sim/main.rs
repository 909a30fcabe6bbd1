//! Simulations: the real core and the real store on machines that fail, from a seed, without sockets or real time.

mod crash_images;
mod disk;
mod salvage;
mod scripts;
mod sectors;
mod world;
mod worlds;
