//! What became more expensive: an inventory beside an earlier one, route by route.

use std::collections::BTreeMap;

use super::report::Report;

/// A route whose charged calls are not what they were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub route: String,
    pub before: u64,
    pub now: u64,
}

/// An inventory compared with a baseline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// What grew most comes first.
    pub grew: Vec<Change>,
    pub new: Vec<Change>,
    pub shrank: Vec<Change>,
    pub gone: Vec<Change>,
    /// Charged calls, all together.
    pub before: u64,
    pub now: u64,
}

impl Comparison {
    /// Compares charged calls. Calls that cost nothing may come and go.
    pub fn of(baseline: &Report, report: &Report) -> Comparison {
        let mut routes: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for line in &baseline.lines {
            routes.entry(&line.name).or_default().0 += line.charged;
        }
        for line in &report.lines {
            routes.entry(&line.name).or_default().1 += line.charged;
        }
        let of = |which: fn(u64, u64) -> bool| {
            let found = routes.iter().filter(|(_, (before, now))| which(*before, *now));
            let mut changes: Vec<Change> = found
                .map(|(route, (before, now))| Change { route: (*route).into(), before: *before, now: *now })
                .collect();
            changes.sort_by_key(|c| std::cmp::Reverse(c.before.abs_diff(c.now)));
            changes
        };
        Comparison {
            grew: of(|before, now| before > 0 && now > before),
            new: of(|before, now| before == 0 && now > 0),
            shrank: of(|before, now| now > 0 && now < before),
            gone: of(|before, now| before > 0 && now == 0),
            before: routes.values().map(|(before, _)| before).sum(),
            now: routes.values().map(|(_, now)| now).sum(),
        }
    }

    /// Charged calls that were not there before, in percent of those that were.
    pub fn growth(&self) -> f64 {
        let more: u64 = self.grew.iter().chain(&self.new).map(|c| c.now - c.before).sum();
        match (more, self.before) {
            (0, _) => 0.0,
            (_, 0) => f64::INFINITY,
            (more, before) => more as f64 * 100.0 / before as f64,
        }
    }

    fn groups(&self) -> [(&'static str, &[Change]); 4] {
        [("grew", &self.grew), ("new", &self.new), ("shrank", &self.shrank), ("gone", &self.gone)]
    }

    /// A line for each route that changed; nothing if none did.
    pub fn text(&self) -> String {
        let lines = self.groups().into_iter().flat_map(|(what, changes)| {
            changes
                .iter()
                .map(move |c| format!("{what:<7} {}: {} charged calls, {} before\n", c.route, c.now, c.before))
        });
        lines.collect()
    }

    /// The same as a table in Markdown.
    pub fn markdown(&self) -> String {
        let rows: String = self
            .groups()
            .into_iter()
            .flat_map(|(what, changes)| {
                changes.iter().map(move |c| {
                    format!("| {what} | `{}` | {} | {} |\n", c.route.replace('|', "\\|"), c.before, c.now)
                })
            })
            .collect();
        match rows.is_empty() {
            true => "No route costs more or less than in the baseline.\n".into(),
            false => format!("| | route | charged before | now |\n|---|---|---:|---:|\n{rows}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::report::{By, Line};

    fn report(lines: &[(&str, u64)]) -> Report {
        let line = |(name, charged): &(&str, u64)| Line { name: (*name).into(), charged: *charged, ..Line::default() };
        Report { by: By::Route, lines: lines.iter().map(line).collect(), total: Line::default() }
    }

    #[test]
    fn route_by_route() {
        let before = report(&[("a", 10), ("b", 5), ("c", 5), ("free", 0)]);
        let found = Comparison::of(&before, &report(&[("a", 11), ("b", 2), ("d", 1), ("free", 0)]));
        let names = |changes: &[Change]| changes.iter().map(|c| c.route.clone()).collect::<Vec<_>>().join(",");
        assert_eq!(
            [&found.grew, &found.new, &found.shrank, &found.gone].map(|c| names(c)),
            ["a", "d", "b", "c"].map(str::to_owned)
        );
        assert_eq!((found.before, found.now, found.growth()), (20, 14, 10.0), "savings do not make up for it");
        assert!(found.text().contains("grew    a: 11 charged calls, 10 before\n"));
        assert!(found.markdown().contains("| gone | `c` | 5 | 0 |\n"));
        assert_eq!(Comparison::of(&before, &before).growth(), 0.0);
        assert!(Comparison::of(&report(&[]), &before).growth().is_infinite());
    }
}
