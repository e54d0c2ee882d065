//! `whrelay trigger`: a sample webhook in a provider's shape, signed as that provider signs. It must not
//! come from anyone's real account.

mod samples;
mod stamp;

use std::time::Duration;

use bytes::Bytes;
use whrelay_agent::control::Ask;
use whrelay_agent::lines::Line;
use whrelay_core::event::{Header, Request};
use whrelay_core::target::Target;
use whrelay_core::time::Timestamp;
use whrelay_delivery::{TRIGGERED, client_config};
use whrelay_providers::{Key, Provider, sign};

use self::samples::{SAMPLES, Sample};
use self::stamp::Stamp;
use crate::agents::{self, Round};
use crate::args::{self, TriggerArgs};
use crate::failure::{Code, Failure};
use crate::output::Output;
use crate::paths::Paths;

/// How long whoever gets a sample may take to answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

pub(crate) async fn run(args: TriggerArgs, output: &Output) -> Result<(), Failure> {
    if args.list {
        for sample in SAMPLES {
            let (provider, name) = (sample.provider.as_str(), sample.name);
            output.data(&match args.json {
                true => serde_json::json!({"type": "sample", "provider": provider, "event": name})
                    .to_string(),
                false => format!("{provider} {name}"),
            })?;
        }
        return Ok(());
    }
    let webhook = Webhook::chosen(&args)?;
    let to = match &args.to {
        Some(to) => to.clone(),
        None => running_input().await?,
    };
    if to.socket().is_some() {
        return Err(Failure::new(Code::Usage, "samples are sent over TCP only")
            .hint("give the input URL that `whrelay listen` shows"));
    }
    let url = to.request_url("", None);
    let url = url.map_err(|e| Failure::new(Code::Usage, e.to_string()))?;
    let client = client(&args, &to)?;
    for _ in 0..args.count {
        let stamp = Stamp::new(jiff::Timestamp::now(), rand::random());
        let request = webhook.request(&stamp, &url)?;
        send(&client, (&url, &to), &webhook, request, (args.json, output)).await?;
    }
    Ok(())
}

fn client(args: &TriggerArgs, to: &Target) -> Result<reqwest::Client, Failure> {
    let tls = client_config(&args.trust());
    let tls = tls.map_err(|e| Failure::new(Code::Failed, format!("TLS: {e}")))?;
    let mut client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWERED_WITHIN);
    if to.is_loopback() {
        client = client.no_proxy();
    }
    client.build().map_err(|e| unreachable(to, &e))
}

fn unreachable(to: &Target, error: &reqwest::Error) -> Failure {
    let why = whrelay_agent::chain(error);
    Failure::new(Code::Unreachable, format!("{to}: {why}"))
        .hint("is the address right, and does something listen there?")
}

/// The input URL of the one `listen` that runs here.
async fn running_input() -> Result<Target, Failure> {
    let (mut round, mut inputs) = (Round::default(), Vec::new());
    for dir in Paths::resolve()?.all_agents() {
        let lines = round.note(agents::gather(&dir, Ask::Status).await);
        for line in lines.unwrap_or_default() {
            if let Line::Status(status) = line
                && status.pid.is_some()
            {
                inputs.extend(status.url);
            }
        }
    }
    let wrong = |why: &str, hint: &str| Failure::new(Code::Usage, why).hint(hint);
    match &inputs[..] {
        [one] => one
            .parse()
            .map_err(|e| wrong(&format!("{e}"), "give the address with --to")),
        [] => Err(wrong(
            "nothing says where to send it, and no `whrelay listen` runs here",
            "start `whrelay listen 3000` in another terminal, or give an input URL or a target with --to",
        )),
        [_, _, ..] => Err(wrong(
            "several `whrelay listen` run here",
            &format!("choose one with --to: {}", inputs.join(", ")),
        )),
    }
}

/// What is sent.
struct Webhook {
    provider: Provider,
    /// What the provider calls it.
    name: Option<String>,
    body: Body,
    key: Option<Key>,
}

enum Body {
    Sample(&'static Sample),
    File(Bytes),
}

impl Webhook {
    fn chosen(args: &TriggerArgs) -> Result<Self, Failure> {
        let (provider, event) = (args.provider.as_deref(), args.event.as_deref());
        let (provider, name, body) = match &args.body {
            None => {
                let sample = find(provider, event)?;
                let name = Some(sample.name.to_owned());
                (sample.provider, name, Body::Sample(sample))
            }
            Some(path) => {
                let failed = |why: String| {
                    Failure::new(Code::Usage, why).hint("whrelay trigger stripe --body event.json")
                };
                let provider = provider.ok_or_else(|| failed("which provider sends it?".into()))?;
                let provider = provider
                    .parse::<Provider>()
                    .map_err(|e| failed(e.to_string()))?;
                let read = std::fs::read(path);
                let body = read.map_err(|e| failed(format!("--body {}: {e}", path.display())))?;
                (provider, event.map(str::to_owned), Body::File(body.into()))
            }
        };
        let key = args
            .secret
            .as_deref()
            .map(|secret| args::key(provider, secret));
        let key = key.transpose().map_err(|e| {
            Failure::new(Code::Usage, format!("--secret: {e}")).hint("see `whrelay trigger --help`")
        })?;
        Ok(Self {
            provider,
            name,
            body,
            key,
        })
    }

