//! Clients of a primary that stopped leading. What such a client asks from then on goes to the member that leads, and the
//! answers come back on the same connection: a switchover costs a pause and no error.
//!
//! One hop at most: where the other member stops leading too, it closes what was relayed to it, and the client looks anew.
//! Nothing that was executed here is sent on; what the other member did not answer ends with the connection, outcome unknown.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use parovoz_dataplane_core::member::Endpoint;
use parovoz_dataplane_core::resp::reply::reply_len;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

/// A relay says who it is by this library name: its client is not relayed again, and is shown no replica's data.
pub(super) const LIB_NAME: &str = "parovoz-relay";
/// The next primary serves by then, or the client has to ask again.
const PATIENCE: Duration = Duration::from_secs(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Between two questions whether the other member leads yet.
const PAUSE: Duration = Duration::from_millis(10);
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
    pub(super) to: Endpoint,
}

/// Runs relays, on a thread that starts with the first.
#[derive(Debug)]
pub(super) struct Relays {
    runtime: Mutex<Option<Runtime>>,
    room: Arc<Semaphore>,
}

impl Relays {
    /// At most `most` connections at a time.
    pub(super) fn new(most: usize) -> Self {
        Self { runtime: Mutex::new(None), room: Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS))) }
    }

    /// Whether there is room for one more.
    pub(super) fn has_room(&self) -> bool {
        self.room.available_permits() > 0
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
        runtime.spawn(async move {
            let to = relayed.to.resp.clone();
            if let Err(error) = relay(relayed).await {
                tracing::debug!(%error, to, "relay connection");
            }
            drop(permit);
        });
    }

    /// Ends all of them.
    pub(super) fn stop(&self) {
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        // Else the runtime would be dropped where that may not block.
        self.stop();
    }
}

async fn relay(relayed: Relayed) -> io::Result<()> {
    relayed.stream.set_nonblocking(true)?;
    let mut client = TcpStream::from_std(relayed.stream)?;
    let until = Instant::now() + PATIENCE;
    let mut primary = loop {
        match reach(&relayed.to, relayed.version, &relayed.name, until).await {
            Ok(primary) => break primary,
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => sleep(PAUSE).await,
        }
    };
    primary.write_all(&relayed.input).await?;
    tokio::io::copy_bidirectional(&mut client, &mut primary).await?;
    Ok(())
}

/// A connection to the other member as the client had it here, once that member leads.
async fn reach(to: &Endpoint, version: u8, name: &str, until: Instant) -> io::Result<TcpStream> {
    let connecting = async {
        let port = to.resp.rsplit_once(':').map_or("", |(_, port)| port);
        match (to.ip.parse::<std::net::IpAddr>(), port.parse::<u16>()) {
            (Ok(ip), Ok(port)) => TcpStream::connect((ip, port)).await,
            _ => TcpStream::connect(&to.resp).await,
        }
    };
    let mut primary = timeout(CONNECT_WITHIN, connecting).await??;
    primary.set_nodelay(true)?;
    ask(&mut primary, &["CLIENT", "SETINFO", "LIB-NAME", LIB_NAME]).await?;
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
