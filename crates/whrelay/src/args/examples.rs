//! What stands below the flags in each command's help: examples, and what its exit codes mean there.

pub(super) const LISTEN: &str = "\
Examples:
  whrelay listen 3000                               with an embedded forwarder
  whrelay listen --to localhost:3000/hooks --route /stripe=localhost:4000
  whrelay listen --to api=localhost:3000 --rate 10/s    api keeps its queue and options when its URL changes
  whrelay listen 3000 --forwarder https://hooks.example.com --token-file token
  whrelay listen 3000 --provider stripe=env:STRIPE_SECRET     late events verify, too

Keys on a terminal: j k choose an event, r try it now or deliver it again, d details, o its curl command, y copy the input URL, \
p pause, ? all keys, q quit

Exit codes: 0 stopped, 2 wrong use, 4 the token is missing or not valid, 5 the forwarder cannot be \
reached at the start or was away for --exit-on-disconnect, 6 another listen has the bucket or the port";

pub(super) const LOGS: &str = "\
Examples:
  whrelay logs --follow
  whrelay logs --status dead --since 2h
  whrelay logs --event evt_01ARYZ6S41TSV4RRFFQ69G5FAV --json

Exit codes: 0 done, 2 wrong use, 3 no attempt matches";

pub(super) const EVENTS: &str = "\
Examples:
  whrelay events --since 2h
  whrelay events --status dead --group
  whrelay events show evt_01ARYZ6S41TSV4RRFFQ69G5FAV

Exit codes: 0 done, 2 wrong use, 3 no event matches";

pub(super) const SHOW: &str = "\
Examples:
  whrelay events show evt_01ARYZ6S41TSV4RRFFQ69G5FAV
  whrelay events show evt_01ARYZ6S41TSV4RRFFQ69G5FAV --body >body
  whrelay events show evt_01ARYZ6S41TSV4RRFFQ69G5FAV --curl | sh

Exit codes: 0 done, 1 retention has removed the body, 3 there is no such event";

pub(super) const EXPORT: &str = "\
Examples:
  whrelay events export --format har --since 1d -o today.har

Exit codes: 0 done, 3 no event matches";

pub(super) const REPLAY: &str = "\
Examples:
  whrelay replay evt_01ARYZ6S41TSV4RRFFQ69G5FAV --wait
  whrelay replay --status dead --since 2h --dry-run
  whrelay replay --all --rate 10/s --to localhost:4000

A `listen` that runs makes requests as it was started; flags for requests are for --to where none runs, and exit 2 \
beside one.

Exit codes: 0 done, 1 not delivered (with --wait, or by this command), 2 wrong use, 3 no event matches";

pub(super) const DISCARD: &str = "\
Examples:
  whrelay discard evt_01ARYZ6S41TSV4RRFFQ69G5FAV
  whrelay discard --status stalled --until 7d --dry-run

Exit codes: 0 done, 2 wrong use, 3 no event matches";

pub(super) const STATUS: &str = "\
Examples:
  whrelay status
  whrelay status --forwarder https://hooks.example.com --token-file token
  whrelay status --json | jq .stalled

`status` also shows how many events are queued at the configured forwarder, and for which subscriptions.

Exit codes: 0 done, 1 a store cannot be read, 2 wrong use, 3 there is no store in --data-dir, 4 the token is not valid";

pub(super) const DOCTOR: &str = "\
Examples:
  whrelay doctor
  whrelay doctor --forwarder https://hooks.example.com --token-file token
  whrelay doctor --salvage
  whrelay doctor --compact

Exit codes: 0 all is well, 1 a check failed, 2 wrong use, 3 there is no store in a directory";

pub(super) const FORWARDER: &str = "\
Examples:
  whrelay forwarder
  whrelay forwarder --bind 0.0.0.0:8080 --public-url https://hooks.example.com --max-disk 20GB

Exit codes: 0 stopped, 1 the store failed, 2 wrong use, 6 another process has the address or the data";

pub(super) const FLAKY: &str = "\
Examples:
  whrelay flaky --fail 50%
  whrelay flaky --down 10s --always-after 1m";

pub(super) const TRIGGER: &str = "\
Examples:
  whrelay trigger --list
  whrelay trigger stripe invoice.paid                    to the `listen` that runs here
  whrelay trigger github push --to localhost:3000/hooks --secret $SECRET
  whrelay trigger stripe --body event.json

Exit codes: 0 all were answered with 2xx, 1 one was not, 2 wrong use, 5 nobody answered";

pub(super) const TEST: &str = "\
Examples:
  whrelay test --expect 1 --to 3000 -- sh -c 'curl -d x \"$WHRELAY_URL\"'
  whrelay test --expect 3 --match kind=push --timeout 1m --to 3000 -- npm test

Exit codes: 0 as many were delivered and the command succeeded, 1 not, 2 wrong use; where the command fails its own \
code, 127 where it does not exist";

pub(super) const SERVICE: &str = "\
Examples:
  whrelay service install listen --to localhost:3000
  whrelay service install --label cloud -- forwarder --bind 0.0.0.0:8080
  whrelay service status

Exit codes: 0 done, 1 the system refused, 2 wrong use, 3 it is not installed";

pub(super) const COMPLETIONS: &str = "\
Examples:
  whrelay completions bash >~/.local/share/bash-completion/completions/whrelay
  whrelay completions zsh >~/.zfunc/_whrelay";
