//! Asking a forwarder to show or change something, for commands. It must not open a tunnel, nor know what the
//! answers mean.

use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use url::Url;
use whrelay_core::limits;
use whrelay_core::token::Token;
use whrelay_delivery::{Trust, client_config};

use crate::error::{AgentError, chain};
use crate::provision::{client, read, refused};
use crate::proxy::Proxies;

/// A client of a forwarder's routes.
#[derive(Clone, Debug)]
pub struct Management {
    /// Where it is.
    pub forwarder: Url,
    /// What stands between here and there.
    pub proxies: Proxies,
    /// Whom to trust.
    pub trust: Trust,
    /// The token it sends.
    pub token: Token,
}

/// Why a forwarder did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ManagementError {
    /// It cannot be asked.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// It does not have what the request is about.
    #[error("{0}")]
    NotFound(String),
    /// What the request is about is in use.
    #[error("{0}")]
    InUse(String),
}

impl ManagementError {
    /// Whether asking again later may help.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Agent(error) => error.is_retryable(),
            Self::InUse(_) => true,
            Self::NotFound(_) => false,
        }
    }
}

#[derive(Deserialize)]
struct ProblemAnswer {
    detail: String,
}

impl Management {
    /// Asks for a path below the forwarder's address, and answers with its JSON.
    ///
    /// # Errors
    /// When the forwarder cannot be reached, or refuses.
    pub async fn ask(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
    ) -> Result<Value, ManagementError> {
        self.exchange(method, path, &[], body).await
    }

    /// Reads a path below the forwarder's address, with a query.
    ///
    /// # Errors
    /// As [`Management::ask`].
    pub async fn look(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Value, ManagementError> {
        self.exchange(Method::GET, path, query, None).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, ManagementError> {
        let unreachable = |why: String| AgentError::Unreachable {
            forwarder: self.forwarder.to_string(),
            why,
        };
        let mut address = self.forwarder.clone();
        if let Ok(mut segments) = address.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            address.query_pairs_mut().extend_pairs(query);
        }
        let tls = client_config(&self.trust).map_err(AgentError::from)?;
        let client = client(&self.forwarder, &self.proxies, tls);
        let client = client.map_err(unreachable)?;
        let mut request = client
            .request(method, address)
            .bearer_auth(self.token.expose());
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await;
        let answer =
            answer.map_err(|e| unreachable(self.proxies.why(&self.forwarder, &e.without_url())))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let said = read(answer, limits::MAX_STATUS_ANSWER).await;
        let said = said.map_err(|e| unreachable(chain(&e.without_url())))?;
        if status.is_success() {
            let said = serde_json::from_slice(&said);
            return Ok(said.map_err(|e| unreachable(chain(&e)))?);
        }
        let problem = serde_json::from_slice::<ProblemAnswer>(&said);
        Err(match (status, problem) {
            (StatusCode::NOT_FOUND, Ok(problem)) => ManagementError::NotFound(problem.detail),
            (StatusCode::CONFLICT, Ok(problem)) => ManagementError::InUse(problem.detail),
            (_, _) => refused(&self.forwarder, status, &headers, &said).into(),
        })
    }
}
