//! What must hold at the moment in which an operator decides.

use crate::msg::{MEMBERS, Node};
use crate::world::World;

impl World {
    /// No primary that waits for no replica would still acknowledge a write, now that a reign after its own is decided.
    pub(crate) fn all_before_are_silent(&mut self, waived: bool, decided: u64) {
        let acknowledges = |node: &Node| {
            let machine = self.machines.get(usize::from(*node))?;
            let role = &machine.running.as_deref()?.role;
            let reign = role.led().filter(|r| r.required() == 0 && r.epoch.0 < decided)?;
            role.serving().may_acknowledge(machine.clock_ms(self.now)).then_some(reign.epoch)
        };
        let found = (1..MEMBERS).find_map(|node| acknowledges(&node).map(|epoch| (node, epoch)));
        if let Some((node, epoch)) = found.filter(|_| !waived && !self.check.restored) {
            let what = format!("member {node} may acknowledge under epoch {epoch}, though epoch {decided} is decided");
            self.check.fail(self.now, what);
        }
    }
}
