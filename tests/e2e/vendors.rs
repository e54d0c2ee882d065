//! Vendors' own libraries judge what is delivered: at once, and as late as a month.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "most providers' webhooks are alike"
)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::RngExt as _;
use serde_json::{Value, json};
use whrelay_core::event::{Header, Request};
use whrelay_core::time::Timestamp;
use whrelay_providers::{Key, Keyring, Provider, Signed, Verdict, sign};
use whrelay_tests::eventually;
use whrelay_tests::port;
use whrelay_tests::process::{Home, Process};
use whrelay_tests::receiver::Receiver;
use whrelay_tests::sender::{client, id_of};

use crate::{home, json_lines, told};

/// Libraries, by the name that their receiver knows, and whose signatures they verify.
const LIBRARIES: [(&str, Provider); 33] = [
    ("stripe", Provider::Stripe),
    ("svix", Provider::Standard),
    ("standard", Provider::Standard),
    ("openai", Provider::Standard),
    ("resend", Provider::Standard),
    ("clerk", Provider::Standard),
    ("slack", Provider::Slack),
    ("paddle", Provider::Paddle),
    ("linear", Provider::Linear),
    ("workos", Provider::Workos),
    ("hubspot", Provider::Hubspot),
    ("contentful", Provider::Contentful),
    ("twilio", Provider::Twilio),
    ("square", Provider::Square),
    ("github", Provider::Github),
    ("shopify", Provider::Shopify),
    ("line", Provider::Line),
    ("razorpay", Provider::Razorpay),
    ("sanity", Provider::Sanity),
    ("py-stripe", Provider::Stripe),
    ("py-svix", Provider::Standard),
    ("py-standard", Provider::Standard),
    ("py-resend", Provider::Standard),
    ("py-openai", Provider::Standard),
    ("py-workos", Provider::Workos),
    ("py-hubspot", Provider::Hubspot),
    ("py-line", Provider::Line),
    ("py-razorpay", Provider::Razorpay),
    ("py-slack", Provider::Slack),
    ("py-slack-bolt", Provider::Slack),
    ("py-paddle", Provider::Paddle),
    ("py-twilio", Provider::Twilio),
    ("py-square", Provider::Square),
];

fn vendors(file: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("vendors");
    assert!(
        dir.join("node_modules").exists(),
        "tests/run.sh installs what is needed"
    );
    dir.join(file)
}

fn secret(provider: Provider) -> String {
    match provider {
        Provider::Standard => "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD".to_owned(),
        // As long as Contentful's have to be.
        other => format!("{:a<64}", other.as_str()),
    }
}

fn key(provider: Provider) -> Key {
    Key::new(provider, &secret(provider)).unwrap()
}

fn now() -> Timestamp {
    Timestamp::EPOCH.after(SystemTime::now().duration_since(UNIX_EPOCH).unwrap())
}

fn header(name: &str, value: &str) -> Header {
    Header {
        name: name.to_owned(),
        value: value.to_owned().into(),
    }
}

/// A provider's webhook to a URL, signed at a time.
fn webhook(provider: Provider, url: &str, at: Timestamp) -> Request {
    let millis = at.as_micros() / 1_000;
    let id = format!("msg_{:032x}", rand::random::<u128>());
    let (kind, body) = match provider {
        Provider::Twilio => (
            "application/x-www-form-urlencoded",
            format!("MessageSid={id}&Body=caf%C3%A9+%26+tea&From=%2B14158675309"),
        ),
        _ => (
            "application/json",
            json!({"id": id, "type": "sample", "text": "Öst", "webhookTimestamp": millis})
                .to_string(),
        ),
    };
    let mut headers = vec![header("content-type", kind)];
    headers.extend(match provider {
        Provider::Standard => vec![
            header("webhook-id", &id),
            header("svix-id", &id),
            header("svix-timestamp", &(millis / 1_000).to_string()),
        ],
        Provider::Contentful => vec![
            header("x-contentful-topic", "ContentManagement.Entry.publish"),
            header(
                "x-contentful-signed-headers",
                "x-contentful-signed-headers,x-contentful-timestamp,x-contentful-topic",
            ),
        ],
        Provider::Shopify => vec![
            header("x-shopify-topic", "orders/create"),
            header("x-shopify-shop-domain", "tea.myshopify.com"),
            header("x-shopify-api-version", "2026-10"),
            header("x-shopify-webhook-id", &id),
        ],
        _ => Vec::new(),
    });
    let mut request = Request {
        method: "POST".to_owned(),
        tail: String::new(),
        query: None,
        headers,
        body: body.into(),
    };
    let Signed { fields, body } = sign(&key(provider), &request, url, at).unwrap();
    for (name, value) in fields {
        request.headers.retain(|header| header.name != name);
        request.headers.push(header(name, &value));
    }
    request.body = body.unwrap_or(request.body);
    request
}

