//! Whose store it is, in which format, and how often it was opened. It must not know what else is in it.

use std::path::Path;

use redb::{Database, ReadableDatabase, Table, WriteTransaction};
use twox_hash::XxHash3_64;

use crate::disk::{Medium, Options, Role};
use crate::error::{Fault, OpenError, StoreError};
use crate::files::{name_from, unknown};
use crate::guard::{self, unpanicked};
use crate::integrity;
use crate::migrations;
use crate::record::Seal;
use crate::tables::{FORMAT, META, OLDEST_FORMAT, create_all};
use crate::writer;

/// One opening of a store. Two processes that run on copies of one directory have the same store, and differ in
/// the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// The store's own name: another store never has it.
    pub store: String,
    /// How often it was opened. One that is lower than it was belongs to an earlier copy.
    pub opens: u64,
    /// Random: no other opening has it.
    pub instance: u64,
    /// The instance of the opening before it, where that is known.
    pub follows: Option<u64>,
}

/// Opens the database and checks, or writes, whose it is and in which format; an older one is migrated.
pub(crate) fn prepare(medium: &Medium, options: &Options) -> Result<(Database, Epoch), OpenError> {
    let mut database = medium.open(options.cache)?;
    let begun = begin(medium, &database, options);
    if matches!(begun, Ok(Begun { is_full: true, .. })) {
        // redb refuses everything on a handle whose commit has failed.
        drop(database);
        database = medium.open(options.cache)?;
    }
    let looked = begun.and_then(|begun| {
        let looked = unpanicked(|| integrity::look(&database, medium.looks));
        looked.map_err(|error| fault(medium, error))?;
        Ok(begun.epoch)
    });
    match looked {
        Ok(epoch) => Ok((database, epoch)),
        Err(error) => {
            // What is known to be damaged may not even let itself be closed.
            let _ = guard::catch(|| drop(database));
            Err(error)
        }
    }
}

fn fault(medium: &Medium, error: StoreError) -> OpenError {
    let path = medium.path.clone();
    match error {
        StoreError::Full => OpenError::Io {
            path,
            error: std::io::Error::from(std::io::ErrorKind::StorageFull),
        },
        other @ (StoreError::Reopening
        | StoreError::Bound
        | StoreError::Share
        | StoreError::Damaged(_)
        | StoreError::Broken(Fault::Failed(_))) => OpenError::Damaged {
            path,
            detail: other.to_string(),
        },
        StoreError::Broken(Fault::Structure { detail, .. }) => OpenError::Damaged { path, detail },
    }
}

struct Begun {
    epoch: Epoch,
    /// Whether the disk was too full to write that it was opened.
    is_full: bool,
}

fn begin(medium: &Medium, database: &Database, options: &Options) -> Result<Begun, OpenError> {
    let fault = |error| fault(medium, error);
    let instance = XxHash3_64::oneshot(&options.name_seed.to_le_bytes());
    match unpanicked(|| read(database)).map_err(fault)? {
        Some(meta) => {
            meta.check(options.role, &medium.path)?;
            unpanicked(|| count_opening(database, meta, instance)).map_err(fault)
        }
        None if medium.may_create => {
            let store = name_from(options.name_seed);
            init(database, options.role, &store, instance).map_err(fault)?;
            let epoch = Epoch {
                store,
                opens: 1,
                instance,
                follows: None,
            };
            Ok(Begun {
                epoch,
                is_full: false,
            })
        }
        None => Err(unknown(&medium.path)),
    }
}

struct Meta {
    format: u32,
    role: String,
    id: String,
    opens: u64,
    /// Of the last opening; nothing where that was before it was kept.
    instance: Option<u64>,
}

impl Meta {
    fn check(&self, role: Role, path: &Path) -> Result<(), OpenError> {
        let path = path.to_owned();
        let found = self.format;
        if found > FORMAT {
            return Err(OpenError::Newer {
                path,
                found,
                supported: FORMAT,
            });
        }
        if found < OLDEST_FORMAT {
            return Err(OpenError::Older {
                path,
                found,
                supported: OLDEST_FORMAT,
            });
        }
        if self.role != role.as_str() {
            return Err(OpenError::Role {
                path,
                found: self.role.clone(),
                wanted: role.as_str(),
            });
        }
        Ok(())
    }
}

fn read(database: &Database) -> Result<Option<Meta>, StoreError> {
    let tx = database.begin_read()?;
    let table = match tx.open_table(META) {
        Ok(table) => table,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let text = |name: &str| -> Result<String, StoreError> {
        let value = table.get(name)?;
        let bytes = value.map(|v| v.value().to_vec()).unwrap_or_default();
        String::from_utf8(bytes).map_err(|_| StoreError::Damaged(format!("meta `{name}`")))
    };
    let format = text("format")?.parse();
    let format = format.map_err(|_| StoreError::Damaged("the format version".into()))?;
    Ok(Some(Meta {
        format,
        role: text("role")?,
        id: text("id")?,
        opens: text("opens")?.parse().unwrap_or(0),
        instance: text("instance")?.parse().ok(),
    }))
}

/// Migrates an older format and counts this opening, in one transaction. A full disk takes neither, and stops
/// nobody who needs no migration: this counts as the opening before, then, since a number that stays where it was
/// would look like that of a copy.
fn count_opening(database: &Database, meta: Meta, instance: u64) -> Result<Begun, StoreError> {
    let opens = meta.opens + 1;
    let begun = (|| {
        let tx = writer::begin(database)?;
        if meta.format < FORMAT {
            migrations::migrate(&tx, Seal::of(&meta.id), meta.format)?;
            put(&tx, "format", &FORMAT.to_string())?;
        }
        put(&tx, "opens", &opens.to_string())?;
        put(&tx, "instance", &instance.to_string())?;
        Ok(tx.commit()?)
    })();
    let (opens, instance, follows) = match begun {
        Ok(()) => (opens, instance, meta.instance),
        Err(StoreError::Full) if meta.format == FORMAT => {
            (meta.opens, meta.instance.unwrap_or(instance), None)
        }
        Err(error) => return Err(error),
    };
    let epoch = Epoch {
        store: meta.id,
        opens,
        instance,
        follows,
    };
    Ok(Begun {
        epoch,
        is_full: begun.is_err(),
    })
}

fn put(tx: &WriteTransaction, name: &str, value: &str) -> Result<(), StoreError> {
    tx.open_table(META)?.insert(name, value.as_bytes())?;
    Ok(())
}

fn init(database: &Database, role: Role, id: &str, instance: u64) -> Result<(), StoreError> {
    let tx = writer::begin(database)?;
    create_all(&tx)?;
    {
        let mut meta = tx.open_table(META)?;
        write(&mut meta, role, id)?;
        meta.insert("opens", "1".as_bytes())?;
        meta.insert("instance", instance.to_string().as_bytes())?;
    }
    Ok(tx.commit()?)
}

/// Says whose store it is, and in which format.
pub(crate) fn write(
    meta: &mut Table<'_, &str, &[u8]>,
    role: Role,
    id: &str,
) -> Result<(), StoreError> {
    meta.insert("format", FORMAT.to_string().as_bytes())?;
    meta.insert("role", role.as_str().as_bytes())?;
    meta.insert("id", id.as_bytes())?;
    Ok(())
}
