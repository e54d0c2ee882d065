//! A disk that keeps what was synced, and of the rest whatever it likes. It must not know what is
//! written on it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::chance::Chance;

/// What a power cut tears apart: no disk promises more than this in one piece.
const SECTOR: usize = 512;

/// What goes wrong at the next operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Everything fails from here on: the power is gone.
    PowerCut,
    /// One operation fails, and what was not synced is in doubt.
    Eio,
    /// One operation finds no space.
    Full,
}

#[derive(Clone, Debug, Default)]
struct State {
    live: Vec<u8>,
    synced: Vec<u8>,
    /// Writes since the last sync, in order.
    loose: Vec<(usize, Vec<u8>)>,
    /// After so many further operations, this.
    armed: Option<(u64, Fault)>,
    cut: bool,
    forgets_syncs: bool,
}

/// A handle to the disk; clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct LyingDisk(Arc<Mutex<State>>);

impl LyingDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a fault happen after so many operations.
    pub(crate) fn arm(&self, after: u64, fault: Fault) {
        self.state().armed = Some((after, fault));
    }

    /// Takes back a fault that has not happened. Says whether one was there to take back.
    pub(crate) fn disarm(&self) -> bool {
        self.state().armed.take().is_some()
    }

    /// From now on a sync is only said to have happened.
    pub(crate) fn forget_syncs(&self) {
        self.state().forgets_syncs = true;
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.state().live.clone()
    }

    /// The disk as the end of a process leaves it: the system still has every write.
    pub(crate) fn after_kill(&self) -> Self {
        Self::with(self.state().live.clone())
    }

    /// The disk as a power cut leaves it: of what was not synced, any subset of sectors, and either
    /// length.
    pub(crate) fn after_power_cut(&self, chance: &mut Chance) -> Self {
        let state = self.state();
        let mut image = state.synced.clone();
        let grown = state.live.len() > image.len();
        if grown && chance.permille(500) {
            image.resize(state.live.len(), 0);
        }
        let kept = *chance.pick(&[0, 100, 500, 900, 1000]);
        for (offset, data) in &state.loose {
            for (n, sector) in data.chunks(SECTOR).enumerate() {
                let from = offset + n * SECTOR;
                if from + sector.len() <= image.len() && chance.permille(kept) {
                    image[from..from + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Self::with(image)
    }

    /// One that holds this.
    pub(crate) fn with(image: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(State {
            live: image.clone(),
            synced: image,
            ..State::default()
        })))
    }

    /// One operation passes, or fails as it was armed to.
    fn operate(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        if let Some((after, fault)) = state.armed {
            state.armed = after.checked_sub(1).map(|after| (after, fault));
            if after == 0 {
                state.cut = fault == Fault::PowerCut;
                let kind = match fault {
                    Fault::PowerCut | Fault::Eio => io::ErrorKind::Other,
                    Fault::Full => io::ErrorKind::StorageFull,
                };
                return Err(kind.into());
            }
        }
        if state.cut {
            return Err(io::ErrorKind::Other.into());
        }
        Ok(state)
    }
}

impl StorageBackend for LyingDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.operate()?.live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.operate()?;
        let from = offset as usize;
        let found = state.live.get(from..from + out.len());
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.operate()?.live.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.operate()?;
        if state.forgets_syncs {
            return Ok(());
        }
        let State {
            live,
            synced,
            loose,
            ..
        } = &mut *state;
        synced.resize(live.len(), 0);
        for (offset, data) in loose.drain(..) {
            let end = (offset + data.len()).min(synced.len());
            if offset < end {
                synced[offset..end].copy_from_slice(&data[..end - offset]);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.operate()?;
        let from = offset as usize;
        let place = state.live.get_mut(from..from + data.len());
        place
            .ok_or(io::ErrorKind::UnexpectedEof)?
            .copy_from_slice(data);
        state.loose.push((from, data.to_vec()));
        Ok(())
    }
}
