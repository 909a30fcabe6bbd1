//! Does every acknowledged message survive kills, damaged files, failing disks, and lost, restored or copied
//! directories?

mod acknowledged;
mod chaos;
mod corpus;
mod damage;
mod disk_faults;
mod removed_directories;
mod restored_directories;
mod unclean_exits;
