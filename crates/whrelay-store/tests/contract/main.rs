//! The store's promises, kept on every medium: memory, a real file, and a disk that is cut off at
//! every sync.

mod copies;
mod crash;
mod destinations;
mod disk;
mod faults;
mod formats;
mod history;
mod ids;
mod promises;
mod queue;
mod retention;
mod rot;
mod salvage;
mod search;
mod setup;
mod signatures;
mod steps;
mod subscriptions;
