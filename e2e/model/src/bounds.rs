//! What may happen at most, and the configurations that are searched.

use crate::state::Budget;

/// The bounds of one search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// For people.
    pub name: &'static str,
    /// The highest epoch.
    pub epochs: u8,
    /// Writes of clients.
    pub writes: u8,
    /// W that reigns may have; the first reign has the first.
    pub w: &'static [u8],
    /// Whether promises and reads are looked at; else silence is always believed.
    pub clocks: bool,
    /// Faults.
    pub budget: Budget,
    /// Searched with `--quick` too.
    pub quick: bool,
}

/// No fault.
const SAFE: Budget = Budget { crashes: 0, rebuilds: 0, damages: 0, losses: 0, restores: 0 };
const CRASH: Budget = Budget { crashes: 1, ..SAFE };
const BASE: Bounds = Bounds { name: "", epochs: 3, writes: 1, w: &[1], clocks: false, budget: SAFE, quick: true };

/// Every configuration, the small ones first.
pub const ALL: &[Bounds] = &[
    Bounds { name: "plain", ..BASE },
    Bounds { name: "writes-3", writes: 3, quick: false, ..BASE },
    Bounds { name: "crashes", budget: CRASH, ..BASE },
    Bounds { name: "wide", w: &[2], budget: Budget { crashes: 2, ..SAFE }, ..BASE },
    Bounds { name: "mixed", w: &[1, 2], ..BASE },
    Bounds { name: "reads", epochs: 2, clocks: true, budget: CRASH, ..BASE },
    Bounds { name: "reads-3", clocks: true, ..BASE },
    Bounds { name: "wide-reads", epochs: 2, w: &[2], clocks: true, budget: CRASH, ..BASE },
    Bounds { name: "rebuild", budget: Budget { rebuilds: 1, ..SAFE }, ..BASE },
    Bounds { name: "damage", budget: Budget { damages: 1, ..SAFE }, ..BASE },
    Bounds { name: "lost-volume", epochs: 2, budget: Budget { losses: 1, ..CRASH }, ..BASE },
    Bounds { name: "restored", budget: Budget { restores: 1, ..SAFE }, ..BASE },
    Bounds { name: "lease", epochs: 2, w: &[0], clocks: true, ..BASE },
    Bounds { name: "lease-crashes", epochs: 2, w: &[0], clocks: true, budget: CRASH, quick: false, ..BASE },
    Bounds { name: "reads-2", epochs: 2, writes: 2, clocks: true, budget: CRASH, quick: false, ..BASE },
    Bounds { name: "rebuild-crashes", budget: Budget { rebuilds: 1, ..CRASH }, quick: false, ..BASE },
    Bounds { name: "lost-volume-3", budget: Budget { losses: 1, ..SAFE }, quick: false, ..BASE },
    Bounds { name: "crashes-2", writes: 2, budget: CRASH, quick: false, ..BASE },
    Bounds { name: "crashes-3", writes: 3, budget: CRASH, quick: false, ..BASE },
    Bounds { name: "reigns-4", epochs: 4, quick: false, ..BASE },
];

/// The configuration of this name.
#[must_use]
pub fn named(name: &str) -> Option<Bounds> {
    ALL.iter().copied().find(|bounds| bounds.name == name)
}

/// A configuration as `epochs=3,writes=2,w=1,clocks=0,crashes=1,rebuilds=0,damages=0,losses=0,restores=0`; what is not named
/// is as in `plain`.
///
/// # Errors
/// Something is not of that form, or too large for the model.
pub fn parse(text: &str) -> Result<Bounds, String> {
    if let Some(bounds) = named(text) {
        return Ok(bounds);
    }
    let mut bounds = Bounds { name: "given", ..BASE };
    for part in text.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("read bounds: {part:?} is no key=value"))?;
        let n: u8 = value.parse().map_err(|_| format!("read bounds: {value:?} is no small number"))?;
        match key {
            "epochs" if n <= 4 => bounds.epochs = n,
            "writes" if n <= 4 => bounds.writes = n,
            "w" if n == 0 => bounds.w = &[0],
            "w" if n == 1 => bounds.w = &[1],
            "w" if n == 2 => bounds.w = &[2],
            "clocks" => bounds.clocks = n > 0,
            "crashes" => bounds.budget.crashes = n,
            "rebuilds" => bounds.budget.rebuilds = n,
            "damages" => bounds.budget.damages = n,
            "losses" => bounds.budget.losses = n,
            "restores" if n <= 1 => bounds.budget.restores = n,
            _ => return Err(format!("read bounds: {key}={n} is unknown or beyond what the model holds")),
        }
    }
    Ok(bounds)
}
