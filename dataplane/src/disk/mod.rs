//! What is on the volume besides the databases: member slots and folders.

pub mod detached;
pub mod dirs;
pub mod layout;
pub mod reserve;
pub mod slots;
#[cfg(test)]
mod tests;
pub mod watermarks;
