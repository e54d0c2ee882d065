//! Every cap, by name, with its reason. It must not know who applies it.

use std::time::Duration;

/// Largest body an input URL accepts, in bytes, where its operator sets no other limit: GitHub caps its payloads at
/// 25 MiB.
pub const MAX_BODY: usize = 25 * 1024 * 1024;
/// Smallest limit of bodies that an operator may set.
pub const SMALLEST_MAX_BODY: usize = 1024;
/// Largest limit of bodies that an operator may set. Agents take events of this size.
pub const LARGEST_MAX_BODY: usize = 100 * 1024 * 1024;
/// Bodies of the largest size that fit in a budget of memory: a bucket may hold half of them.
pub const LARGEST_AT_ONCE: usize = 4;
/// Largest request head an input URL accepts, in bytes, request line included.
pub const MAX_HEAD: usize = 64 * 1024;
/// Most header fields an input URL accepts.
pub const MAX_HEADERS: usize = 100;
/// How long a sender may take over its request head.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a sender may take over its body, however steadily it flows. A forwarder that takes larger bodies than
/// [`MAX_BODY`] gives them proportionally more.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Grace before [`MIN_BODY_RATE`] is demanded of a body.
pub const BODY_GRACE: Duration = Duration::from_secs(5);
/// Slowest average at which a body may arrive after the grace, in bytes per second.
pub const MIN_BODY_RATE: u64 = 1024;
/// A body up to this size comes out of [`MAX_SMALL_BODIES`], so that large bodies never stop it: most webhooks
/// are far smaller.
pub const SMALL_BODY: usize = 64 * 1024;
/// Bytes of small bodies that may be in memory at the input.
pub const MAX_SMALL_BODIES: usize = 64 * 1024 * 1024;
/// Bytes of large bodies that may be in memory at the input, or [`LARGEST_AT_ONCE`] of the largest size where that is
/// more.
pub const MAX_INGEST_BYTES: usize = 256 * 1024 * 1024;
/// One bucket may hold one part in this many of a memory budget.
pub const BUCKET_SHARE: usize = 2;
/// One peer address may hold this share of a memory budget: most of it, since a reverse proxy is one address.
pub const PEER_SHARE: (usize, usize) = (3, 4);
/// Bytes after which a connection counts as having made progress.
pub const PROGRESS: usize = 64 * 1024;
/// A body without progress for this long gives its memory up to others: a sender on a slow line is faster.
pub const BODY_STALLED: Duration = Duration::from_millis(500);
/// How long a body waits for memory before its sender gets 503: as long as for the store.
pub const BODY_WAIT: Duration = INGEST_DEADLINE;
/// How often a request that waits for memory looks for a connection to evict.
pub const BUDGET_RECHECK: Duration = Duration::from_millis(100);
/// Shortest time between two searches for a connection to evict: each looks at all that hold memory.
pub const BUDGET_SEARCH: Duration = Duration::from_millis(5);
/// Bytes of a request head that every connection may hold: nearly all heads are smaller.
pub const SMALL_HEAD: usize = 8 * 1024;
/// Bytes that larger request heads may hold together.
pub const MAX_LARGE_HEADS: usize = 64 * 1024 * 1024;
/// Bytes of a body that a sender may send over HTTP/2 before they are read.
pub const HTTP2_WINDOW: u32 = 64 * 1024;
/// What a connection that speaks HTTP/2 may have in memory beyond one of HTTP/1: its window, and a head of many small
/// fields, which take three times their bytes.
pub const HTTP2_BYTES: usize = HTTP2_WINDOW as usize + 3 * MAX_HEAD;
/// Bytes that all connections of HTTP/2 may have so; where they would be more, the idlest connection is closed.
pub const MAX_HTTP2_BYTES: usize = 128 * 1024 * 1024;
/// Bytes read from a connection at once: hyper keeps a buffer of this size for an idle connection.
pub const READ_AT_ONCE: usize = 16 * 1024;
/// Connections that wait to be accepted. Where there is no room, the system lets a sender wait a second: a burst while
/// the machine is busy fills 128, which is the usual length.
pub const LISTEN_BACKLOG: u32 = 4096;
/// Control connections that an agent serves at once.
pub const MAX_CONTROL_CONNECTIONS: usize = 64;
/// Connections the forwarder serves at once; for a further one, an idle or unfinished one is closed.
pub const MAX_CONNECTIONS: usize = 16 * 1024;
/// At the cap, one part in this many of all connections is closed at once, so that the search for them is rare.
pub const EVICTED_AT_ONCE: usize = 64;
/// How often the forwarder looks for a connection to close while every one of them is in use.
pub const EVICT_AGAIN: Duration = Duration::from_millis(50);
/// Files a process keeps for its store, its agent's deliveries and its log, beside connections.
pub const KEPT_FILES: usize = 256;
/// Fewest connections a forwarder serves, however few files its process may open.
pub const MIN_CONNECTIONS: usize = 32;
/// How long an answer may take to be written, without a byte being taken, before its connection is cut.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(25);
/// While the forwarder stops, a connection that waits for its next request may still begin one within this time.
pub const STOP_GRACE: Duration = Duration::from_millis(50);
/// While the forwarder stops, a body has to bring [`DRAIN_PROGRESS`] in each such time.
pub const DRAIN_STALLED: Duration = Duration::from_secs(1);
/// Bytes that a body has to bring in each [`DRAIN_STALLED`]: less would not end within [`DRAIN`].
pub const DRAIN_PROGRESS: usize = 16 * 1024;
/// Refusals of one kind that are logged at once.
pub const REFUSALS_AT_ONCE: u32 = 5;
/// Pause after which one more refusal of a kind is logged.
pub const REFUSALS_EVERY: Duration = Duration::from_secs(1);
/// Characters of a path that are logged.
pub const LOGGED_PATH: usize = 200;
/// Characters of an unknown bucket key that are logged: it may be a real key with a mistake in it.
pub const LOGGED_KEY: usize = 4;
/// How often a forwarder that is not ready asks its store whether it takes events again.
pub const READY_EVERY: Duration = Duration::from_secs(1);
/// How long the input waits for the store before it answers 503: providers give up at 3 to 5 s.
pub const INGEST_DEADLINE: Duration = Duration::from_millis(2500);

