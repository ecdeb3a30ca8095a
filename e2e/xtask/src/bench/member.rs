//! Data-plane processes on loopback addresses of their own: a primary, and a replica that follows it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use parovoz_proto::v1;
use parovoz_proto::v1::admin_client::AdminClient;
use tonic::transport::Channel;

use crate::error::{Context, Error, Result, make_dir, write};
use crate::poll;

const STORE: &str = "bench";
const START_LIMIT: Duration = Duration::from_secs(60);
const INTERVAL: Duration = Duration::from_millis(50);
const REPLICATION_PORT: u16 = 7002;
const CLIENT_PORT: u16 = 7000;
const ADMIN_PORT: u16 = 7003;
const RESP_PORT: u16 = 6379;
/// Of the reigns made here; members that never lead anything else don't care.
const LEASE_MS: u32 = 10_000;

/// A child process that ends with its owner.
pub struct Process(Child);

impl Process {
    /// Starts a program, its output in a file.
    pub fn start(mut command: Command, name: &str, log: &Path) -> Result<Self> {
        let file = File::create(log).doing(|| format!("create {}", log.display()))?;
        let errors = file.try_clone().doing(|| format!("share {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        command.spawn().map(Self).doing(|| format!("start {name}"))
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, which whoever used it has noticed.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// One member.
pub struct Member {
    process: Process,
    ip: String,
    endpoint: v1::Endpoint,
}

/// How members are started.
pub struct Setup<'a> {
    /// The binary.
    pub binary: &'a Path,
    /// Folders of members and logs go here.
    pub dir: &'a Path,
    /// `Sync` or `Os`.
    pub durability: &'a str,
    /// Event loops; 0 = the binary's default.
    pub event_loops: usize,
}

/// A primary and its replica.
pub struct Pair {
    /// Takes the load.
    pub primary: Member,
    /// Follows it.
    pub replica: Member,
}

impl Member {
    fn start(setup: &Setup<'_>, name: &str, ip: &str) -> Result<Self> {
        let dir = setup.dir.join(name);
        make_dir(&dir)?;
        let config = dir.join("config.json");
        write(&config, format!("{{\"durability\":\"{}\"}}", setup.durability))?;
        let mut command = Command::new(setup.binary);
        command.arg("run").args(["--store-uid", STORE, "--pod-name", name, "--listen", ip, "--advertise-host", ip]);
        command.args(["--event-loops", &setup.event_loops.to_string(), "--log", "warn"]);
        command.arg("--data-dir").arg(dir.join("data")).arg("--config").arg(&config);
        let process = Process::start(command, name, &dir.join("log"))?;
        let endpoint = v1::Endpoint {
            data_uuid: String::new(),
            replication_address: format!("{ip}:{REPLICATION_PORT}"),
            client_address: format!("{ip}:{CLIENT_PORT}"),
            resp_address: format!("{ip}:{RESP_PORT}"),
            ip: ip.to_owned(),
        };
        Ok(Self { process, ip: ip.to_owned(), endpoint })
    }

    /// Where its Redis port is.
    pub fn ip(&self) -> &str {
        &self.ip
    }

    /// Number of its process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    async fn admin(&self) -> std::result::Result<AdminClient<Channel>, tonic::transport::Error> {
        AdminClient::connect(format!("http://{}:{ADMIN_PORT}", self.ip)).await
    }
}

impl Pair {
    /// Starts both, makes the first the primary, and lets the other follow it. `net` tells pairs of one run apart.
    pub fn start(setup: &Setup<'_>, net: u8) -> Result<Self> {
        let mut primary = Member::start(setup, &format!("primary-{}", setup.durability), &format!("127.77.{net}.1"))?;
        let mut replica = Member::start(setup, &format!("replica-{}", setup.durability), &format!("127.77.{net}.2"))?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().doing(|| "make a runtime".to_owned())?;
        for member in [&mut primary, &mut replica] {
            let report = poll::until(&format!("admin port of {}", member.ip), START_LIMIT, INTERVAL, || {
                runtime.block_on(async {
                    let mut admin = member.admin().await.map_err(|e| e.to_string())?;
                    admin.status(v1::StatusRequest {}).await.map_err(|e| e.to_string())
                })
            })?;
            member.endpoint.data_uuid = report.into_inner().data_uuid;
        }
        runtime
            .block_on(order(&primary, &replica))
            .map_err(|e| Error::failed(format!("order members of the benchmark: {e}")))?;
        Ok(Self { primary, replica })
    }
}

async fn order(primary: &Member, replica: &Member) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let (first, second) = (primary.endpoint.data_uuid.clone(), replica.endpoint.data_uuid.clone());
    let reign = v1::Reign {
        epoch: 1,
        reign_id: uuid::Uuid::new_v4().to_string(),
        primary: first.clone(),
        members: vec![first.clone(), second.clone()],
        mode: v1::Mode::Async.into(),
        min_sync_replicas: 0,
        lease_duration_ms: LEASE_MS.into(),
    };
    let seal = v1::SealRequest {
        store_uid: STORE.to_owned(),
        data_uuid: first.clone(),
        reign: Some(v1::ReignRef { epoch: reign.epoch, reign_id: reign.reign_id.clone() }),
        about: None,
        evidence: v1::SealEvidence::Dead.into(),
    };
    primary.admin().await?.seal(seal).await?;
    let promote = v1::PromoteRequest {
        store_uid: STORE.to_owned(),
        data_uuid: first,
        reign: Some(reign.clone()),
        process_id: String::new(),
        positions: Vec::new(),
        first: true,
    };
    primary.admin().await?.promote(promote).await?;
    let follow = v1::FollowRequest {
        store_uid: STORE.to_owned(),
        data_uuid: second,
        reign: Some(reign),
        upstream: Some(primary.endpoint.clone()),
        primary: Some(primary.endpoint.clone()),
        bootstrap_source: None,
    };
    replica.admin().await?.follow(follow).await?;
    Ok(())
}

/// The data plane's binary: the given one, or the one that is built now.
pub fn binary(ui: &crate::ui::Ui, given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let built = crate::image::binaries(ui)?;
    built
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name == "parovoz-dataplane"))
        .ok_or_else(|| Error::failed("build the data plane: cargo made no such binary"))
}
