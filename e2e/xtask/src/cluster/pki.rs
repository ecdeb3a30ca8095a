//! The cluster's certificates and the settings by which each of its programs reaches the API server.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use serde_json::json;

use super::layout::{BRIDGE_ADDRESS, Layout, Node};
use crate::error::{Context, Error, Result, read, write};

/// The group that may do everything.
const ADMINISTRATORS: &str = "system:masters";

type Authority = Issuer<'static, KeyPair>;

/// Makes keys and certificates that are missing, for the control plane and every node.
pub fn ensure(layout: &Layout, nodes: impl Iterator<Item = Node>) -> Result<()> {
    let authority = authority(layout)?;
    service_account_key(layout)?;
    let server_names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        "10.96.0.1",
        BRIDGE_ADDRESS,
    ];
    certificate(layout, &authority, "apiserver", "kube-apiserver", None, &server_names)?;
    let users = [
        ("admin", "admin", Some(ADMINISTRATORS)),
        ("controller-manager", "system:kube-controller-manager", None),
        ("scheduler", "system:kube-scheduler", None),
        ("proxy", "system:kube-proxy", None),
    ];
    for (file, name, group) in users {
        certificate(layout, &authority, file, name, group, &[])?;
        kubeconfig(layout, file)?;
    }
    for node in nodes {
        let name = node.name();
        let address = node.address();
        certificate(
            layout,
            &authority,
            &name,
            &format!("system:node:{name}"),
            Some("system:nodes"),
            &[&name, &address],
        )?;
        kubeconfig(layout, &name)?;
    }
    Ok(())
}

fn failed(what: &str, e: &rcgen::Error) -> Error {
    Error::parse(format!("make {what}"), e)
}

fn secret(path: &Path, pem: &str) -> Result<()> {
    write(path, pem)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .doing(|| format!("protect {}", path.display()))
}

fn parameters(name: &str, group: Option<&str>, alternatives: &[&str]) -> Result<CertificateParams> {
    let names: Vec<String> = alternatives.iter().map(|s| (*s).to_owned()).collect();
    let mut params = CertificateParams::new(names).map_err(|e| failed(name, &e))?;
    let mut subject = DistinguishedName::new();
    if let Some(group) = group {
        subject.push(DnType::OrganizationName, group);
    }
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2099, 1, 1);
    Ok(params)
}

/// The authority, from its stored key or made now.
fn authority(layout: &Layout) -> Result<Authority> {
    let name = "parovoz-local-cluster";
    let mut params = parameters(name, None, &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let (key_file, file) = (layout.pki("ca.key"), layout.pki("ca.crt"));
    if key_file.exists() && file.exists() {
        let key = KeyPair::from_pem(&read(&key_file)?).map_err(|e| failed(name, &e))?;
        return Ok(Issuer::new(params, key));
    }
    let key = KeyPair::generate().map_err(|e| failed(name, &e))?;
    let certificate = params.self_signed(&key).map_err(|e| failed(name, &e))?;
    secret(&key_file, &key.serialize_pem())?;
    write(&file, certificate.pem())?;
    Ok(Issuer::new(params, key))
}

fn service_account_key(layout: &Layout) -> Result<()> {
    let (private, public) = (layout.pki("sa.key"), layout.pki("sa.pub"));
    if private.exists() && public.exists() {
        return Ok(());
    }
    let key = KeyPair::generate().map_err(|e| failed("the service accounts' key", &e))?;
    secret(&private, &key.serialize_pem())?;
    write(&public, key.public_key_pem())
}

fn certificate(
    layout: &Layout,
    authority: &Authority,
    file: &str,
    name: &str,
    group: Option<&str>,
    alternatives: &[&str],
) -> Result<()> {
    let (key_file, certificate_file) = (layout.pki(&format!("{file}.key")), layout.pki(&format!("{file}.crt")));
    if key_file.exists() && certificate_file.exists() {
        return Ok(());
    }
    let mut params = parameters(name, group, alternatives)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().map_err(|e| failed(name, &e))?;
    let certificate = params.signed_by(&key, authority).map_err(|e| failed(name, &e))?;
    secret(&key_file, &key.serialize_pem())?;
    write(&certificate_file, certificate.pem())
}

fn kubeconfig(layout: &Layout, user: &str) -> Result<()> {
    let path = layout.kubeconfig(user);
    if path.exists() {
        return Ok(());
    }
    let data = |file: &str| read(&layout.pki(file)).map(|text| base64(text.as_bytes()));
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "parovoz",
        "clusters": [{"name": "parovoz", "cluster": {
            "server": format!("https://{BRIDGE_ADDRESS}:6443"), "certificate-authority-data": data("ca.crt")?}}],
        "users": [{"name": user, "user": {
            "client-certificate-data": data(&format!("{user}.crt"))?, "client-key-data": data(&format!("{user}.key"))?}}],
        "contexts": [{"name": "parovoz", "context": {"cluster": "parovoz", "user": user}}],
    });
    // JSON is YAML too.
    secret(&path, &format!("{config:#}\n"))
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |acc, b| acc << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let index = (group >> (18 - 6 * i)) & 63;
            out.push(if i <= chunk.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_pads_every_remainder() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
