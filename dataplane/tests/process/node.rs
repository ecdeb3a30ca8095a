//! A real data-plane process on a loopback address of its own, and what tests ask of it.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use parovoz_proto::v1;
use parovoz_proto::v1::admin_client::AdminClient;
use tonic::transport::Channel;

/// How long anything may take before a test fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The store of all tests.
pub const STORE: &str = "store-of-tests";

/// One member.
pub struct Node {
    pub ip: Ipv4Addr,
    pub name: String,
    dir: tempfile::TempDir,
    child: Option<Child>,
    mounted: bool,
    pub settings: serde_json::Value,
    /// More arguments, and more of the environment.
    pub extra: Vec<String>,
    pub env: Vec<(String, String)>,
}

/// 127.x.y.1, another one each time and in each process.
fn fresh_ip() -> Ipv4Addr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let [_, low] = u16::try_from(std::process::id() % 60_000).unwrap().to_be_bytes();
    Ipv4Addr::new(
        127,
        10 + (low % 200),
        u8::try_from(1 + n % 250).unwrap(),
        u8::try_from(1 + std::process::id() % 250).unwrap(),
    )
}

impl Node {
    /// A member with a blank volume, started.
    pub fn start(name: &str) -> Self {
        Self::start_with(name, serde_json::json!({}))
    }

    /// The same with settings.
    pub fn start_with(name: &str, settings: serde_json::Value) -> Self {
        let mut node = Self::new(name, settings);
        node.spawn();
        node
    }