/// Rows that the auditor of a store looks at in one step: a few milliseconds.
pub const AUDIT_ROWS: usize = 1000;
/// How long the auditor rests between two steps: a million deliveries take minutes, and a twentieth of a processor.
pub const AUDIT_PAUSE: Duration = Duration::from_millis(100);
/// How long the auditor rests between two passes.
pub const AUDIT_EVERY: Duration = Duration::from_secs(86_400);
/// Events by which an agent says where it is in a history: ever sparser ones reach far back.
pub const LOCATOR_ENTRIES: usize = 32;
/// Subscriptions that a bucket may have: each one keeps events.
pub const MAX_SUBSCRIPTIONS: usize = 1000;
/// Agents that a subscription remembers to have had it.
pub const HOLDERS: usize = 8;
/// Incidents that a store keeps: enough to see what happens again and again.
pub const INCIDENTS: usize = 32;
/// Ids of removed events that an agent keeps: about 6 MB.
pub const TOMBSTONES: u64 = 100_000;
/// Ids that are looked at in one step where there are more: a few times what a step of retention leaves.
pub const TOMBSTONES_LOOKED_AT: usize = 4 * RETENTION_STEP;
/// How long the event is remembered that a provider's signature belongs to. An older signature is not made anew.
pub const SIGNATURES_KEPT: Duration = Duration::from_secs(90 * 86_400);
/// Header fields of an answer that are kept, in bytes of names and values.
pub const KEPT_ANSWER_HEADERS: usize = 4 * 1024;
/// How long a connection to a target is kept for the next event: a server of one connection at a time is nobody else's
/// meanwhile.
pub const KEPT_IDLE: Duration = Duration::from_millis(500);
/// A connection that is closed within this time, though nothing was asked, leads to nobody.
pub const CLOSES_AT_ONCE: Duration = Duration::from_millis(250);
/// Longest bucket name.
pub const MAX_BUCKET_NAME: usize = 64;

