//! The main job, shown: a cluster, the operator, a store, real data, a lost volume under writes, three equal members.

mod data;
mod writer;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cluster::tools::Tools;
use crate::error::{Error, Result, read};
use crate::install;
use crate::kube::{Kube, items};
use crate::paths;
use crate::poll;
use crate::resp::{self, Contents};
use crate::store::{Member, Store};
use crate::ui::{Ui, seconds};

use data::Records;
use writer::Writer;

const MEMBERS: usize = 3;
/// Writes that must be acknowledged while the replica is rebuilt.
const LEAST_LIVE: usize = 10_000;
const REBUILD_LIMIT: Duration = Duration::from_secs(300);
const SAMPLE: &str = "manifests/samples/store.yaml";
/// Label of a store that a demonstration made and may remove.
const MARK: &str = "parovoz.dev/demonstration=true";

/// What the command line says.
#[derive(Debug, Default)]
pub struct Options {
    /// A cluster to use instead of the local one; images must be reachable for it.
    pub kubeconfig: Option<PathBuf>,
    /// Registry to install the operator from there.
    pub registry: Option<String>,
    /// Records instead of the machine's package index.
    pub data: Option<PathBuf>,
    /// Remove the store at the end.
    pub clean: bool,
}

/// Runs it. Returns the last line.
pub fn run(ui: &Ui, options: &Options) -> Result<String> {
    let records = ui.step("read the records", |_| data::records(ui, options.data.as_deref()))?;
    let prefixes: Vec<String> = data::prefixes(records.keys().map(String::as_str)).into_iter().collect();
    ui.line(&format!("       {} records, {} prefixes", records.len(), prefixes.len()));
    let store = prepare(ui, options)?;
    ui.step("remove what a former demonstration left", |_| store.remove())?;
    ui.step(&format!("kubectl apply -f {SAMPLE}"), |step| {
        store.kube.apply(&read(&paths::repository().join(SAMPLE))?)?;
        store.kube.kubectl(&format!("label rstore {} -n {} {MARK}", store.name, store.namespace)).done()?;
        step.announce("volumes, pods, first reign");
        store.await_healthy(MEMBERS)
    })?;
    load(ui, &store, &records)?;
    let live = rebuild_under_writes(ui, &store, &prefixes)?;
    let mut all = records;
    all.extend(live);
    let expected = data::expected(&all);
    let members = ui.step("await equal positions", |_| store.await_equal_positions(MEMBERS))?;
    let found = verify(ui, &store, &members, &expected)?;
    report(&store, &members, &expected, &found);
    if options.clean {
        ui.step("remove the store", |_| store.remove())?;
    }
    let prefixes = data::prefixes(all.keys().map(String::as_str)).len();
    Ok(format!("demo: {} records, {prefixes} prefixes, {} members, equal", all.len(), members.len()))
}

/// The operator on a cluster, and the store that is to be made there.
fn prepare(ui: &Ui, options: &Options) -> Result<Store> {
    let store = |kube| Store { kube, namespace: "default".into(), name: "demo".into() };
    let Some(file) = &options.kubeconfig else {
        let (kube, inputs) = install::local_cluster(ui)?;
        ui.step("helm install parovoz charts/parovoz", |_| install::helm(&kube, &inputs))?;
        return Ok(store(kube));
    };
    let store = store(Kube::new(&Tools::ensure_clients(ui)?, file));
    ui.step("see that no store is in the way", |_| refuse_foreign(&store))?;
    if install::is_there(&store.kube)? {
        ui.line("       the operator that is there is used as it is");
    } else {
        let registry = options.registry.as_deref();
        ui.step("helm install parovoz charts/parovoz", |_| install::helm_from(&store.kube, "given", registry))?;
    }
    Ok(store)
}

/// On a cluster that is not ours, only what a demonstration made may be removed.
fn refuse_foreign(store: &Store) -> Result<()> {
    let Store { kube, namespace, name } = store;
    let present = match kube.find("get crd replicatedstores.parovoz.dev")? {
        Some(_) => kube.find(&format!("get rstore {name} -n {namespace}"))?,
        None => None,
    };
    let (key, value) = MARK.split_once('=').unwrap_or((MARK, ""));
    let what = match present {
        Some(found) if found["metadata"]["labels"][key] == value => return Ok(()),
        Some(_) => "a store".to_owned(),
        None => {
            let volumes = kube.json(&format!("get pvc -l parovoz.dev/store={name} -n {namespace}"))?;
            match items(&volumes, "/items").len() {
                0 => return Ok(()),
                count => format!("{count} volume claims of a store"),
            }
        }
    };
    Err(Error::failed(format!(
        "demonstrate on this cluster: {what} `{name}` in namespace {namespace}, which no demonstration made, would be removed \
         with all data; remove it yourself, or use another cluster"
    )))
}

fn load(ui: &Ui, store: &Store, records: &Records) -> Result<()> {
    ui.step("write the records to the primary over RESP", |step| {
        let mut client = store.connect(&store.primary()?)?;
        let begun = Instant::now();
        let pairs = records.iter().map(|(key, value)| (key.as_bytes(), value.as_slice()));
        let written = client.write(pairs, |done| step.note(&format!("{done} of {} acknowledged", records.len())))?;
        let rate = written as f64 / begun.elapsed().as_secs_f64();
        step.announce(&format!("{written} acknowledged, {rate:.0} a second"));
        Ok(())
    })
}

