//! Any text is a target or an error. Whatever a sender puts behind an input URL, the request goes to
//! the target's own host and port, under its own path, or nowhere.

#![no_main]

use libfuzzer_sys::fuzz_target;
use whrelay_core::tail;
use whrelay_core::target::Target;

const BASE: &str = "http://localhost:3000/base";

fuzz_target!(|input: (&str, &str, Option<&str>)| {
    let (text, tail, query) = input;
    if let Ok(target) = text.parse::<Target>() {
        // It is shown as it can be typed.
        assert_eq!(target.to_string().parse::<Target>().ok(), Some(target));
    }
    let base: Target = BASE.parse().expect("a target");
    let rooted = tail.is_empty() || tail.starts_with('/');
    if rooted && !tail::climbs(tail) {
        if let Ok(url) = base.url_for(tail, query) {
            let url = url.to_string();
            assert!(url.starts_with(BASE), "{url}");
        }
    }
});
