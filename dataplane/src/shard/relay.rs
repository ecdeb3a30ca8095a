//! Clients of a primary that stopped leading. What such a client asks from then on goes to the member that leads, and the
//! answers come back on the same connection: a switchover costs a pause and no error.
//!
//! One hop at most: where the other member stops leading too, what was relayed to it is closed, and the client looks anew.
//! Nothing that was executed here is sent on; what the other member did not answer ends with the connection, outcome unknown.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use parovoz_dataplane_core::member::Endpoint;
use parovoz_dataplane_core::resp::reply::reply_len;
use parovoz_dataplane_core::types::StoreUid;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::replication::by_name_or_ip;
use crate::store::Store;

/// A relay says who it is by this library name: its client is not relayed again, and is shown no replica's data.
pub(super) const LIB_NAME: &str = "parovoz-relay";
/// The next primary serves by then, or the client has to ask again.
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Between two questions whether the other member leads yet.
const PAUSE: Duration = Duration::from_millis(10);
/// What was sent on is answered by then, once nothing more is.
const DRAIN: Duration = Duration::from_secs(2);
/// A node that is gone is noticed after about three of these.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Greetings are short.
const GREETING_MAX: usize = 16 << 10;
/// What `ROLE` says on a primary begins so.
const LEADS: &[u8] = b"*3\r\n$6\r\nmaster\r\n";

/// A connection that is relayed from now on.
#[derive(Debug)]
pub(super) struct Relayed {
    pub(super) stream: std::net::TcpStream,
    /// Read from the client and not executed.
    pub(super) input: Vec<u8>,
    /// Of the client's protocol: 2 or 3.
    pub(super) version: u8,
    /// That the client gave itself; may be empty.
    pub(super) name: String,
}

/// Runs relays, on a thread that starts with the first.
#[derive(Debug)]
pub(super) struct Relays {
    store: Arc<Store>,
    runtime: Mutex<Option<Runtime>>,
    room: Arc<Semaphore>,
    most: u32,
    /// Cancelled: nothing more is sent on.
    ending: CancellationToken,
}

