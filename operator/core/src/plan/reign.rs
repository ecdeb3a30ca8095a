//! Which reign there should be: the first, the present one, or the next.

use parovoz_api::{ReignPhase, ReignRecord, StoreReignSpec, WaitingReason};

use super::orders::follow;
use super::suspect::Verdict;
use super::{Context, Plan, first, operations, planned, procedure, suspect};
use crate::receipt;

/// Decide about the reign, and what members are told about it. Returns the record in effect after the plan.
pub(super) fn decide(context: &Context<'_>, plan: &mut Plan) -> Option<ReignRecord> {
    let Some(reign) = &context.observed.reign else {
        first::no_record(context, plan);
        return None;
    };
    let spec = &reign.spec;
    if spec.store_uid != context.observed.store.uid {
        let message = "the decision record belongs to an earlier store of this name and is not gone yet".to_owned();
        let command = context.kubectl("delete storereign", &context.observed.store.name);
        plan.wait(WaitingReason::ForeignObject, message, command);
        return None;
    }
    if spec.current.phase != ReignPhase::Forming {
        if first::outdated(context, plan, spec).is_some() {
            // Whoever accepts the loss need not wait for volumes that do not answer.
            let goes_on = plan.reign_write.is_none() && operations::accepts_loss(context);
            return if goes_on { operations::promotion(context, plan, spec) } else { None };
        }
        if let Some(record) = operations::promotion(context, plan, spec) {
            return Some(record);
        }
    }
    match spec.current.phase {
        ReignPhase::Forming => first::form(context, plan, &spec.current),
        ReignPhase::Sealing => procedure::sealing(context, plan, spec),
        ReignPhase::Promoting => procedure::promoting(context, plan, spec),
        ReignPhase::Serving => Some(serving(context, plan, spec)),
    }
}

fn serving(context: &Context<'_>, plan: &mut Plan, spec: &StoreReignSpec) -> ReignRecord {
    let current = &spec.current;
    match suspect::judge(context, spec) {
        Verdict::Suspect { cause, since, what } => {
            suspect::act(context, plan, spec, cause, since, what).unwrap_or_else(|| current.clone())
        }
        Verdict::Wait(reason, message) => {
            let name = procedure::member_name(spec, &current.primary);
            plan.within(super::WHILE_REIGN_BEGINS);
            plan.wait(reason, message, context.kubectl("describe pod", &name));
            current.clone()
        }
        Verdict::Healthy(ordinal, report) => {
            if let Some(record) = receipt::resolve(context, plan, spec) {
                return record;
            }
            if let Some(record) = planned::serving(context, plan, spec, (ordinal, report)) {
                return record;
            }
            let except = receipt::unresolved(context, spec, current);
            let except: Vec<&str> = except.iter().map(String::as_str).collect();
            plan.orders.extend(follow(context, current, &except));
            current.clone()
        }
    }
}