    /// The request to a URL.
    fn request(&self, stamp: &Stamp, url: &str) -> Result<Request, Failure> {
        let body = match &self.body {
            Body::Sample(sample) => sample.body(stamp).into(),
            Body::File(body) => body.clone(),
        };
        let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
        let kind = match is_json {
            true => "application/json",
            false => "application/x-www-form-urlencoded",
        };
        let header = |name: &str, value: String| Header {
            name: name.to_owned(),
            value: value.into(),
        };
        let mut headers = vec![
            header("content-type", kind.to_owned()),
            header(TRIGGERED, "1".to_owned()),
        ];
        let fields = samples::fields(self.provider, self.name.as_deref(), stamp);
        headers.extend(fields.into_iter().map(|(name, value)| header(name, value)));
        let mut request = Request {
            method: "POST".to_owned(),
            tail: String::new(),
            query: None,
            headers,
            body,
        };
        if let Some(key) = &self.key {
            let now = Timestamp::from_micros(stamp.micros());
            let signed = sign(key, &request, url, now).ok_or_else(|| {
                let why = format!("{} cannot have signed this body", self.provider);
                Failure::new(Code::Usage, why)
                    .hint("Linear's bodies have a webhookTimestamp, Twilio's a matching bodySHA256 in the URL")
            })?;
            for (name, value) in signed.fields {
                request.headers.retain(|header| header.name != name);
                request.headers.push(header(name, value));
            }
            request.body = signed.body.unwrap_or(request.body);
        }
        Ok(request)
    }
}

/// The sample of that name; where it is not told whole, what there is.
fn find(provider: Option<&str>, event: Option<&str>) -> Result<&'static Sample, Failure> {
    let usage = |message: String, hint: String| Err(Failure::new(Code::Usage, message).hint(hint));
    let mut providers: Vec<_> = SAMPLES.iter().map(|s| s.provider.as_str()).collect();
    providers.dedup();
    let providers = providers.join(", ");
    let Some(named) = provider else {
        return usage(
            "which webhook?".into(),
            format!("use one of {providers}; --list has all"),
        );
    };
    let known = named.parse::<Provider>().ok();
    let mut all = SAMPLES
        .iter()
        .filter(|sample| Some(sample.provider) == known);
    let names: Vec<_> = all.clone().map(|sample| sample.name).collect();
    if names.is_empty() {
        return usage(
            format!("no samples of `{named}`"),
            format!("there are {providers}; --body FILE sends a webhook of your own"),
        );
    }
    let found = event.and_then(|event| all.find(|sample| sample.name == event));
    match (found, event) {
        (Some(sample), _) => Ok(sample),
        (None, Some(event)) => usage(
            format!("no sample `{event}` of {named}"),
            format!("there are {}", names.join(", ")),
        ),
        (None, None) => usage(
            format!("which webhook of {named}?"),
            format!("there are {}", names.join(", ")),
        ),
    }
}

async fn send(
    client: &reqwest::Client,
    (url, to): (&str, &Target),
    webhook: &Webhook,
    sent: Request,
    (json, output): (bool, &Output),
) -> Result<(), Failure> {
    let mut request = client.post(url).body(sent.body);
    for Header { name, value } in sent.headers {
        request = request.header(name, &value[..]);
    }
    let answer = request
        .send()
        .await
        .map_err(|e| unreachable(to, &e.without_url()))?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    let (provider, event) = (webhook.provider.as_str(), webhook.name.as_deref());
    if json {
        let line = serde_json::json!({
            "type": "trigger", "provider": provider, "event": event,
            "url": to.to_string(), "status": status.as_u16(), "answer": crate::text::shown(&text),
        });
        output.json(&line)?;
    } else {
        let event = event.map(|event| format!(" {event}")).unwrap_or_default();
        let lines: Vec<_> = text.trim_end().lines().map(crate::text::shown).collect();
        let text = match lines.len() {
            0 | 1 => format!("  {}", lines.concat()),
            _ => format!("\n    {}", lines.join("\n    ")),
        };
        output.data(&format!(
            "[{}] {provider}{event} -> {to}{text}",
            status.as_u16()
        ))?;
    }
    match status.is_success() {
        true => Ok(()),
        false => Err(Failure::new(
            Code::Failed,
            format!("{to} answered {status}"),
        )),
    }
}
