//! `whrelay forwarder`: the cloud side. It must not know agents' targets.

use std::io::IsTerminal;

use serde::Serialize;
use whrelay_forwarder::Config;
use whrelay_store::Store;

use crate::args::ForwarderArgs;
use crate::config;
use crate::embedded::{
    FORWARDER, TOKEN_FILE, announce, cannot_bind, forget_url, listen_on, reachable, store_options,
};
use crate::exposure;
use crate::failure::{Code, Failure};
use crate::files;
use crate::output::Output;
use crate::paths::{Paths, warn_if_fleeting};
use crate::shutdown;

#[derive(Serialize)]
#[serde(tag = "type", rename = "ready")]
struct Ready {
    url: String,
    /// The admin listener's address; there is none yet.
    admin: Option<String>,
    token_file: String,
    pid: u32,
}

pub(crate) async fn run(
    args: ForwarderArgs,
    config: &config::Config,
    output: &Output,
) -> Result<(), Failure> {
    let stop = shutdown::on_signal();
    let retention = args.retention.of_forwarder(args.max_body);
    let dir = match args.data_dir {
        Some(dir) => dir,
        None => Paths::resolve()?.forwarder(),
    };
    warn_if_fleeting(&dir, output);
    exposure::warn(&dir, &[dir.join(TOKEN_FILE)], config, output);
    let store = Store::open(&dir, &store_options(FORWARDER, retention.max_disk))?;
    let failed = |e: std::io::Error| Failure::new(Code::Failed, format!("{}: {e}", dir.display()));
    forget_url(&dir).map_err(failed)?;
    // A token that is shown and then not used would be lost: the port comes first.
    let listener = listen_on(&[args.bind]).map_err(|e| cannot_bind(args.bind, &e, "--bind"))?;
    let address = listener
        .local_addr()
        .map_err(|e| cannot_bind(args.bind, &e, "--bind"))?;
    let token_file = dir.join(TOKEN_FILE);
    let (token, new) = whrelay_forwarder::admin_token(&store, &token_file)
        .await
        .map_err(|e| Failure::new(Code::Failed, e.to_string()))?;
    let public = args
        .public_url
        .map(|url| url.as_str().trim_end_matches('/').to_owned());
    let here = format!("http://{}", reachable(address));
    let public_url = public.unwrap_or_else(|| here.clone());
    if new {
        let file = token_file.display();
        // What is no terminal is a log, which others read.
        match std::io::stderr().is_terminal() {
            true => {
                output.tell(&format!("The admin token, kept in {file}:"));
                output.tell(&token.expose());
            }
            false => output.tell(&format!("the admin token is in {file}")),
        }
    }
    let max_connections = files::connections();
    let ready = Ready {
        url: public_url.clone(),
        admin: None,
        token_file: token_file.display().to_string(),
        pid: std::process::id(),
    };
    if args.json {
        output.json(&ready)?;
    } else {
        output.data(&format!("forwarder ready at {public_url}"))?;
        if public_url != format!("http://{address}") {
            output.tell(&format!("it listens on {address}"));
        }
        if !address.ip().is_loopback() {
            output.tell("other machines reach it by plain http: put a proxy with TLS before it");
        }
    }
    // Where commands on this machine find it.
    announce(&dir, &here).map_err(failed)?;
    let config = Config {
        public_url,
        retention,
        subscription_ttl: args.subscription_ttl,
        max_connections,
        max_body: args.max_body,
    };
    let serving = async {
        whrelay_forwarder::run(listener, store.clone(), config, stop).await?;
        // A later start does it, too.
        let _ = forget_url(&dir);
        store.journal.close().await;
        Ok(())
    };
    shutdown::unless_insisted(serving).await
}
