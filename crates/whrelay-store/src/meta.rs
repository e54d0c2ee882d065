//! Whose store it is, in which format, and how often it was opened. It must not know what else is in it.

use std::path::Path;

use redb::{Database, ReadableDatabase, Table, WriteTransaction};
use twox_hash::XxHash3_64;

use crate::disk::{Medium, Options, Role};
use crate::error::{Fault, OpenError, StoreError};
use crate::files::name_from;
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
}

/// Opens the database and checks, or writes, whose it is and in which format; an older one is migrated.
pub(crate) fn prepare(medium: &Medium, options: &Options) -> Result<(Database, Epoch), OpenError> {
    let database = medium.open(options.cache)?;
    match begin(medium, &database, options) {
        Ok(epoch) => Ok((database, epoch)),
        Err(error) => {
            // What is known to be damaged may not even let itself be closed.
            let _ = guard::catch(|| drop(database));
            Err(error)
        }
    }
}

fn begin(medium: &Medium, database: &Database, options: &Options) -> Result<Epoch, OpenError> {
    let path = || medium.path.clone();
    let fault = |error: StoreError| match error {
        StoreError::Full => OpenError::Io {
            path: path(),
            error: std::io::Error::from(std::io::ErrorKind::StorageFull),
        },
        other @ (StoreError::Reopening
        | StoreError::Bound
        | StoreError::Share
        | StoreError::Damaged(_)
        | StoreError::Broken(Fault::Failed(_))) => OpenError::Damaged {
            path: path(),
            detail: other.to_string(),
        },
        StoreError::Broken(Fault::Structure { detail, .. }) => OpenError::Damaged {
            path: path(),
            detail,
        },
    };
    let meta = unpanicked(|| read(database)).map_err(fault)?;
    let (store, opens) = match meta {
        Some(meta) => {
            meta.check(options.role, &medium.path)?;
            let opens = unpanicked(|| count_opening(database, &meta)).map_err(fault)?;
            (meta.id, opens)
        }
        None if medium.may_create => {
            let id = name_from(options.name_seed);
            init(database, options.role, &id).map_err(fault)?;
            (id, 1)
        }
        None => return Err(OpenError::Foreign { path: path() }),
    };
    unpanicked(|| integrity::look(database, medium.looks)).map_err(fault)?;
    let instance = XxHash3_64::oneshot(&options.name_seed.to_le_bytes());
    Ok(Epoch {
        store,
        opens,
        instance,
    })
}

struct Meta {
    format: u32,
    role: String,
    id: String,
    opens: u64,
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
    }))
}

/// Migrates an older format and counts this opening, in one transaction. A full disk takes neither, and stops
/// nobody who needs no migration. Answers how often the store was opened.
fn count_opening(database: &Database, meta: &Meta) -> Result<u64, StoreError> {
    let opens = meta.opens + 1;
    let begun = (|| {
        let tx = writer::begin(database)?;
        if meta.format < FORMAT {
            migrations::migrate(&tx, Seal::of(&meta.id), meta.format)?;
            put(&tx, "format", &FORMAT.to_string())?;
        }
        put(&tx, "opens", &opens.to_string())?;
        Ok(tx.commit()?)
    })();
    match begun {
        Ok(()) => Ok(opens),
        Err(StoreError::Full) if meta.format == FORMAT => Ok(meta.opens),
        Err(error) => Err(error),
    }
}

fn put(tx: &WriteTransaction, name: &str, value: &str) -> Result<(), StoreError> {
    tx.open_table(META)?.insert(name, value.as_bytes())?;
    Ok(())
}

fn init(database: &Database, role: Role, id: &str) -> Result<(), StoreError> {
    let tx = writer::begin(database)?;
    create_all(&tx)?;
    {
        let mut meta = tx.open_table(META)?;
        write(&mut meta, role, id)?;
        meta.insert("opens", "1".as_bytes())?;
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
