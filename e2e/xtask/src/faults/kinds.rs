//! The kinds of faults, and what is to be known of each.

use clap::ValueEnum;
use serde::Serialize;

/// How a store acknowledges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Once one replica has it durably too.
    #[value(name = "quorum")]
    Quorum,
    /// Once the primary has it.
    #[value(name = "async")]
    Async,
}

impl Mode {
    /// For people and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Async => "async",
        }
    }
}

/// Whether a fault concerns one store, or all at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One; several stores may have it independently.
    Store,
    /// A node, the API server or the operator: it happens to all stores at once.
    Cluster,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The primary's process is killed (kill -9).
    Kill,
    /// The primary's process is stopped, replaced, and goes on (SIGSTOP, SIGCONT).
    Pause,
    /// The primary's pod is deleted with grace 0.
    PodDeleted,
    /// The primary and the operator don't hear each other; nothing else is wrong.
    PartitionOperator,
    /// The primary and its replicas don't hear each other.
    PartitionReplicas,
    /// The primary is cut from its replicas and killed soon after: what it alone has is lost, or comes back with it.
    KillBehind,
    /// Every write to the primary's disk waits.
    HungDisk,
    /// The primary's disk has no space left.
    DiskFull,
    /// The primary's disk dies under it: its process, its files, its claim and its pod are gone at once.
    VolumeLost,
    /// Another member is asked to lead.
    Switchover,
    /// Members are removed and added.
    Scale,
    /// The node of the primary has no cable.
    NodeBlackout,
    /// The same, and the leading operator is on that node too: its Lease must run out first.
    NodeAndOperatorBlackout,
    /// The node of the primary has no cable, with clients on the primary's side.
    IsolatedPrimary,
    /// The API server is stopped for a minute.
    ApiServer,
    /// The primary is killed, and the operator in a phase of the failover, another one each round.
    OperatorKilled,
    /// An operator that was stopped, and replaced, goes on in the middle of a failover.
    TwoOperators,
    /// No operator; a replica is killed and comes back; then the primary, which waits for the operator.
    OperatorAway,
    /// The same with the API server stopped as well.
    OperatorAndApiAway,
}

impl Kind {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }

    /// Whom it concerns.
    pub fn scope(self) -> Scope {
        match self {
            Self::Kill
            | Self::Pause
            | Self::PodDeleted
            | Self::PartitionOperator
            | Self::PartitionReplicas
            | Self::KillBehind
            | Self::HungDisk
            | Self::DiskFull
            | Self::VolumeLost
            | Self::Switchover
            | Self::Scale => Scope::Store,
            Self::NodeBlackout
            | Self::NodeAndOperatorBlackout
            | Self::IsolatedPrimary
            | Self::ApiServer
            | Self::OperatorKilled
            | Self::TwoOperators
            | Self::OperatorAway
            | Self::OperatorAndApiAway => Scope::Cluster,
        }
    }

    /// Whether it needs volumes on file systems of their own.
    pub fn needs_disks(self) -> bool {
        matches!(self, Self::HungDisk | Self::DiskFull)
    }

    /// Whether the primaries of all stores should be on one node.
    pub fn needs_one_node(self) -> bool {
        matches!(self, Self::NodeBlackout | Self::NodeAndOperatorBlackout | Self::IsolatedPrimary)
    }

    /// Whether a round has one store only: its moment is chosen by that store's failover.
    pub fn needs_one_store(self) -> bool {
        self == Self::OperatorKilled
    }

    /// Whether the same primary should lead, without a new reign. Every other kind must end the reign.
    pub fn keeps_reign(self, mode: Mode) -> bool {
        match self {
            Self::PartitionOperator | Self::ApiServer => true,
            // A primary that waits for no replica goes on without them.
            Self::PartitionReplicas => mode == Mode::Async,
            _ => false,
        }
    }

    /// Whether clients should notice nothing until the primary itself is killed, if it is.
    pub fn goes_on(self, mode: Mode) -> bool {
        self.keeps_reign(mode) || matches!(self, Self::OperatorAway | Self::OperatorAndApiAway)
    }

    /// Whether the primary's process is ended, so that no reign may be the same afterwards.
    pub fn ends_process(self) -> bool {
        matches!(
            self,
            Self::Kill
                | Self::PodDeleted
                | Self::KillBehind
                | Self::VolumeLost
                | Self::OperatorKilled
                | Self::TwoOperators
                | Self::OperatorAway
                | Self::OperatorAndApiAway
        )
    }

    /// Whether the reign ends because somebody asked for it.
    pub fn is_planned(self) -> bool {
        matches!(self, Self::Switchover | Self::Scale)
    }

    /// Whether a store that waits for no replica takes another way through it, by its Lease or by losing records.
    pub fn differs_without_quorum(self) -> bool {
        matches!(self, Self::Kill | Self::KillBehind | Self::Switchover | Self::IsolatedPrimary | Self::ApiServer)
    }

    /// Whether the old primary's records can ever be seen again.
    pub fn loses_volume(self) -> bool {
        self == Self::VolumeLost
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::{Kind, Mode, Scope};

    #[test]
    fn kinds_are_named_as_in_reports() {
        for kind in Kind::value_variants() {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name().as_str());
        }
        for mode in Mode::value_variants() {
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
        }
        assert_eq!(Kind::NodeBlackout.scope(), Scope::Cluster);
    }
}
