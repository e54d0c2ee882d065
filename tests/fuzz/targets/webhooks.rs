//! Any request is read for signatures, kind and id without a panic; none passes unsigned, and one that is signed here
//! passes for what it was signed for and for nothing else.

#![no_main]

use libfuzzer_sys::fuzz_target;
use whrelay_core::event::{Header, Request};
use whrelay_core::time::Timestamp;
use whrelay_providers::{Key, Keyring, Provider, Verdict, delivery_id, kind, seen, sign};

const URL: &str = "https://hooks.example.com/in/key?a=1";
const AT: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

fuzz_target!(|data: &[u8]| {
    let Some((provider, text)) = data.split_first() else {
        return;
    };
    let provider = Provider::ALL[usize::from(*provider) % Provider::ALL.len()];
    let key = Key::new(provider, &"A".repeat(64)).expect("a secret");
    let keys = Keyring::new(vec![key.clone()]);
    let (head, body) = match text.windows(2).position(|pair| pair == b"\n\n") {
        Some(end) => (&text[..end], &text[end + 2..]),
        None => (text, &[][..]),
    };
    let header = |line: &[u8]| {
        let line = String::from_utf8_lossy(line).into_owned();
        let (name, value) = line.split_once(':')?;
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        let value = value.into();
        Some(Header { name, value })
    };
    let mut request = Request {
        method: "POST".to_owned(),
        tail: String::new(),
        query: None,
        headers: head
            .split(|byte| *byte == b'\n')
            .filter_map(header)
            .collect(),
        body: body.to_vec().into(),
    };
    let urls = [URL.to_owned()];
    let _ = (seen(&request), kind(&request), delivery_id(&request));
    assert!(!matches!(
        keys.check(&request, &urls, AT),
        Verdict::Verified(_)
    ));
    let Some(signed) = sign(&key, &request, URL, AT) else {
        return;
    };
    for (name, value) in signed.fields {
        request.headers.retain(|header| header.name != name);
        request.headers.push(Header {
            name: name.to_owned(),
            value: value.into(),
        });
    }
    request.body = signed.body.unwrap_or(request.body);
    // A field that is there twice is nobody's word.
    let mut names: Vec<_> = request.headers.iter().map(|header| &header.name).collect();
    let all = names.len();
    names.sort();
    names.dedup();
    if names.len() == all {
        assert!(matches!(
            keys.check(&request, &urls, AT),
            Verdict::Verified(_)
        ));
    }
    // Longer than the body, since a parameter that is there twice with one value counts once for Twilio.
    let name = "x".repeat(request.body.len() + 1);
    let more = format!("&{name}=1");
    request.body = [&request.body[..], more.as_bytes()].concat().into();
    assert!(!matches!(
        keys.check(&request, &urls, AT),
        Verdict::Verified(_)
    ));
});
