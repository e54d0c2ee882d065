//! One file per command: its flags in, lines out.

pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod destination;
pub(crate) mod discard;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod flaky;
pub(crate) mod forwarder;
pub(crate) mod listen;
pub(crate) mod logs;
pub(crate) mod manual;
pub(crate) mod replay;
pub(crate) mod service;
pub(crate) mod status;
pub(crate) mod subscription;
pub(crate) mod test;
pub(crate) mod trigger;
pub(crate) mod which;
