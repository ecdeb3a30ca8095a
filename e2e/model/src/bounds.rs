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
    Bounds { name: "lost-volume-reads", epochs: 2, clocks: true, budget: Budget { losses: 1, ..SAFE }, ..BASE },
    Bounds { name: "restored", budget: Budget { restores: 1, ..SAFE }, ..BASE },
    Bounds { name: "lease", epochs: 2, w: &[0], clocks: true, ..BASE },
    Bounds { name: "lease-beside", epochs: 2, w: &[1, 0], clocks: true, ..BASE },
    Bounds { name: "lease-3", w: &[0], clocks: true, quick: false, ..BASE },
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

/// What a search may have more of than the least.
type Part = (&'static str, fn(&Bounds) -> bool);

/// See [`together`].
const PARTS: &[Part] = &[
    ("3 reigns", |b| b.epochs >= 3),
    ("4 reigns", |b| b.epochs >= 4),
    ("2 writes", |b| b.writes >= 2),
    ("3 writes", |b| b.writes >= 3),
    ("W = 0", |b| b.w == [0]),
    ("W = 2", |b| b.w == [2]),
    ("W = 1 and 2", |b| b.w == [1, 2]),
    ("W = 1 and 0", |b| b.w == [1, 0]),
    ("reads", |b| b.clocks),
    ("a crash", |b| b.budget.crashes >= 1),
    ("a rebuild", |b| b.budget.rebuilds >= 1),
    ("a damaged copy", |b| b.budget.damages >= 1),
    ("a lost volume", |b| b.budget.losses >= 1),
    ("a restored record", |b| b.budget.restores >= 1),
];

/// What these searches looked at together, and what at no time: of each configuration its parts, and of each part those that
/// were never searched beside it.
#[must_use]
pub fn together(searched: &[Bounds]) -> Vec<String> {
    let names = |parts: &mut dyn Iterator<Item = &Part>| parts.map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let mut lines = Vec::new();
    for bounds in searched {
        let parts = names(&mut PARTS.iter().filter(|(_, has)| has(bounds)));
        lines.push(format!(
            "covered together ({}): {}",
            bounds.name,
            if parts.is_empty() { "the least" } else { &parts }
        ));
    }
    for (name, has) in PARTS {
        let beside = |other: &&Part| !searched.iter().any(|b| has(b) && other.1(b));
        if !searched.iter().any(has) {
            lines.push(format!("not covered: {name}"));
            continue;
        }
        // Two values of W are no combination.
        let is_w = |name: &str| name.starts_with("W =");
        let never = names(&mut PARTS.iter().filter(beside).filter(|(other, _)| !(is_w(name) && is_w(other))));
        if !never.is_empty() {
            lines.push(format!("never beside {name}: {never}"));
        }
    }
    lines
}

/// A configuration as `epochs=3,writes=2,w=1,clocks=0,crashes=1,rebuilds=0,damages=0,losses=0,restores=0`; what is not named
/// is as in `plain`. `w=10` begins with W = 1 and may have reigns of W = 0, `w=12` of W = 2.
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
            "w" if n == 10 => bounds.w = &[1, 0],
            "w" if n == 12 => bounds.w = &[1, 2],
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
