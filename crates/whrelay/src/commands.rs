//! One file per command: its flags in, lines out.

pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod forwarder;
pub(crate) mod listen;
pub(crate) mod logs;
pub(crate) mod replay;
pub(crate) mod status;