/// What was acknowledged when.
#[derive(Default)]
struct Marks {
    copying: Option<usize>,
    end: usize,
}

/// Deletes a replica's volume and pod, and writes on until it streams again. Returns what was written meanwhile.
fn rebuild_under_writes(ui: &Ui, store: &Store, prefixes: &[String]) -> Result<Records> {
    let victim = store.replica()?;
    let client = store.connect(&store.primary()?)?;
    let writer = Writer::start(client, prefixes.to_vec());
    let name = format!("lose {}'s volume, and rebuild it under writes", victim.name);
    let outcome = ui.step(&name, |step| {
        let begun = Instant::now();
        let start = writer.acknowledged()?;
        store.delete_volume(&victim.name)?;
        let mut shown = String::new();
        let marks = poll::until("the replica to be rebuilt", REBUILD_LIMIT, Duration::from_millis(100), {
            let mut marks = Marks::default();
            let (writer, step, victim) = (&writer, &step, &victim);
            move || {
                // A writer that ended cannot become right by waiting: the outcome carries its error.
                let acknowledged = match writer.acknowledged() {
                    Ok(count) => count,
                    Err(e) => return Ok(Err(e)),
                };
                let members = store.get().map(|object| crate::store::members(&object)).map_err(|e| e.to_string())?;
                let member = members.iter().find(|m| m.name == victim.name);
                let fresh = member.filter(|m| !m.data_uuid.is_empty() && m.data_uuid != victim.data_uuid);
                let phase = member.map_or("gone", |m| m.phase.as_str()).to_owned();
                if fresh.is_some() && marks.copying.is_none() {
                    marks.copying = Some(acknowledged);
                }
                if phase != shown {
                    step.announce(&format!("{} {phase}, {acknowledged} writes acknowledged, {}", victim.name, seconds(begun.elapsed())));
                    shown.clone_from(&phase);
                }
                if fresh.is_some_and(|m| m.phase == "Streaming") {
                    marks.end = acknowledged;
                    return Ok(Ok(std::mem::take(&mut marks)));
                }
                Err(format!("{} is {phase}", victim.name))
            }
        })??;
        let during = marks.end - start;
        ui.line(&format!(
            "       {during} writes acknowledged from the loss to the end of the copy, {} of them since the new volume was seen",
            marks.end - marks.copying.unwrap_or(marks.end),
        ));
        if during < LEAST_LIVE {
            return Err(Error::failed(format!("write while the replica is rebuilt: {during} acknowledged, {LEAST_LIVE} wanted")));
        }
        Ok(())
    });
    // If writing failed, that is the cause of whatever else did.
    let written = writer.finish()?;
    outcome.map(|()| written)
}

fn verify(ui: &Ui, store: &Store, members: &[Member], expected: &Contents) -> Result<Vec<(usize, String)>> {
    members
        .iter()
        .map(|member| {
            ui.step(&format!("read every record back from {}", member.name), |step| {
                let mut client = store.connect(&member.name)?;
                let found = client.contents(|done| step.note(&format!("{done} of {}", expected.len())))?;
                resp::compare(&member.name, expected, &found)?;
                Ok((found.len(), resp::digest(&found)))
            })
        })
        .collect()
}

fn report(store: &Store, members: &[Member], expected: &Contents, found: &[(usize, String)]) {
    println!(
        "\n{:<10} {:<8} {:<7} {:<37} {:>16} {:>9}  SHA-256 of all records",
        "MEMBER", "ROLE", "NODE", "DATA", "POSITION", "RECORDS"
    );
    for (member, (count, digest)) in members.iter().zip(found) {
        let position = format!("{}/{}", member.position.0, member.position.1);
        println!(
            "{:<10} {:<8} {:<7} {:<37} {position:>16} {count:>9}  {digest}",
            member.name, member.role, member.node, member.data_uuid
        );
    }
    println!(
        "{:<10} {:<8} {:<7} {:<37} {:>16} {:>9}  {}\n",
        "input",
        "",
        "",
        "",
        "",
        expected.len(),
        resp::digest(expected)
    );
    let kubeconfig = store.kube.kubeconfig.display();
    let local = Path::new(&store.kube.kubeconfig).starts_with(paths::cache());
    let path = if local { format!(" PATH={}:$PATH", paths::cache().join("bin").display()) } else { String::new() };
    println!("connect:   export KUBECONFIG={kubeconfig}{path}");
    println!("           kubectl get rstore {}", store.name);
    println!(
        "           kubectl port-forward service/{}-rw 6379:6379 &   redis-cli -p 6379 scan 0 match 'net:*'",
        store.name
    );
    println!("clean up:  kubectl delete rstore {}; kubectl delete pvc -l parovoz.dev/store={}", store.name, store.name);
    println!("           helm uninstall parovoz --namespace parovoz-system");
    if local {
        println!("           cargo xtask cluster down");
    }
}