/// Most events in one tunnel frame.
pub const MAX_FRAME_EVENTS: usize = 512;
/// A frame takes further events only up to this many bytes, heads included (one event may be larger).
pub const MAX_FRAME_BYTES: usize = 1024 * 1024;
/// Largest tunnel frame that is read: one event of the largest size and its head.
pub const MAX_FRAME: usize = LARGEST_MAX_BODY + 4 * MAX_HEAD;
/// Largest frame an agent may send: it sends no bodies.
pub const MAX_AGENT_FRAME: usize = 64 * 1024;
/// Credit of a new agent session: events sent to it and not yet receipted.
pub const WINDOW_EVENTS: u32 = 4096;
/// Credit of a new agent session, in bytes, heads included.
pub const WINDOW_BYTES: u64 = 32 * 1024 * 1024;
/// How often each side of a tunnel pings.
pub const PING_EVERY: Duration = Duration::from_secs(10);
/// Silence after which a side of a tunnel is dead.
pub const SILENCE: Duration = Duration::from_secs(25);
/// Longest name of a host or a user that an agent gives, in characters.
pub const MAX_LABEL: usize = 64;
/// Silence after which an agent that is connected keeps its subscription from nobody: a ping and a little more.
pub const PRESENCE: Duration = Duration::from_secs(13);
/// Pause after a connection that could not be accepted: a lack of file descriptors passes.
pub const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Agents that take a subscription from each other so often within such a time are warned.
pub const TAKEN_AGAIN: usize = 3;
/// See [`TAKEN_AGAIN`].
pub const TAKEN_LATELY: Duration = Duration::from_secs(600);
/// How long an agent waits for a damaged event that it asks its forwarder for.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(300);
/// How long agents have to return to a forwarder that has started, before it ends subscriptions of those that stay away.
pub const TTL_GRACE: Duration = Duration::from_secs(600);
/// How often a forwarder writes down that a connected agent is there.
pub const NOTE_SEEN_EVERY: Duration = Duration::from_secs(600);
/// How long an agent may take over its hello: longer than pings are apart, so that who waits for its end sees whether
/// something on the way cuts idle connections earlier than that.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(12);
/// How long a forwarder may take over its welcome.
pub const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
/// Read buffer of a tunnel at the forwarder, where only small frames arrive: with tungstenite's
/// default an idle tunnel costs 137 kB.
pub const TUNNEL_READ_BUFFER: usize = 1024;
/// Bytes of frames that all tunnels together have read from the store and not written yet, or [`LARGEST_AT_ONCE`]
/// events of the largest size where that is more.
pub const MAX_TUNNEL_BYTES: usize = 128 * 1024 * 1024;
/// How long a tunnel waits for its share of [`MAX_TUNNEL_BYTES`] before it looks at its agent again.
pub const TUNNEL_WAIT: Duration = Duration::from_secs(1);
/// A tunnel that has written less than [`PROGRESS`] for this long gives its memory up to others: at
/// [`MIN_TUNNEL_RATE`] that takes 2 s.
pub const TUNNEL_STALLED: Duration = Duration::from_secs(3);
/// Bytes of one websocket frame of a larger message: the socket's buffer keeps the size of the largest frame.
pub const TUNNEL_FRAGMENT: usize = 16 * 1024;
/// How long a tunnel that ends tries to say why.
pub const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes of outgoing frames a tunnel gathers before it writes them.
pub const TUNNEL_WRITE_BUFFER: usize = 4 * 1024;
/// How long a write to a tunnel may take, beside the time its size earns it.
pub const TUNNEL_WRITE_TIMEOUT: Duration = Duration::from_secs(25);
/// Slowest link on which a large event still gets through, in bytes per second.
pub const MIN_TUNNEL_RATE: u64 = 32 * 1024;

/// Buckets that one answer of `GET /v1/status` shows.
pub const MAX_STATUS_BUCKETS: usize = 1000;
/// Bytes of a forwarder's list or status that are read: a bucket in it takes a few hundred.
pub const MAX_STATUS_ANSWER: usize = 16 * 1024 * 1024;
/// Bytes after which an agent reads no more of a forwarder's answer to a request.
pub const MAX_API_ANSWER: usize = 64 * 1024;

/// Buckets in one page of a forwarder's list by default: some ten kilobytes, which fit in a script's
/// first look and in [`MAX_API_ANSWER`].
pub const BUCKETS_LISTED: usize = 100;
/// Most buckets that a forwarder lists in one answer: some hundred kilobytes.
pub const MAX_BUCKETS_LISTED: usize = 1000;

/// First ceiling of the reconnect backoff.
pub const RECONNECT_BASE: Duration = Duration::from_millis(500);
/// Last ceiling of the reconnect backoff.
pub const RECONNECT_CAP: Duration = Duration::from_secs(30);