impl Relays {
    /// At most `most` connections at a time.
    pub(super) fn new(store: Arc<Store>, most: usize) -> Self {
        let most = u32::try_from(most.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        let room = Arc::new(Semaphore::new(most as usize));
        Self { store, runtime: Mutex::new(None), room, most, ending: CancellationToken::new() }
    }

    /// Whether there is room for one more.
    pub(super) fn has_room(&self) -> bool {
        self.room.available_permits() > 0 && !self.ending.is_cancelled()
    }

    /// Relays a connection until either side ends it. Without room or a thread it is closed.
    pub(super) fn start(&self, relayed: Relayed) {
        let Ok(permit) = self.room.clone().try_acquire_owned() else { return };
        let mut runtime = self.runtime.lock();
        if runtime.is_none() {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            match builder.worker_threads(1).thread_name("relay").enable_all().build() {
                Ok(made) => *runtime = Some(made),
                Err(error) => return tracing::error!(%error, "start relays"),
            }
        }
        let Some(runtime) = runtime.as_ref() else { return };
        let (store, ending) = (self.store.clone(), self.ending.clone());
        runtime.spawn(async move {
            if let Err(error) = relay(&store, &ending, relayed).await {
                tracing::debug!(%error, "relay connection");
            }
            drop(permit);
        });
    }

    /// Sends nothing more on; what was is still answered.
    pub(super) fn end(&self) {
        self.ending.cancel();
    }

    /// Waits until all have ended, for a while. Blocks.
    pub(super) fn stop(&self) {
        self.end();
        if let Some(runtime) = self.runtime.lock().take() {
            let all = self.room.acquire_many(self.most);
            // Who is not done by then is cut off.
            let _ = runtime.block_on(async { timeout(DRAIN, all).await.map(drop) });
            runtime.shutdown_background();
        }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        // Else the runtime would be dropped where that may not block.
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

async fn relay(store: &Store, ending: &CancellationToken, relayed: Relayed) -> io::Result<()> {
    let Relayed { stream, input, version, name } = relayed;
    stream.set_nonblocking(true)?;
    let client = TcpStream::from_std(stream)?;
    let until = Instant::now() + PATIENCE;
    let (mut primary, to) = loop {
        // Asked each time: another one may lead by now.
        let reached = match next_primary(store) {
            Some(to) => reach(&to, &store.store_uid, version, &name, until).await.map(|primary| (primary, to)),
            None => Err(io::Error::new(io::ErrorKind::NotFound, "no other member leads")),
        };
        match reached {
            Ok(reached) => break reached,
            Err(error) if Instant::now() >= until || ending.is_cancelled() => return Err(error),
            Err(_) => sleep(PAUSE).await,
        }
    };
    primary.write_all(&input).await?;
    drop(input);
    carry(client, primary, async {
        tokio::select! {
            () = ending.cancelled() => {}
            () = replaced(store, &to) => {}
        }
    })
    .await
}

/// Who leads, if it is another member and can be reached.
pub(super) fn next_primary(store: &Store) -> Option<Endpoint> {
    let role = store.role();
    role.primary.clone().filter(|primary| !role.is_primary && !primary.resp.is_empty() && primary.data_uuid.is_some())
}

/// Returns once another member than `to` leads.
async fn replaced(store: &Store, to: &Endpoint) {
    let mut changes = store.changes();
    loop {
        let role = store.role();
        // While nobody knows, nothing is better than to go on.
        if role.is_primary || role.primary.as_ref().is_some_and(|now| now.data_uuid != to.data_uuid) {
            return;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Carries bytes both ways until a side ends, or until `ends`: then what was sent on is still answered, for a while.
async fn carry(client: TcpStream, primary: TcpStream, ends: impl Future<Output = ()>) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_primary, mut to_primary) = primary.into_split();
    let forth = async {
        let ended = tokio::select! {
            copied = tokio::io::copy(&mut from_client, &mut to_primary) => copied.map(|_| false),
            () = ends => Ok(true),
        };
        // An error shows in the answers, too: they end.
        let _ = to_primary.shutdown().await;
        ended.unwrap_or(true)
    };
    let back = async {
        let copied = tokio::io::copy(&mut from_primary, &mut to_client).await;
        let _ = to_client.shutdown().await;
        copied.map(drop)
    };
    tokio::pin!(forth, back);
    tokio::select! {
        done = &mut back => done,
        ended = &mut forth => if ended { timeout(DRAIN, back).await? } else { back.await },
    }
}

/// A connection to the other member as the client had it here, once that member leads.
async fn reach(to: &Endpoint, store: &StoreUid, version: u8, name: &str, until: Instant) -> io::Result<TcpStream> {
    let mut primary = timeout(CONNECT_WITHIN, by_name_or_ip(&to.resp, &to.ip, TcpStream::connect)).await??;
    primary.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 2).with_retries(3);
    let socket = SockRef::from(&primary);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(KEEPALIVE * 3))?;
    ask(&mut primary, &["CLIENT", "SETINFO", "LIB-NAME", LIB_NAME]).await?;
    check_identity(&mut primary, to, store).await?;
    let version = version.to_string();
    if name.is_empty() {
        ask(&mut primary, &["HELLO", &version]).await?;
    } else {
        ask(&mut primary, &["HELLO", &version, "SETNAME", name]).await?;
    }
    while !ask(&mut primary, &["ROLE"]).await?.starts_with(LEADS) {
        if Instant::now() >= until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the other member does not lead"));
        }
        sleep(PAUSE).await;
    }
    Ok(primary)
}

/// Makes sure that it is the member that is meant: an address may belong to somebody else by now.
async fn check_identity(primary: &mut TcpStream, to: &Endpoint, store: &StoreUid) -> io::Result<()> {
    let info = ask(primary, &["INFO", "server"]).await?;
    let info = String::from_utf8_lossy(&info);
    let says = |name: &str, value: &str| info.lines().any(|line| line.split_once(':') == Some((name, value)));
    let member = to.data_uuid.map(|uuid| uuid.0.simple().to_string()).unwrap_or_default();
    if says("run_id", &member) && says("store_uid", &store.0) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "another one answers at the member's address"))
}

/// One request and its whole reply.
async fn ask(primary: &mut TcpStream, words: &[&str]) -> io::Result<Vec<u8>> {
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    let asking = async {
        primary.write_all(request.as_bytes()).await?;
        let mut reply = Vec::new();
        while reply_len(&reply) != Some(reply.len()) || reply.is_empty() {
            if reply.len() >= GREETING_MAX || primary.read_buf(&mut reply).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "no whole reply to a greeting"));
            }
        }
        Ok(reply)
    };
    let reply = timeout(CONNECT_WITHIN, asking).await??;
    if reply.starts_with(b"-") {
        return Err(io::Error::other(String::from_utf8_lossy(&reply).trim().to_owned()));
    }
    Ok(reply)
}
