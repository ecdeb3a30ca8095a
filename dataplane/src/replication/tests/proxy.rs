//! A TCP proxy that cuts, damages or slows what the upstream sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::Endpoint;
use super::Node;

/// Sits between a follower and its upstream.
pub(super) struct Proxy {
    pub address: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// Bytes that may still pass towards the follower before all connections are cut.
    budget: AtomicI64,
    passed: AtomicU64,
    /// Bytes a second towards the follower; 0 = no limit.
    speed: AtomicU64,
    /// Replaced by the second, once.
    damage: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
    cut: Mutex<CancellationToken>,
    refuses: AtomicBool,
}

impl Proxy {
    pub async fn new(upstream: &Node) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared { budget: AtomicI64::new(i64::MAX), ..Shared::default() });
        let (to, state) = (upstream.address.clone(), shared.clone());
        let task = tokio::spawn(async move {
            while let Ok((follower, _)) = listener.accept().await {
                if state.refuses.load(Ordering::SeqCst) {
                    continue;
                }
                let cut = state.cut.lock().clone();
                tokio::spawn(connection(follower, to.clone(), state.clone(), cut));
            }
        });
        Self { address, shared, task }
    }

    pub fn endpoint(&self, upstream: &Node) -> Endpoint {
        Endpoint { replication: self.address.clone(), ..upstream.endpoint() }
    }

    /// Cuts all connections once so many more bytes have passed; later connections pass freely.
    pub fn cut_after(&self, bytes: i64) {
        self.shared.budget.store(bytes, Ordering::SeqCst);
    }

    pub fn cut_now(&self) {
        self.shared.cut();
    }

    /// Lets no connection through, or again.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::SeqCst);
        if refuses {
            self.shared.cut();
        }
    }

    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }

    /// A link of so many bytes a second.
    pub fn slow_down(&self, bytes_per_second: u64) {
        self.shared.speed.store(bytes_per_second, Ordering::SeqCst);
    }

    pub fn damage_once(&self, from: &[u8], to: &[u8]) {
        *self.shared.damage.lock() = Some((from.to_vec(), to.to_vec()));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.cut();
    }
}

impl Shared {
    fn cut(&self) {
        std::mem::take(&mut *self.cut.lock()).cancel();
    }

    fn treat(&self, data: &mut [u8]) {
        let mut damage = self.damage.lock();
        if let Some((from, to)) = damage.as_ref()
            && let Some(at) = data.windows(from.len()).position(|w| w == from)
        {
            data[at..at + to.len()].copy_from_slice(to);
            *damage = None;
        }
    }
}

async fn connection(follower: TcpStream, to: String, shared: Arc<Shared>, cut: CancellationToken) {
    let Ok(upstream) = TcpStream::connect(to).await else { return };
    follower.set_nodelay(true).unwrap();
    upstream.set_nodelay(true).unwrap();
    let (mut from_follower, mut to_follower) = follower.into_split();
    let (mut from_upstream, mut to_upstream) = upstream.into_split();
    let up = async { drop(tokio::io::copy(&mut from_follower, &mut to_upstream).await) };
    let down = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(n) = from_upstream.read(&mut buffer).await {
            let left = shared.budget.fetch_sub(i64::try_from(n).unwrap(), Ordering::SeqCst) - i64::try_from(n).unwrap();
            if n == 0 {
                return;
            }
            if left <= 0 {
                shared.budget.store(i64::MAX, Ordering::SeqCst);
                shared.cut();
                return;
            }
            shared.treat(&mut buffer[..n]);
            shared.passed.fetch_add(n as u64, Ordering::SeqCst);
            if to_follower.write_all(&buffer[..n]).await.is_err() {
                return;
            }
            if let Some(us) = (n as u64 * 1_000_000).checked_div(shared.speed.load(Ordering::SeqCst)) {
                tokio::time::sleep(Duration::from_micros(us)).await;
            }
        }
    };
    tokio::select! {
        () = cut.cancelled() => {}
        () = up => {}
        () = down => {}
    }
}
