//! Does an acknowledged message survive: kills, damaged files, failing disks, and directories that were lost or copied?

mod acknowledged;
mod chaos;
mod corpus;
mod damage;
mod disk_faults;
mod restored_directories;
mod unclean_exits;
