//! The stores of tests that know nothing but the contracts: the real one, or the model of one where `WHRELAY_STORE=model`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};

use whrelay_store::{Options, Store};

use crate::model::{Liberties, Model};

/// The models that tests have opened, by their directories.
static MODELS: LazyLock<Mutex<HashMap<PathBuf, Model>>> = LazyLock::new(Mutex::default);

/// Opens the store of a directory.
pub fn open(dir: &Path, options: &Options) -> Store {
    match std::env::var("WHRELAY_STORE").as_deref() {
        Ok("model") => model(dir, options),
        Ok(other) => panic!("WHRELAY_STORE is `model` or nothing, not `{other}`"),
        Err(_) => Store::open(dir, options).unwrap(),
    }
}

fn model(dir: &Path, options: &Options) -> Store {
    let mut models = MODELS.lock().unwrap();
    let next = match models.get(dir) {
        Some(known) => known.reopened(options),
        None => Model::new(options, Liberties::ALL),
    };
    models.insert(dir.to_owned(), next.clone());
    next.store()
}
