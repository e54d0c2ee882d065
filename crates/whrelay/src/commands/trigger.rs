//! `whrelay trigger`: a sample webhook in a provider's shape, signed as that provider signs. It must not
//! come from anyone's real account.

mod samples;
mod sign;

use std::time::Duration;

use whrelay_core::target::Target;

use self::samples::{Provider, SAMPLES, Sample};
use self::sign::Stamp;
use crate::args::TriggerArgs;
use crate::failure::{Code, Failure};
use crate::output::Output;

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
    let sample = find(args.provider.as_deref(), args.event.as_deref())?;
    let to = args.to.as_ref().ok_or_else(|| {
        Failure::new(Code::Usage, "nothing says where to send it")
            .hint("whrelay trigger github push --to URL, the input URL or a target")
    })?;
    if to.socket().is_some() {
        return Err(Failure::new(Code::Usage, "samples are sent over TCP only")
            .hint("give the input URL that `whrelay listen` shows"));
    }
    let url = to.request_url("", None);
    let url = url.map_err(|e| Failure::new(Code::Usage, e.to_string()))?;
    let mut client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ANSWERED_WITHIN);
    if to.is_loopback() {
        client = client.no_proxy();
    }
    let client = client.build().map_err(|e| unreachable(to, &e))?;
    for _ in 0..args.count {
        send(&client, &url, to, sample, &args, output).await?;
    }
    Ok(())
}

fn unreachable(to: &Target, error: &reqwest::Error) -> Failure {
    let why = whrelay_agent::chain(error);
    Failure::new(Code::Unreachable, format!("{to}: {why}"))
        .hint("is the address right, and does something listen there?")
}

/// The sample of that name; where it is not told whole, what there is.
fn find(provider: Option<&str>, event: Option<&str>) -> Result<&'static Sample, Failure> {
    let usage = |message: String, hint: String| Err(Failure::new(Code::Usage, message).hint(hint));
    let providers = Provider::ALL.map(Provider::as_str).join(", ");
    let Some(named) = provider else {
        return usage(
            "which webhook?".into(),
            format!("use one of {providers}; --list has all"),
        );
    };
    let Some(provider) = Provider::ALL.into_iter().find(|p| p.as_str() == named) else {
        return usage(
            format!("no samples of `{named}`"),
            format!("there are {providers}"),
        );
    };
    let mut all = SAMPLES.iter().filter(|sample| sample.provider == provider);
    let names: Vec<_> = all.clone().map(|sample| sample.name).collect();
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
    url: &str,
    to: &Target,
    sample: &Sample,
    args: &TriggerArgs,
    output: &Output,
) -> Result<(), Failure> {
    let stamp = Stamp::new(jiff::Timestamp::now(), rand::random());
    let body = sample.body(&stamp);
    let signed = sign::fields(sample, &stamp, &body, args.secret.as_deref());
    let signed =
        signed.map_err(|e| Failure::new(Code::Usage, e).hint("see `whrelay trigger --help`"))?;
    let mut request = client.post(url).body(body);
    for (name, value) in sample.fields(&stamp).into_iter().chain(signed) {
        request = request.header(name, value);
    }
    let answer = request
        .send()
        .await
        .map_err(|e| unreachable(to, &e.without_url()))?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    let provider = sample.provider.as_str();
    if args.json {
        let text = crate::text::shown(&text);
        let line = serde_json::json!({
            "type": "trigger", "provider": provider, "event": sample.name,
            "url": to.to_string(), "status": status.as_u16(), "answer": text,
        });
        output.json(&line)?;
    } else {
        let text = crate::text::shown(text.trim_end());
        output.data(&format!(
            "[{}] {provider} {} -> {to}  {text}",
            status.as_u16(),
            sample.name
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