    /// A member whose volume is a file system of its own of so many bytes; the test must run as root.
    pub fn start_on_small_volume(name: &str, bytes: u64) -> Self {
        let mut node = Self::new(name, serde_json::json!({}));
        std::fs::create_dir(node.data()).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "parovoz-test"])
            .arg(node.data())
            .output()
            .unwrap();
        let why = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "this test mounts a small file system and must run as root: {why}");
        node.mounted = true;
        node.spawn();
        node
    }

    /// A member with a blank volume, to be started.
    pub fn new(name: &str, mut settings: serde_json::Value) -> Self {
        // Tests kill on purpose and don't want to wait between restarts.
        settings["recovery"] = serde_json::json!({"maxAttempts": 5, "windowSeconds": 300, "backoffSeconds": 0});
        let dir = tempfile::tempdir().unwrap();
        let (extra, env) = (Vec::new(), Vec::new());
        Self { ip: fresh_ip(), name: name.to_owned(), dir, child: None, mounted: false, settings, extra, env }
    }

    /// Its volume.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts the process (again) on the same volume and address.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let config = self.dir.path().join("config.json");
        std::fs::write(&config, self.settings.to_string()).unwrap();
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_parovoz-dataplane"))
            .arg("run")
            .args(["--store-uid", STORE, "--pod-name", &self.name, "--log", "info,parovoz_dataplane=debug"])
            .args(["--listen", &self.ip.to_string(), "--advertise-host", &self.ip.to_string()])
            .arg("--data-dir")
            .arg(self.data())
            .arg("--config")
            .arg(&config)
            .args(&self.extra)
            .envs(self.env.iter().cloned())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Where its log goes.
    pub fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("runs");
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        // Threads stop one after the other, and on a busy machine the last of them late.
        let begin = Instant::now();
        while signal == rustix::process::Signal::STOP && !is_stopped(child.id()) {
            assert!(begin.elapsed() < DEADLINE, "{} does not stop", self.name);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGTERM, and the exit status.
    pub fn terminate(&mut self) -> std::process::ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait_end()
    }

    /// Waits until the process ends by itself.
    pub fn wait_end(&mut self) -> std::process::ExitStatus {
        let mut child = self.child.take().expect("runs");
        let begin = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if begin.elapsed() > DEADLINE {
                child.kill().unwrap();
                panic!("{} does not end:\n{}", self.name, self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A client of the admin port; waits until it answers.
    pub async fn admin(&self) -> AdminClient<Channel> {
        let address = format!("http://{}:7003", self.ip);
        within(&format!("{} answers on its admin port", self.name), async || {
            AdminClient::connect(address.clone()).await.ok()
        })
        .await
    }

    /// The present report.
    pub async fn report(&self) -> v1::MemberReport {
        self.admin().await.status(v1::StatusRequest {}).await.unwrap().into_inner()
    }

    /// A Redis connection; waits until the port answers.
    pub fn redis(&self) -> redis::Connection {
        let begin = Instant::now();
        loop {
            match redis::Client::open(format!("redis://{}:6379/", self.ip)).unwrap().get_connection() {
                Ok(connection) => {
                    connection.set_read_timeout(Some(DEADLINE)).unwrap();
                    return connection;
                }
                Err(error) if begin.elapsed() > DEADLINE => panic!("{}: {error}\n{}", self.name, self.log()),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// This member's endpoint, as orders name it.
    pub async fn endpoint(&self) -> v1::Endpoint {
        v1::Endpoint {
            data_uuid: self.report().await.data_uuid,
            replication_address: format!("{}:7002", self.ip),
            client_address: format!("{}:7000", self.ip),
            resp_address: format!("{}:6379", self.ip),
            ip: String::new(),
        }
    }

    /// Text of an HTTP page and whether it answered 200.
    pub fn http(&self, path: &str) -> Option<(bool, String)> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect((self.ip, 9090)).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some((text.starts_with("HTTP/1.1 200"), text))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.mounted {
            let _ = Command::new("umount").arg(self.data()).status();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.name, tail(&self.log_path()));
        }
    }
}

/// Whether every thread of a process is stopped.
fn is_stopped(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    threads.flatten().all(|thread| {
        // pid (name) STATE ...: the name may hold anything, so what counts stands after the last parenthesis.
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// Asks again and again until there is an answer; fails after [`DEADLINE`].
pub async fn within<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begin.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// A reign of these members, the first being the primary.
pub async fn reign(epoch: u64, members: &[&Node]) -> v1::Reign {
    let mut uuids = Vec::new();
    for member in members {
        uuids.push(member.report().await.data_uuid);
    }
    v1::Reign {
        epoch,
        reign_id: uuid::Uuid::new_v4().to_string(),
        primary: uuids[0].clone(),
        members: uuids,
        mode: v1::Mode::Async.into(),
        min_sync_replicas: 0,
        lease_duration_ms: 10_000,
    }
}

/// The name of a reign.
pub fn named(reign: &v1::Reign) -> v1::ReignRef {
    v1::ReignRef { epoch: reign.epoch, reign_id: reign.reign_id.clone() }
}

/// Seals a member for a reign to come, on this evidence about the reign that it promised.
pub async fn seal(
    node: &Node,
    reign: &v1::Reign,
    evidence: v1::SealEvidence,
) -> Result<v1::MemberReport, tonic::Status> {
    let report = node.report().await;
    let order = v1::SealRequest {
        store_uid: STORE.to_owned(),
        data_uuid: report.data_uuid,
        reign: Some(named(reign)),
        about: report.reign.as_ref().map(named),
        evidence: evidence.into(),
    };
    node.admin().await.seal(order).await.map(tonic::Response::into_inner)
}

/// What a member votes, by prefix name.
pub fn votes(report: &v1::MemberReport) -> std::collections::BTreeMap<String, Option<(u64, u64)>> {
    let vote = |p: &v1::PrefixReport| p.vote.as_ref()?.known.as_ref().map(|k| (k.epoch, k.sequence));
    report.prefixes.iter().map(|p| (p.name.clone(), vote(p))).collect()
}

/// Promotes a member that is sealed for the reign, as it stands.
pub async fn promote_sealed(node: &Node, reign: &v1::Reign) -> Result<v1::MemberReport, tonic::Status> {
    let report = node.report().await;
    let order = v1::PromoteRequest {
        store_uid: STORE.to_owned(),
        data_uuid: report.data_uuid.clone(),
        reign: Some(reign.clone()),
        process_id: report.process_id.clone(),
        positions: report.prefixes.iter().filter_map(|p| p.vote.clone()).collect(),
        first: report.reign.is_none(),
    };
    node.admin().await.promote(order).await.map(tonic::Response::into_inner)
}

/// Seals a member and promotes it.
pub async fn promote(node: &Node, reign: &v1::Reign) -> Result<v1::MemberReport, tonic::Status> {
    seal(node, reign, v1::SealEvidence::PrimarySealed).await?;
    promote_sealed(node, reign).await
}

/// Waits until a primary serves every prefix, fresh reads included.
pub async fn served(node: &Node) {
    within(&format!("{} serves", node.name), async || {
        let report = node.report().await;
        let all = !report.prefixes.is_empty() && report.prefixes.iter().all(|p| p.served);
        (report.phase() == v1::MemberPhase::Serving && all && report.can_acknowledge).then_some(())
    })
    .await;
}

/// A reign as [`reign`] makes it, with writes acknowledged by `required` replicas.
pub async fn quorum_reign(epoch: u64, required: u32, members: &[&Node]) -> v1::Reign {
    let mut reign = reign(epoch, members).await;
    reign.mode = v1::Mode::Quorum.into();
    reign.min_sync_replicas = required;
    reign
}

/// Lets a member follow an upstream.
pub async fn follow(node: &Node, reign: &v1::Reign, upstream: &Node, primary: &Node) {
    follow_from(node, reign, upstream, primary, None).await;
}

/// The same, with missing copies to be taken from another member.
pub async fn follow_from(node: &Node, reign: &v1::Reign, upstream: &Node, primary: &Node, source: Option<&Node>) {
    let bootstrap_source = match source {
        Some(source) => Some(source.endpoint().await),
        None => None,
    };
    let order = v1::FollowRequest {
        store_uid: STORE.to_owned(),
        data_uuid: node.report().await.data_uuid,
        reign: Some(reign.clone()),
        upstream: Some(upstream.endpoint().await),
        primary: Some(primary.endpoint().await),
        bootstrap_source,
    };
    node.admin().await.follow(order).await.unwrap();
}

/// A primary and replicas that follow it, epoch 1.
pub async fn store_of(primary: &Node, replicas: &[&Node]) -> v1::Reign {
    let members: Vec<&Node> = std::iter::once(primary).chain(replicas.iter().copied()).collect();
    let reign = reign(1, &members).await;
    promote(primary, &reign).await.unwrap();
    for replica in replicas {
        follow(replica, &reign, primary, primary).await;
    }
    reign
}

/// Applied position of every prefix of a report, by name.
pub fn positions(report: &v1::MemberReport) -> std::collections::BTreeMap<String, (u64, u64)> {
    let at = |p: &v1::PrefixReport| p.applied.as_ref().map_or((0, 0), |p| (p.epoch, p.sequence));
    report.prefixes.iter().map(|p| (p.name.clone(), at(p))).collect()
}

/// Waits until a replica is where the primary is, in every prefix.
pub async fn caught_up(replica: &Node, primary: &Node) {
    within(&format!("{} catches up", replica.name), async || {
        let (a, b) = (replica.report().await, primary.report().await);
        (a.complete && positions(&a) == positions(&b)).then_some(())
    })
    .await;
}

/// Every key of the store with its value, read through a member's Redis port.
pub fn contents(node: &Node) -> std::collections::BTreeMap<Vec<u8>, Vec<u8>> {
    let mut connection = node.redis();
    let mut cursor = "0".to_owned();
    let mut keys: Vec<Vec<u8>> = Vec::new();
    loop {
        let (next, some): (String, Vec<Vec<u8>>) =
            redis::cmd("SCAN").arg(&cursor).arg("COUNT").arg(1000).query(&mut connection).unwrap();
        keys.extend(some);
        cursor = next;
        if cursor == "0" {
            break;
        }
    }
    keys.into_iter()
        .map(|key| {
            let value: Vec<u8> = redis::cmd("GET").arg(&key).query(&mut connection).unwrap();
            (key, value)
        })
        .collect()
}

/// Writes `count` keys `PREFIX:key-N` with values of `bytes` bytes, pipelined.
pub fn fill(node: &Node, prefix: &str, from: usize, count: usize, bytes: usize) {
    let mut connection = node.redis();
    for chunk in (from..from + count).collect::<Vec<_>>().chunks(500) {
        let mut pipe = redis::pipe();
        for n in chunk {
            let value = format!("{n:0bytes$}");
            pipe.cmd("SET").arg(format!("{prefix}:key-{n}")).arg(value).ignore();
        }
        pipe.query::<()>(&mut connection).unwrap();
    }
}
