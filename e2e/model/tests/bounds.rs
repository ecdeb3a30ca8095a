//! The smallest configurations, so that a change of a rule is noticed without a long search.

use parovoz_model::bounds;
use parovoz_model::clocks::{Clocks, What, lease_margin, promise_margin};
use parovoz_model::run::{LIMITS, one, rule};
use parovoz_model::search::search;

#[test]
fn nothing_is_violated_and_every_state_is_seen_within_the_smallest_bounds() {
    for name in ["reads", "wide-reads", "epochs=2,writes=1,w=1,losses=1", "epochs=2,writes=2,w=1,rebuilds=1"] {
        let bounds = bounds::parse(name);
        let row = bounds.map(|bounds| one(bounds, None, LIMITS));
        assert!(row.as_ref().is_ok_and(|row| row.complete && row.violation.is_none()), "{name}: {row:?}");
    }
}

#[test]
fn a_removed_rule_is_seen_with_a_trace_that_ends_in_the_violation() {
    for name in ["record-swapped", "promise-stored", "volume-has-an-identity"] {
        let row = rule(name).and_then(|rule| Some(one(bounds::parse(rule.seen_in).ok()?, Some(rule), LIMITS)));
        assert!(row.as_ref().is_some_and(|r| r.violation.is_some() && r.trace.len() == r.depth as usize), "{row:?}");
    }
}

#[test]
fn a_promise_and_a_lease_hold_up_to_the_drift_that_their_constants_allow_and_no_further() {
    for (what, margin) in [(What::Promise, promise_margin()), (What::Lease, lease_margin())] {
        let violated = |drift| search(&mut Clocks::new(what, drift), LIMITS).violation.is_some();
        let margin = u32::try_from(margin).unwrap_or(0);
        assert!(margin > 0 && !violated(0) && !violated(margin) && violated(margin + 100), "{what:?} {margin}");
    }
}

#[test]
fn every_rule_names_a_configuration() {
    for rule in parovoz_model::rules::RULES {
        assert!(bounds::parse(rule.seen_in).is_ok(), "{}", rule.name());
    }
}
