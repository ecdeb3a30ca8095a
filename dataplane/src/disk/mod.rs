//! What is on the volume besides the databases: member slots and folders.

pub mod dirs;
pub mod layout;
pub mod slots;
pub mod watermarks;
