//! Asking the forwarder for a bucket. It must not open a tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION};
use serde::Deserialize;
use url::Url;
use whrelay_core::bucket::BucketName;
use whrelay_core::limits;
use whrelay_core::time::Timestamp;
use whrelay_core::token::Token;
use whrelay_delivery::{Trust, client_config};

use crate::Config;
use crate::error::{AgentError, chain};
use crate::proxy::Proxies;

/// The type of a forwarder's errors (RFC 9457).
pub(crate) const PROBLEM: &[u8] = b"application/problem+json";
const TIMEOUT: Duration = Duration::from_secs(10);
/// `localhost`, as a forwarder is dialled. The ports are those of the URL.
const LOCALHOST: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0),
];

/// A bucket, as its forwarder shows it.
#[derive(Clone, Debug, Deserialize)]
pub struct ProvisionedBucket {
    /// Its input URL.
    pub url: String,
    /// The name of the forwarder's store; older forwarders do not say it.
    pub store: Option<String>,
}

#[derive(Deserialize)]
struct ProblemAnswer {
    detail: String,
}

/// A bucket of a forwarder, which is created where the token may and it is missing.
///
/// # Errors
/// When the forwarder cannot be reached, is none, or refuses.
pub async fn ensure_bucket(
    forwarder: &Url,
    proxies: &Proxies,
    trust: &Trust,
    token: &Token,
    bucket: &BucketName,
) -> Result<ProvisionedBucket, AgentError> {
    let unreachable = |why: String| AgentError::Unreachable {
        forwarder: forwarder.to_string(),
        why,
    };
    let address = format!(
        "{}/v1/buckets/{bucket}",
        forwarder.as_str().trim_end_matches('/')
    );
    let client = client(forwarder, proxies, client_config(trust)?).map_err(unreachable)?;
    let request = client.put(address).bearer_auth(token.expose());
    let response = request
        .send()
        .await
        .map_err(|e| unreachable(proxies.why(forwarder, &e.without_url())))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let answer = read(response, limits::MAX_API_ANSWER).await;
    let answer = answer.map_err(|e| unreachable(chain(&e.without_url())))?;
    if status.is_success() {
        return serde_json::from_slice(&answer).map_err(|_| {
            unreachable("it answered as no forwarder does: a login page, or another server?".into())
        });
    }
    Err(refused(forwarder, status, &headers, &answer))
}

/// What an answer means that is not a success. A forwarder says why, in JSON (RFC 9457); what does not is something before
/// it, and its codes are not about the token.
pub(crate) fn refused(
    forwarder: &Url,
    status: StatusCode,
    headers: &HeaderMap,
    answer: &[u8],
) -> AgentError {
    let unreachable = |why: String| AgentError::Unreachable {
        forwarder: forwarder.to_string(),
        why,
    };
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let is_ours = kind.is_some_and(|kind| kind.starts_with(PROBLEM));
    let detail = serde_json::from_slice::<ProblemAnswer>(answer).map(|problem| problem.detail);
    let detail = detail.unwrap_or_else(|_| format!("it answered {status}"));
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if is_ours => {
            AgentError::Unauthorised(detail)
        }
        StatusCode::BAD_REQUEST if is_ours => AgentError::Refused(detail),
        _ if is_ours => unreachable(detail),
        _ if status.is_redirection() => {
            let to = headers.get(LOCATION).and_then(|to| to.to_str().ok());
            let to = to.unwrap_or("another address");
            unreachable(format!(
                "it redirects to {to}: use that address, without a path behind it"
            ))
        }
        _ => unreachable(format!(
            "{status} from something before the forwarder, such as a proxy or a login page"
        )),
    }
}

/// The input URL of an agent's bucket.
pub(crate) async fn provision(config: &Config) -> Result<String, AgentError> {
    let Config {
        forwarder,
        proxies,
        trust,
        access,
        bucket,
        ..
    } = config;
    let bucket = ensure_bucket(forwarder, proxies, trust, &access.token(), bucket).await?;
    Ok(bucket.url)
}

/// What a forwarder says to one who only looks.
#[derive(Clone, Debug)]
pub struct Looked {
    /// Whether it takes the token; its words where it does not.
    pub token: Result<(), String>,
    /// Its clock, to the second, where it says what that shows.
    pub clock: Option<Timestamp>,
    /// How long it took to answer.
    pub took: Duration,
}

/// Asks a forwarder for something that changes nothing.
///
/// # Errors
/// When it cannot be reached, or is none.
pub async fn look_at(
    forwarder: &Url,
    proxies: &Proxies,
    trust: &Trust,
    token: Option<&Token>,
) -> Result<Looked, AgentError> {
    let unreachable = |why: String| AgentError::Unreachable {
        forwarder: forwarder.to_string(),
        why,
    };
    let client = client(forwarder, proxies, client_config(trust)?).map_err(unreachable)?;
    let root = forwarder.as_str().trim_end_matches('/');
    let mut request = client.get(format!("{root}/v1/buckets?limit=1"));
    if let Some(token) = token {
        request = request.bearer_auth(token.expose());
    }
    let began = Instant::now();
    let answer = request.send().await;
    let answer = answer.map_err(|e| unreachable(proxies.why(forwarder, &e.without_url())))?;
    let took = began.elapsed();
    let (status, date) = (answer.status(), answer.headers().get(DATE));
    let clock = date.and_then(|date| Timestamp::from_http_date(date.to_str().ok()?));
    let said = read(answer, limits::MAX_API_ANSWER).await;
    let said = said.map_err(|e| unreachable(chain(&e.without_url())))?;
    let is_list = serde_json::from_slice::<Vec<ProvisionedBucket>>(&said).is_ok();
    let said = serde_json::from_slice::<ProblemAnswer>(&said);
    let token = match status {
        StatusCode::OK if is_list => Ok(()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(said.map_or_else(|_| status.to_string(), |said| said.detail))
        }
        other => {
            let why = format!("it answered {other} as no forwarder does");
            return Err(unreachable(why));
        }
    };
    Ok(Looked { token, clock, took })
}

pub(crate) fn client(
    forwarder: &Url,
    proxies: &Proxies,
    tls: rustls::ClientConfig,
) -> Result<reqwest::Client, String> {
    let told = |e: reqwest::Error| chain(&e);
    let mut client = reqwest::Client::builder()
        .timeout(TIMEOUT)
        .resolve_to_addrs("localhost", &LOCALHOST)
        .no_proxy()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none());
    if let Some(through) = proxies.toward(forwarder).map_err(|e| e.to_string())? {
        let mut proxy = reqwest::Proxy::all(through.uri().to_string()).map_err(told)?;
        if let Some(auth) = through.basic_auth() {
            proxy = proxy.custom_http_auth(auth.clone());
        }
        client = client.proxy(proxy);
    }
    client.build().map_err(told)
}

/// The body of an answer, as far as a forwarder's goes: that of a stranger may have no end.
pub(crate) async fn read(
    mut response: reqwest::Response,
    most: usize,
) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    while body.len() < most {
        let Some(chunk) = response.chunk().await? else {
            break;
        };
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
