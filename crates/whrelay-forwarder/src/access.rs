//! Who may do what: access tokens. It must not know what is asked for.

use std::io;
use std::path::{Path, PathBuf};

use axum::http::{HeaderMap, StatusCode, header};
use whrelay_core::token::Token;
use whrelay_store::{Store, StoreError, write_private};

use crate::problem::Problem;

/// Lets a request with a valid `Authorization: Bearer` token pass.
pub(crate) async fn check(store: &Store, headers: &HeaderMap) -> Result<(), Problem> {
    let refused = |why: &str| Problem::new(StatusCode::UNAUTHORIZED, why);
    let value = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let (scheme, text) = value.and_then(|v| v.split_once(' ')).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(refused(
            "an access token is needed: Authorization: Bearer whr_…",
        ));
    }
    let token = Token::parse(text).map_err(|e| refused(&e.to_string()))?;
    match store.catalog.token(token.id()).await {
        Ok(Some(digest)) if token.matches(&digest) => Ok(()),
        Ok(_) => Err(refused("this token is not valid here")),
        Err(error) => Err(error.into()),
    }
}

/// Why the admin token could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The file cannot be read or written.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// The token file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The store cannot keep the token.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The admin token of a forwarder: the one in its token file, or on the first start (or when the
/// file is gone) a new one, in a new file that only the owner may read. It is the only one that is let in. Says
/// whether it is new.
///
/// # Errors
/// When the file or the store fails.
pub async fn admin_token(store: &Store, path: &Path) -> Result<(Token, bool), TokenFileError> {
    let io = |error| TokenFileError::Io {
        path: path.to_owned(),
        error,
    };
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => {
            let token = Token::parse(&text)
                .map_err(|e| io(io::Error::new(io::ErrorKind::InvalidData, e)))?;
            if !store
                .catalog
                .token(token.id())
                .await?
                .is_some_and(|digest| token.matches(&digest))
            {
                store.catalog.set_token(&token).await?;
            }
            Ok((token, false))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(error)),
        Ok(_) | Err(_) => {
            let token = Token::mint(&std::array::from_fn(|_| rand::random()));
            store.catalog.set_token(&token).await?;
            write_private(path, format!("{}\n", token.expose()).as_bytes()).map_err(io)?;
            Ok((token, true))
        }
    }
}
