//! The records of the demonstration: a Debian package index, or lines of a file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};
use crate::exec::run;
use crate::packages::{self, Need};
use crate::resp::Contents;
use crate::ui::Ui;

/// Fewer would show nothing.
const LEAST: usize = 1000;
const LONGEST_PREFIX: usize = 64;

/// Key and value; keys are `prefix:rest`.
pub type Records = BTreeMap<String, Vec<u8>>;

/// The records of `file`, or of this machine's package index.
pub fn records(ui: &Ui, file: Option<&Path>) -> Result<Records> {
    let Some(file) = file else { return machine_index(ui) };
    let bytes = std::fs::read(file).doing(|| format!("read {}", file.display()))?;
    let records = parse(&String::from_utf8_lossy(&bytes));
    if records.is_empty() {
        return Err(Error::failed(format!(
            "read {}: no records; wanted: paragraphs that begin with `Package:`, or lines of `key<TAB>value`",
            file.display()
        )));
    }
    Ok(records)
}

fn machine_index(ui: &Ui) -> Result<Records> {
    packages::ensure(ui, &[Need::Index])?;
    let read = || run("apt-cache").arg("dumpavail").text().map(|text| parse(&text));
    let mut found = read()?;
    if found.len() < LEAST && packages::require_root("apt-get update").is_ok() {
        ui.step("fetch the package index (apt-get update)", |_| run("apt-get").words("-qq update").done())?;
        found = read()?;
    }
    if found.len() < LEAST {
        return Err(Error::failed(format!(
            "read the package index: {} records only; run `apt-get update` as root, or name a file by --data",
            found.len()
        )));
    }
    Ok(found)
}

/// Paragraphs of `Field: value` lines, or lines of `key<TAB>value`.
fn parse(text: &str) -> Records {
    let mut records = Records::new();
    if text.trim_start().starts_with("Package:") {
        for stanza in text.split("\n\n").map(str::trim).filter(|s| s.starts_with("Package:")) {
            insert(&mut records, key_of(stanza), stanza);
        }
    } else {
        for (key, value) in text.lines().filter_map(|line| line.split_once('\t')) {
            insert(&mut records, key.to_owned(), value);
        }
    }
    records
}

/// Different records must stay different: a key that is taken gets a number.
fn insert(records: &mut Records, key: String, value: &str) {
    let mut unique = key.clone();
    let mut number = 1;
    while records.contains_key(&unique) {
        number += 1;
        unique = format!("{key}#{number}");
    }
    records.insert(unique, value.as_bytes().to_vec());
}

/// `section:package/version/architecture`.
fn key_of(stanza: &str) -> String {
    let field = |name: &str| {
        stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map_or("none", str::trim)
    };
    let mut section: String = field("Section")
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '-' })
        .collect();
    section.truncate(LONGEST_PREFIX);
    format!("{section}:{}/{}/{}", field("Package"), field("Version"), field("Architecture"))
}

/// What stands before the first colon of each key.
pub fn prefixes<'a>(keys: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    keys.map(|key| key.split_once(':').map_or("default", |(prefix, _)| prefix).to_owned()).collect()
}

/// What a member must hold.
pub fn expected(records: &Records) -> Contents {
    records.iter().map(|(key, value)| (key.as_bytes().to_vec(), Sha256::digest(value).into())).collect()
}

#[cfg(test)]
mod tests {
    use super::{parse, prefixes};

    #[test]
    fn a_package_becomes_a_record_below_its_section() {
        let records =
            parse("Package: a\nVersion: 1:2\nSection: contrib/net\nArchitecture: all\n\nPackage: b\nVersion: 3\n");
        let keys: Vec<&str> = records.keys().map(String::as_str).collect();
        assert_eq!(keys, ["contrib-net:a/1:2/all", "none:b/3/none"]);
        assert_eq!(prefixes(keys.into_iter()).into_iter().collect::<Vec<_>>(), ["contrib-net", "none"]);
        assert!(records["none:b/3/none"].starts_with(b"Package: b"));
    }

    #[test]
    fn equal_keys_stay_different_records() {
        let records = parse("x:1\tone\nx:1\ttwo\n");
        assert_eq!(records["x:1"], b"one");
        assert_eq!(records["x:1#2"], b"two");
    }
}
