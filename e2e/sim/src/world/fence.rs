//! What must hold at the moment in which an operator decides.

use crate::msg::{MEMBERS, Node};
use crate::world::World;

impl World {
    /// Now that a reign is decided, no primary of one before would answer a read, nor acknowledge a write that it alone has.
    pub(crate) fn all_before_are_silent(&mut self, waived: bool, decided: u64) {
        let speaks = |node: Node| {
            let machine = self.machines.get(usize::from(node))?;
            let role = &machine.running.as_deref()?.role;
            let reign = role.led().filter(|r| r.epoch.0 < decided)?;
            let (serving, now_ms) = (role.serving(), machine.clock_ms(self.now));
            let alone = reign.required() == 0 && serving.may_acknowledge(now_ms);
            let what = if alone { "acknowledge" } else { "read" };
            (alone || serving.may_read(now_ms)).then_some((node, reign.epoch, what))
        };
        let found = (1..MEMBERS).find_map(speaks).filter(|_| !waived && !self.check.restored);
        if let Some((node, epoch, what)) = found {
            let what = format!("member {node} may {what} under epoch {epoch}, though epoch {decided} is decided");
            self.check.fail(self.now, what);
        }
    }
}
