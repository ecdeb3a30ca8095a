//! Names, labels, annotations and ports: everything that two places must spell alike.

/// Field manager of every object that the operator applies.
pub const FIELD_MANAGER: &str = "parovoz-operator";
/// Field manager of the labels that follow a member's role, apart from the rest so that either can be applied alone.
pub const ROLE_MANAGER: &str = "parovoz-operator-roles";

/// Label: which store an object belongs to.
pub const LABEL_STORE: &str = "parovoz.dev/store";
/// Label: which member an object belongs to.
pub const LABEL_MEMBER: &str = "parovoz.dev/member";
/// Label of a pod: `primary` or `replica`.
pub const LABEL_ROLE: &str = "parovoz.dev/role";
/// Label of a pod: `true` on a replica that is complete and streams.
pub const LABEL_IN_STANDING: &str = "parovoz.dev/in-standing";
/// Label value of the primary.
pub const ROLE_PRIMARY: &str = "primary";
/// Label value of every other member.
pub const ROLE_REPLICA: &str = "replica";

/// Annotation of a volume claim: uid of the store that made it.
pub const ANNOTATION_STORE_UID: &str = "parovoz.dev/store-uid";
/// Annotation of the primary's Lease: nobody of an earlier epoch may renew or take it.
pub const ANNOTATION_EPOCH: &str = "parovoz.dev/epoch";
/// Annotation of a pod: uid of the volume claim that it was made for.
pub const ANNOTATION_CLAIM_UID: &str = "parovoz.dev/claim-uid";
/// Annotation of a pod: hash of those settings that take effect only in a new pod.
pub const ANNOTATION_POD_HASH: &str = "parovoz.dev/pod-settings";

/// gRPC for clients.
pub const PORT_CLIENT: i32 = 7000;
/// Bulk transfers for clients.
pub const PORT_BULK: i32 = 7001;
/// Streams between members.
pub const PORT_REPLICATION: i32 = 7002;
/// The operator's orders and the members' reports.
pub const PORT_ADMIN: i32 = 7003;
/// RESP for clients.
pub const PORT_RESP: i32 = 6379;
/// Metrics and probes.
pub const PORT_HTTP: i32 = 9090;

/// Most members that a store may have.
pub const MAX_MEMBERS: u32 = 9;

/// Pod of the member with this ordinal.
#[must_use]
pub fn member(store: &str, ordinal: u32) -> String {
    format!("{store}-{ordinal}")
}

/// Volume claim of the member with this ordinal.
#[must_use]
pub fn claim(store: &str, ordinal: u32) -> String {
    format!("data-{store}-{ordinal}")
}

/// The ordinal of a member of this store, read from its pod's name. None if it is not one.
#[must_use]
pub fn ordinal_of(store: &str, pod: &str) -> Option<u32> {
    let digits = pod.strip_prefix(store)?.strip_prefix('-')?;
    if digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok().filter(|ordinal| *ordinal >= 1)
}

/// The ordinal of a volume claim of this store.
#[must_use]
pub fn ordinal_of_claim(store: &str, claim: &str) -> Option<u32> {
    ordinal_of(store, claim.strip_prefix("data-")?)
}

/// Service of the primary.
#[must_use]
pub fn service_rw(store: &str) -> String {
    format!("{store}-rw")
}

/// Service of the replicas in standing.
#[must_use]
pub fn service_ro(store: &str) -> String {
    format!("{store}-ro")
}

/// Service of every ready member.
#[must_use]
pub fn service_any(store: &str) -> String {
    format!("{store}-r")
}

/// Headless service that gives each member its host name.
#[must_use]
pub fn service_members(store: &str) -> String {
    format!("{store}-members")
}

/// ConfigMap with what the members read.
#[must_use]
pub fn config(store: &str) -> String {
    format!("{store}-config")
}

/// Service account of the members. Not the bare name: a store called `default` must not take that account over.
#[must_use]
pub fn account(store: &str) -> String {
    format!("{store}-members")
}

/// Lease of the primary, renewed by the primary itself where it waits for no replica.
#[must_use]
pub fn lease(store: &str) -> String {
    format!("{store}-primary")
}

/// Host name of a member, the same for as long as the store lives.
#[must_use]
pub fn host(store: &str, namespace: &str, pod: &str) -> String {
    format!("{pod}.{}.{namespace}.svc", service_members(store))
}

/// Label selector of the members' pods.
#[must_use]
pub fn selector(store: &str) -> String {
    format!("{LABEL_STORE}={store}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinal_is_read_back_from_the_name_it_was_made_into() {
        assert_eq!(ordinal_of("cache", &member("cache", 7)), Some(7));
        assert_eq!(ordinal_of_claim("cache", &claim("cache", 7)), Some(7));
    }

    #[test]
    fn names_of_other_stores_have_no_ordinal() {
        for pod in ["cache", "cache-", "cache-x", "cache-01", "cache-0", "cache-1-1", "other-1", "cache-+1"] {
            assert_eq!(ordinal_of("cache", pod), None, "{pod}");
        }
    }

    #[test]
    fn the_longest_store_name_leaves_every_derived_name_below_63_characters() {
        let store = "a".repeat(40);
        for name in [service_members(&store), claim(&store, MAX_MEMBERS), config(&store), service_rw(&store)] {
            assert!(name.len() < 63, "{name}");
        }
    }
}