async fn post(url: &str, request: Request) -> String {
    let mut sending = client().post(url).body(request.body);
    for Header { name, value } in request.headers {
        sending = sending.header(name, &value[..]);
    }
    id_of(&sending.send().await.unwrap().text().await.unwrap())
}

/// What was sent, by the event's id: for which library, and whether it may be accepted.
type Sent = BTreeMap<String, (&'static str, Provider, bool)>;

/// For each library a good event, a forged one, and one that was too old when it came.
async fn send_all(url: &str) -> Sent {
    let mut sent = Sent::new();
    for (library, provider) in LIBRARIES {
        let to = format!("{url}/{library}/hook");
        let good = webhook(provider, &to, now());
        let mut forged = webhook(provider, &to, now());
        let body = String::from_utf8(forged.body.to_vec()).unwrap();
        forged.body = body
            .replace("sample", "forged")
            .replace("tea", "tee")
            .into();
        sent.insert(post(&to, good).await, (library, provider, true));
        sent.insert(post(&to, forged).await, (library, provider, false));
        if provider.tolerance().is_some() {
            let old = Timestamp::from_micros(now().as_micros() - 3_600_000_000);
            let stale = webhook(provider, &to, old);
            sent.insert(post(&to, stale).await, (library, provider, false));
        }
    }
    sent
}

/// Receivers in which the libraries judge.
struct Judges {
    node: String,
    python: String,
    running: Vec<Process>,
}

impl Judges {
    fn new() -> Self {
        Self {
            node: port::quiet(),
            python: port::quiet(),
            running: Vec::new(),
        }
    }

    /// Starts them in the time of a home.
    async fn start(&mut self, home: &Home) {
        self.running.clear();
        let secrets: BTreeMap<_, _> = LIBRARIES
            .iter()
            .map(|(library, provider)| (library, secret(*provider)))
            .collect();
        let file = home.path().join("secrets.json");
        std::fs::write(&file, json!(secrets).to_string()).unwrap();
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let python = vendors("venv/bin/python");
        for (program, script, address) in [
            ("node".to_owned(), "receiver.mjs", &self.node),
            (text(&python), "receiver.py", &self.python),
        ] {
            let port = address.rsplit(':').next().unwrap();
            let args = [&text(&vendors(script)), port, &text(&file)];
            self.running.push(home.start_program(&program, &args));
        }
        for process in &self.running {
            eventually("a receiver is ready", || {
                let ready = process.printed().iter().any(|line| line == "ready");
                ready.then_some(())
            })
            .await;
        }
    }

    /// Where `listen` delivers to.
    fn targets(&self) -> Vec<String> {
        let mut args = vec!["--to".to_owned(), self.node.clone()];
        for (library, _) in LIBRARIES.iter().filter(|(l, _)| l.starts_with("py-")) {
            args.push("--route".to_owned());
            args.push(format!("/{library}={}", self.python));
        }
        args
    }
}

fn providers() -> Vec<String> {
    let mut args = Vec::new();
    let mut known: Vec<_> = LIBRARIES.iter().map(|(_, provider)| *provider).collect();
    known.dedup();
    for provider in known {
        args.push("--provider".to_owned());
        args.push(format!("{provider}={}", secret(provider)));
    }
    args
}

async fn listen(home: &Home, args: &[Vec<String>]) -> (Process, String) {
    let all: Vec<&str> = args.iter().flatten().map(String::as_str).collect();
    // One at a time: some signatures are accepted for 5 s, and a receiver that has much to do at once takes longer.
    let kept = [
        "--retain",
        "0",
        "--deadline",
        "300d",
        "--max-in-flight",
        "1",
    ];
    home.listen(&[&kept[..], &all].concat()).await
}

/// The attempt that ended each event's delivery, or its replay.
async fn ends(listen: &Process, sent: &Sent, replay: bool) -> BTreeMap<String, Value> {
    eventually("all are judged", || {
        let ended: BTreeMap<_, _> = listen
            .all("attempt")
            .into_iter()
            .filter(|line| line["replay"] == replay && line["state"] != "stalled")
            .map(|line| (line["event"].as_str().unwrap().to_owned(), line))
            .collect();
        (ended.len() == sent.len()).then_some(ended)
    })
    .await
}

fn judged(sent: &Sent, ends: &BTreeMap<String, Value>, when: &str) {
    for (event, (library, _, good)) in sent {
        let end = &ends[event];
        let wanted = if *good { 200 } else { 400 };
        assert_eq!(end["status"], wanted, "{when}: {library}: {end}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_library_accepts_what_is_late_and_nothing_that_is_forged_or_stale() {
    let (mut home, mut judges) = (home(), Judges::new());
    judges.start(&home).await;
    let (mut first, url) = listen(&home, &[judges.targets(), providers()]).await;
    let sent = send_all(&url).await;
    judged(&sent, &ends(&first, &sent, false).await, "at once");
    assert_eq!(first.terminate().await, Some(0));
    for later in ["+310s", "+600s", "+30d"] {
        home.travel(later);
        judges.start(&home).await;
        let (mut again, _) = listen(&home, &[judges.targets(), providers()]).await;
        assert_eq!(told(&home, &["replay", "--all"]).0, Some(0));
        judged(&sent, &ends(&again, &sent, true).await, later);
        assert_eq!(again.terminate().await, Some(0));
    }
}

/// Without its secret a late event is refused, and it is told why and what helps.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_secret_a_late_refusal_says_that_the_signature_expired() {
    let (mut home, mut judges) = (home(), Judges::new());
    let (mut first, url) = listen(&home, &[judges.targets()]).await;
    let mut sent = Sent::new();
    for (library, provider) in LIBRARIES {
        let to = format!("{url}/{library}/hook");
        let event = post(&to, webhook(provider, &to, now())).await;
        sent.insert(event, (library, provider, true));
    }
    assert_eq!(first.terminate().await, Some(0));
    home.travel("+600s");
    judges.start(&home).await;
    let (mut late, _) = listen(&home, &[judges.targets()]).await;
    let ends = ends(&late, &sent, false).await;
    for (event, (library, provider, _)) in &sent {
        let end = &ends[event];
        let expired = provider.tolerance().is_some();
        let wanted = if expired {
            json!("signature expired")
        } else {
            Value::Null
        };
        assert_eq!(end["cause"], wanted, "{library}: {end}");
        assert_eq!(
            end["signature"]["expired"] == true,
            expired,
            "{library}: {end}"
        );
        if expired {
            assert_eq!(
                (&end["state"], &end["reason"]),
                (&json!("dead"), &json!("rejected"))
            );
            let age = end["signature"]["age_ms"].as_u64().unwrap();
            assert!((599_000..700_000).contains(&age), "{end}");
        }
    }
    let shown = told(&home, &["logs", "-n", "99"]).1;
    assert!(shown.contains("--provider stripe=env:SECRET"), "{shown}");
    let group = told(&home, &["events", "--group"]).1;
    assert!(group.contains("signature expired"), "{group}");
    let events = json_lines(&home.run(&["events", "--json"]).stdout);
    let causes = events
        .iter()
        .filter(|event| event["cause"] == "signature expired");
    assert_eq!(
        causes.count(),
        sent.values()
            .filter(|(_, p, _)| p.tolerance().is_some())
            .count()
    );
    assert_eq!(late.terminate().await, Some(0));
}

/// Runs a script over JSON lines and answers with the lines that it prints.
fn over_lines(script: &str, lines: &[Value]) -> Vec<String> {
    let mut node = Command::new("node")
        .arg(vendors(script))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = node.stdin.take().unwrap();
    let text: Vec<_> = lines.iter().map(Value::to_string).collect();
    let writing = std::thread::spawn(move || input.write_all((text.join("\n") + "\n").as_bytes()));
    let out = node.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    let said: Vec<_> = said.lines().map(str::to_owned).collect();
    assert_eq!(said.len(), lines.len());
    said
}

/// A body of characters that take one to four bytes, some of them special in JSON or in forms.
fn random_text() -> String {
    let mut rng = rand::rng();
    let alphabet: Vec<char> = "az09 &=+%;\"\\\n\t<é漢😀".chars().collect();
    let length = rng.random_range(0..60);
    (0..length)
        .map(|_| alphabet[rng.random_range(0..alphabet.len())])
        .collect()
}

fn random_body(provider: Provider) -> String {
    let field = |text: String| {
        text.bytes()
            .map(|b| format!("%{b:02X}"))
            .collect::<String>()
    };
    match provider {
        Provider::Twilio => {
            let pairs = (0..rand::rng().random_range(0..5))
                .map(|n| format!("n{}={}", n % 3, field(random_text())));
            pairs.collect::<Vec<_>>().join("&")
        }
        _ => json!({"id": random_text(), random_text(): [random_text(), 1.5]}).to_string(),
    }
}

/// Both accept the same: half of the payloads are as they were signed, half are not.
#[test]
fn libraries_agree_about_ten_thousand_random_payloads_each() {
    const EACH: usize = 10_000;
    const URL: &str = "https://hooks.example.com/in/key?a=1";
    let mut lines = Vec::with_capacity(5 * EACH);
    let mut ours = Vec::with_capacity(5 * EACH);
    for (verifier, provider) in [
        ("stripe", Provider::Stripe),
        ("standard", Provider::Standard),
        ("slack", Provider::Slack),
        ("twilio", Provider::Twilio),
        ("paddle", Provider::Paddle),
    ] {
        let keys = Keyring::new(vec![key(provider)]);
        // So that none is too old before its turn.
        let at = now().after(Duration::from_secs(120));
        for n in 0..EACH {
            let mut request = webhook(provider, URL, at);
            request.body = random_body(provider).into();
            let signed = sign(&key(provider), &request, URL, at).unwrap();
            for (name, value) in signed.fields {
                request.headers.retain(|header| header.name != name);
                request.headers.push(header(name, &value));
            }
            if n % 2 == 1 {
                let more = if provider == Provider::Twilio {
                    "&zz=1"
                } else {
                    " "
                };
                request.body = [&request.body[..], more.as_bytes()].concat().into();
            }
            let verdict = keys.check(&request, &[URL.to_owned()], at);
            ours.push(matches!(verdict, Verdict::Verified(_)));
            let text = |header: &Header| String::from_utf8_lossy(&header.value).into_owned();
            let headers: BTreeMap<_, _> = request
                .headers
                .iter()
                .map(|h| (h.name.clone(), text(h)))
                .collect();
            lines.push(json!({
                "verifier": verifier, "headers": headers, "body": STANDARD.encode(&request.body),
                "secret": secret(provider), "url": URL,
            }));
        }
    }
    let theirs = over_lines("agree.mjs", &lines);
    for ((ours, theirs), line) in ours.iter().zip(&theirs).zip(&lines) {
        assert_eq!(*ours, theirs == "1", "{line}");
    }
    assert_eq!(ours.iter().filter(|good| **good).count(), 5 * EACH / 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_of_github_are_as_its_schemas_say() {
    let (home, receiver) = (home(), Receiver::start().await);
    let mut lines = Vec::new();
    for (event, definition) in [
        ("push", "push$event"),
        ("ping", "ping$event"),
        ("issues", "issues$opened"),
        ("pull_request", "pull_request$opened"),
    ] {
        let (done, said) = told(
            &home,
            &["trigger", "github", event, "--to", &receiver.target()],
        );
        assert_eq!(done, Some(0), "{said}");
        let body = receiver.seen().pop().unwrap().body;
        let payload: Value = serde_json::from_slice(&body).unwrap();
        lines.push(json!({"definition": definition, "payload": payload}));
    }
    for (said, line) in over_lines("schemas.mjs", &lines).iter().zip(&lines) {
        assert_eq!(said, "valid", "{}", line["definition"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libraries_accept_what_trigger_sends() {
    let (home, mut judges) = (home(), Judges::new());
    judges.start(&home).await;
    for (library, provider) in LIBRARIES {
        let body = home.path().join("body");
        std::fs::write(&body, webhook(provider, "", now()).body).unwrap();
        let at = if library.starts_with("py-") {
            &judges.python
        } else {
            &judges.node
        };
        let to = format!("http://{at}/{library}/hook");
        let (name, secret) = (provider.as_str(), secret(provider));
        let mut typed = vec!["trigger", name, "--to", &to, "--secret", &secret];
        let sample = match provider {
            Provider::Stripe => Some("charge.refunded"),
            Provider::Github => Some("push"),
            Provider::Shopify => Some("orders/create"),
            Provider::Slack => Some("app_mention"),
            Provider::Standard => Some("user.updated"),
            _ => None,
        };
        match sample {
            Some(sample) => typed.insert(2, sample),
            None => typed.extend(["--body", body.to_str().unwrap()]),
        }
        let (done, said) = told(&home, &typed);
        // Svix's older field names are not those of the standard.
        let accepts = !library.ends_with("svix");
        assert!(done == Some(0) || !accepts, "{library}: {said}");
    }
}
