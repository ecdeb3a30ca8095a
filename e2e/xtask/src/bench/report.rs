//! What a benchmark found: a table for people, a list for programs.

use std::path::Path;

use serde::Serialize;

use crate::error::{Error, Result, write};

/// One figure beside its reference.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Which goal, and of what.
    pub id: String,
    /// Ours, the median of the rounds.
    pub ours: f64,
    /// The reference's, the median of the same rounds.
    pub reference: f64,
    /// What the reference is.
    pub reference_name: &'static str,
    /// Of both.
    pub unit: &'static str,
    /// The median of the rounds' ratios.
    pub ratio: f64,
    /// What the ratio should reach.
    pub mark: f64,
    /// Whether it does.
    pub ok: bool,
}

impl Figure {
    /// From rounds of (ours, reference), of which there is at least one.
    pub fn of_rounds(id: String, rounds: &[(f64, f64)], mark: f64) -> Self {
        let ratio = median(rounds.iter().map(|(ours, reference)| ours / reference));
        Self {
            id,
            ours: median(rounds.iter().map(|r| r.0)).round(),
            reference: median(rounds.iter().map(|r| r.1)).round(),
            reference_name: "Redis, in memory, without a replica",
            unit: "ops/s",
            ratio: (ratio * 1000.0).round() / 1000.0,
            mark,
            ok: ratio >= mark,
        }
    }
}

/// The middle one; of an even number, the mean of the two in the middle; 0 of none.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

/// A table.
pub fn table(figures: &[Figure]) -> String {
    let mut text =
        format!("{:<16} {:>12} {:>12} {:>7} {:>6}  unit {}\n", "id", "ours", "reference", "ratio", "mark", "");
    for f in figures {
        let mark = if f.ok { "reached" } else { "missed" };
        text += &format!(
            "{:<16} {:>12.0} {:>12.0} {:>7.2} {:>6.2}  {} {mark}\n",
            f.id, f.ours, f.reference, f.ratio, f.mark, f.unit
        );
    }
    text
}

/// Writes the figures as JSON.
pub fn save(figures: &[Figure], path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(figures).map_err(|e| Error::parse("write figures", e))?;
    write(path, text + "\n")
}

#[cfg(test)]
mod tests {
    use super::{Figure, median};

    #[test]
    fn the_median_ignores_one_wild_round() {
        assert!((median([1.0, 100.0, 2.0].into_iter()) - 2.0).abs() < f64::EPSILON);
        assert!((median([1.0, 2.0].into_iter()) - 1.5).abs() < f64::EPSILON);
    }

    #[test]
    fn the_ratio_is_that_of_each_round_not_of_the_medians() {
        let f = Figure::of_rounds("x".into(), &[(10.0, 10.0), (50.0, 100.0), (90.0, 100.0)], 1.0);
        assert!((f.ratio - 0.9).abs() < 1e-9);
        assert!(!f.ok);
    }
}
