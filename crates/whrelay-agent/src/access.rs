//! The token that an agent sends, and the file it may be read from again. It must not know which tokens are valid.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use whrelay_core::token::Token;

/// What an agent shows to its forwarder.
#[derive(Clone, Debug)]
pub struct Access {
    token: Arc<Mutex<Token>>,
    file: Option<PathBuf>,
}

impl Access {
    /// A token, and the file that it is from: one that is replaced there is used from then on.
    pub fn new(token: Token, file: Option<PathBuf>) -> Self {
        Self {
            token: Arc::new(Mutex::new(token)),
            file,
        }
    }

    pub(crate) fn token(&self) -> Token {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        token.clone()
    }

    /// Reads the file again. Says whether it has another token now.
    pub(crate) fn read_again(&self) -> bool {
        let Some(file) = &self.file else {
            return false;
        };
        let text = std::fs::read_to_string(file).map_err(|error| error.to_string());
        let read = text.and_then(|text| Token::parse(&text).map_err(|error| error.to_string()));
        let found = match read {
            Ok(found) => found,
            Err(why) => {
                tracing::warn!(file = %file.display(), why, "could not read the token again");
                return false;
            }
        };
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = found.digest() != token.digest();
        *token = found;
        is_new
    }
}