/// Pauses of a schedule that is given as a list: far more than any provider's.
pub const MAX_PAUSES: usize = 100;
/// Longest Retry-After that is obeyed.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of an answer's body kept with the attempt.
pub const KEPT_ANSWER: usize = 4 * 1024;
/// Bytes of an answer's body read, to reuse the connection, before it is closed instead.
pub const READ_ANSWER: usize = 64 * 1024;
/// How long an answer's body is read once its status is known.
pub const READ_ANSWER_TIME: Duration = Duration::from_secs(2);
/// Largest answer head a target may send.
pub const MAX_ANSWER_HEAD: usize = 64 * 1024;
/// Deliveries in flight to one destination by default.
pub const MAX_IN_FLIGHT: usize = 16;
/// Pause before a damaged event is fetched again, after its forwarder was not reached.
pub const FETCH_AGAIN: Duration = Duration::from_secs(30);
/// Attempts that a rate lets start in so much time may start together: timers are no finer.
pub const PACE_SLACK: Duration = Duration::from_millis(10);
/// How long one connection to a target may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one probe may take.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long attempts in flight may go on after a stop was asked for.
pub const DRAIN: Duration = Duration::from_secs(10);

/// Longest wait of any timer before the clocks are read again: laptops sleep.
pub const REARM: Duration = Duration::from_secs(1);
/// How often deadlines are looked at of what waits for targets that are none now.
pub const EXPIRE_EVERY: Duration = Duration::from_secs(10);
/// Difference between wall and monotonic clock that counts as a jump.
pub const JUMP: Duration = Duration::from_secs(5);

/// Operations that may wait for the store's writer.
pub const MAX_WAITING_WRITES: usize = 8192;
/// Bytes of operations that may wait for the store's writer.
pub const MAX_WAITING_BYTES: usize = 256 * 1024 * 1024;
/// Operations that share one commit.
pub const MAX_GROUP: usize = 1024;
/// Body bytes after which a commit takes no further operation.
pub const MAX_GROUP_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of events that an agent stores in one commit: one that finds no space leaves as much behind in the
/// file.
pub const APPEND_BYTES: u64 = 4 * 1024 * 1024;
/// Space that a store keeps back for delivering and recording while its disk is full, in bytes.
pub const RESERVE: u64 = 4 * 1024 * 1024;
/// New deliveries that a store keeps for each listener. Those beyond are read from the queue.
pub const ADDED_TOLD: usize = 1000;
/// Withdrawn deliveries that a store keeps for each listener. An attempt at one that was left out finds that it has
/// ended.
pub const WITHDRAWN_TOLD: usize = 10_000;
/// How often a store that does without its reserve looks whether the disk has space for one.
pub const RESERVE_EVERY: Duration = Duration::from_secs(60);
/// Pause between tries to reopen a store whose disk was full.
pub const REOPEN_EVERY: Duration = Duration::from_millis(250);
/// A store's file is made smaller where it takes twice what it holds and so much more, in bytes.
pub const SPARE_SPACE: u64 = 64 * 1024 * 1024;
/// Bytes that a store may hold whose file is made smaller: nothing is written meanwhile, and the input waits
/// for [`INGEST_DEADLINE`] at most.
pub const MOVED_AT_ONCE: u64 = 128 * 1024 * 1024;
/// How long whoever reads a store may take before its file is not made smaller after all.
pub const READERS_LEAVE: Duration = Duration::from_millis(500);
/// How long one who reads waits for a file that is made smaller.
pub const FILE_MOVES: Duration = Duration::from_secs(10);
/// Bytes that a store's file takes on its disk which is looked at whole when it is opened and was not closed in good order: some
/// tenths of a second.
pub const LOOKED_AT_WHOLE: u64 = 64 * 1024 * 1024;
/// Rows that are looked at at each end of a table when a store is opened: those pages change most, and some
/// thousand rows take milliseconds.
pub const ROWS_LOOKED_AT: u64 = 256;
/// Bytes of values behind which no further row is looked at there: bodies are large.
pub const BYTES_LOOKED_AT: usize = 1024 * 1024;
/// Bytes of records that retention looks at in one step.
pub const RETENTION_STEP_BYTES: usize = 16 * 1024 * 1024;
/// Places that retention forgets in one step, since all before them are empty.
pub const RETENTION_PLACES: u64 = 10_000;
/// Events that retention looks at in one step: between two, others get their turn.
pub const RETENTION_STEP: usize = 500;
/// Pause of retention after it found that nothing could go, while room is needed.
pub const RETENTION_AGAIN: Duration = Duration::from_millis(100);
/// How old what retention knows of all buckets may be when it makes room: asking 10,000 of them takes some
/// hundredths of a second.
pub const RETENTION_ASKS: Duration = Duration::from_secs(1);
/// How often retention looks for what is over.
pub const RETENTION_EVERY: Duration = Duration::from_secs(60);
