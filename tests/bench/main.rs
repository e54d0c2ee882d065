//! Figures, as ratios within one run: `whrelay-bench ingest|line|beside|bound|drain|lists|groups|prune|signed|tunnels|process`. A
//! figure is never asserted: machines differ.

#![expect(clippy::print_stdout, reason = "a benchmark's output is its figures")]
#![expect(
    clippy::unwrap_used,
    reason = "a benchmark that cannot run has nothing to say"
)]

mod bound;
mod drain;
mod groups;
mod ingest;
mod line;
mod lists;
mod load;
mod process;
mod prune;
mod signed;

#[tokio::main]
async fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("ingest") => ingest::run().await,
        Some("no-op") => ingest::no_op().await,
        Some("spike") => ingest::spike().await,
        Some("line") => line::run().await,
        Some("beside") => line::beside().await,
        Some("bound") => bound::run().await,
        Some("drain") => drain::run().await,
        Some("groups") => groups::run().await,
        Some("lists") => lists::run().await,
        Some("prune") => prune::run().await,
        Some("signed") => signed::run().await,
        Some("tunnels") => process::tunnels().await,
        Some("process") => process::small().await,
        _ => println!(
            "usage: whrelay-bench ingest|line|beside|bound|drain|lists|groups|prune|signed|tunnels|process"
        ),
    }
}
