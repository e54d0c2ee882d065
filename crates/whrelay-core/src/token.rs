//! Access tokens: `whr_adm_<id>_<secret>_<check>`, with a prefix and a checksum that scanners and
//! people can recognise. It must not know which tokens are valid.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::secret::Secret;

/// How all tokens begin.
const TOKENS: &[u8] = b"whr_";
const PREFIX: &str = "whr_adm";
const ID_LEN: usize = 10;
const SECRET_LEN: usize = 43;
const CHECK_LEN: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Random bytes a token is minted from: 62 values are drawn with a bias under 2^-50.
pub type TokenSeed = [u64; ID_LEN + SECRET_LEN];

/// An access token: what a person or an agent presents.
#[derive(Clone, Debug)]
pub struct Token {
    id: String,
    secret: Secret,
}

/// What a store keeps of a token: enough to recognise it, too little to present it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenDigest(pub [u8; 32]);

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not look like one.
    #[error("this is no whrelay token: those have the form whr_adm_…")]
    Form,
    /// It looks like one, but its checksum does not fit.
    #[error("this token has a typing error or is incomplete: its checksum does not fit")]
    Check,
}

impl Token {
    /// Mints a token.
    pub fn mint(seed: &TokenSeed) -> Self {
        let text: String = seed
            .iter()
            .map(|n| char::from(BASE62[(n % 62) as usize]))
            .collect();
        let (id, secret) = text.split_at(ID_LEN);
        Self {
            id: id.to_owned(),
            secret: Secret::new(secret),
        }
    }

    /// Whether a text may be one of our tokens, whole or not.
    pub fn looks_like_one(text: &[u8]) -> bool {
        let begin = text.trim_ascii_start().get(..TOKENS.len());
        begin.is_some_and(|begin| begin.eq_ignore_ascii_case(TOKENS))
    }

    /// Whether there is one of our tokens in a text.
    pub fn is_in(text: &[u8]) -> bool {
        const LEN: usize = PREFIX.len() + ID_LEN + SECRET_LEN + CHECK_LEN + 3;
        let mut parts = text.windows(LEN);
        parts.any(|part| {
            part.starts_with(TOKENS)
                && std::str::from_utf8(part).is_ok_and(|text| Self::parse(text).is_ok())
        })
    }

    /// Reads a token as it is presented.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        // Some editors begin a file with a byte order mark.
        let rest = text
            .trim_start_matches('\u{feff}')
            .trim()
            .strip_prefix(PREFIX)
            .and_then(|r| r.strip_prefix('_'));
        let mut parts = rest.ok_or(TokenError::Form)?.split('_');
        let (id, secret, check) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(id), Some(secret), Some(check), None) => (id, secret, check),
            _ => return Err(TokenError::Form),
        };
        let plain = |s: &str, len| s.len() == len && s.bytes().all(|b| b.is_ascii_alphanumeric());
        if !plain(id, ID_LEN) || !plain(secret, SECRET_LEN) || !plain(check, CHECK_LEN) {
            return Err(TokenError::Form);
        }
        let token = Self {
            id: id.to_owned(),
            secret: Secret::new(secret),
        };
        if token.check() == check {
            Ok(token)
        } else {
            Err(TokenError::Check)
        }
    }

    /// The public part, by which a store finds the digest.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The whole token, for the one place that presents or saves it.
    pub fn expose(&self) -> String {
        format!(
            "{PREFIX}_{}_{}_{}",
            self.id,
            self.secret.expose(),
            self.check()
        )
    }

    /// What a store keeps. The secret has 256 bits, so a plain hash is enough.
    pub fn digest(&self) -> TokenDigest {
        TokenDigest(Sha256::digest(self.secret.expose().as_bytes()).into())
    }

    /// Whether this is the token of the digest, in constant time.
    pub fn matches(&self, digest: &TokenDigest) -> bool {
        self.digest().0.ct_eq(&digest.0).into()
    }

    fn check(&self) -> String {
        let mut rest = crc32fast::hash(format!("{}{}", self.id, self.secret.expose()).as_bytes());
        let digits = std::iter::repeat_with(|| {
            let digit = BASE62[(rest % 62) as usize];
            rest /= 62;
            char::from(digit)
        });
        digits.take(CHECK_LEN).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(first: u64) -> Token {
        let mut seed = [5u64; ID_LEN + SECRET_LEN];
        seed[ID_LEN] = first;
        Token::mint(&seed)
    }

    #[test]
    fn what_is_minted_is_recognised_and_nothing_else_is() {
        let mine = Token::parse(&token(1).expose()).expect("a token");
        assert!(mine.matches(&token(1).digest()));
        assert!(!mine.matches(&token(2).digest()));
        assert!(!format!("{mine:?}").contains(mine.secret.expose()));
    }

    #[test]
    fn a_typing_error_is_told_apart_from_another_thing() {
        let text = token(1).expose();
        assert_eq!(
            Token::parse(&text.replacen("_5", "_6", 1)).err(),
            Some(TokenError::Check)
        );
        assert_eq!(Token::parse("ghp_0123").err(), Some(TokenError::Form));
        assert_eq!(Token::parse(&text[..40]).err(), Some(TokenError::Form));
    }

    #[test]
    fn a_token_is_found_in_what_is_around_it_and_read_from_a_file_of_any_editor() {
        let text = token(1).expose();
        for around in ["", "Bearer ", "a=b; t=\""] {
            let around = format!("{around}{text}\"; c=d");
            assert!(Token::is_in(around.as_bytes()), "{around}");
        }
        assert!(!Token::is_in(text.replacen("_5", "_6", 1).as_bytes()));
        assert!(!Token::is_in(&text.as_bytes()[1..]) && !Token::is_in(b""));
        assert!(Token::parse(&format!("\u{feff}{text}\r\n")).is_ok());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = Token::parse(&text);
        }
    }
}
