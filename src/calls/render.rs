//! Reports, printed: a table, JSON, CSV, Markdown.

use serde::{Deserialize, Serialize};

use super::report::{By, Line, Report};

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    Table,
    Json,
    Csv,
    Markdown,
}

/// What each column shows; the name comes first.
type Column = (&'static str, fn(&Line) -> String);

const COUNTS: [Column; 9] = [
    ("calls", |l| l.calls.to_string()),
    ("from_store", |l| l.from_store.to_string()),
    ("sent", |l| l.sent.to_string()),
    ("charged", |l| l.charged.to_string()),
    ("saved", |l| l.saved.to_string()),
    ("errors", |l| l.errors.to_string()),
    ("bytes", |l| l.bytes.to_string()),
    ("median_ms", |l| l.median_ms.to_string()),
    ("p99_ms", |l| l.p99_ms.to_string()),
];

const QUOTA: [Column; 5] = [
    ("limit", |l| of_quota(l, |q| q.limit)),
    ("remaining", |l| of_quota(l, |q| q.remaining)),
    ("reset", |l| l.quota.as_ref().map_or_else(String::new, |q| time_of(q.reset))),
    ("used_by_us", |l| of_quota(l, |q| q.used_by_us)),
    ("used_by_others", |l| of_quota(l, |q| q.used_by_others)),
];

fn of_quota(line: &Line, value: fn(&super::report::QuotaLine) -> u64) -> String {
    line.quota.as_ref().map_or_else(String::new, |q| value(q).to_string())
}

/// A moment as text, in UTC. `seconds` since 1970.
pub fn time_of(seconds: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.min(253_402_300_799));
    humantime::format_rfc3339_seconds(at).to_string()
}

fn columns(by: By) -> Vec<Column> {
    let quota = if by == By::Credential { &QUOTA[..] } else { &[] };
    COUNTS.iter().chain(quota).copied().collect()
}

/// Prints a report.
pub fn render(report: &Report, format: Format) -> String {
    let columns = columns(report.by);
    match format {
        Format::Json => format!("{:#}\n", serde_json::json!(report)),
        Format::Csv => csv(report, &columns),
        Format::Table => table(report, &columns),
        Format::Markdown => markdown(report, &columns),
    }
}

fn csv(report: &Report, columns: &[Column]) -> String {
    let quoted = |text: &str| match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let heads = columns.iter().map(|(name, _)| format!(",{name}"));
    let mut out = report.by.as_str().to_owned() + &heads.collect::<String>() + "\n";
    for line in &report.lines {
        let cells = columns.iter().map(|(_, cell)| format!(",{}", cell(line)));
        out += &(quoted(&line.name) + &cells.collect::<String>() + "\n");
    }
    out
}

fn table(report: &Report, columns: &[Column]) -> String {
    let rows: Vec<Vec<String>> =
        [vec![report.by.as_str().to_owned()]
            .into_iter()
            .chain(columns.iter().map(|(name, _)| name.replace("_ms", " ms")))
            .collect()]
        .into_iter()
        .chain(
            report.lines.iter().chain([&report.total]).map(|line| {
                [line.name.clone()].into_iter().chain(columns.iter().map(|(_, cell)| cell(line))).collect()
            }),
        )
        .collect();
    let width = |i: usize| rows.iter().map(|row: &Vec<String>| row[i].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=columns.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let rest = row[1..].iter().zip(&widths[1..]).map(|(cell, width)| format!("  {cell:>width$}"));
        format!("{:<width$}{}\n", row[0], rest.collect::<String>(), width = widths[0])
    };
    rows.iter().map(line).collect()
}

fn markdown(report: &Report, columns: &[Column]) -> String {
    let shown = |name: &str| !matches!(name, "bytes" | "sent");
    let columns: Vec<&Column> = columns.iter().filter(|(name, _)| shown(name)).collect();
    let heads: String = columns.iter().map(|(name, _)| format!(" {} |", name.replace('_', " "))).collect();
    let mut out = format!("| {} |{heads}\n|---|{}\n", report.by.as_str(), "---:|".repeat(columns.len()));
    for line in report.lines.iter().chain([&report.total]) {
        let name = if line.name == "total" { "**total**".into() } else { format!("`{}`", line.name.replace('`', "'")) };
        let cells: String = columns.iter().map(|(_, cell)| format!(" {} |", cell(line))).collect();
        out += &format!("| {} |{cells}\n", name.replace('|', "\\|"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::report::QuotaLine;

    fn report(by: By) -> Report {
        let line = |name: &str, charged| Line { name: name.into(), calls: 10, charged, ..Line::default() };
        Report { by, lines: vec![line("GET /a, \"b\"", 3), line("GET /c|d", 0)], total: line("total", 3) }
    }

    #[test]
    fn formats() {
        let text = render(&report(By::Route), Format::Csv);
        assert!(
            text.starts_with("route,calls,from_store,sent,charged,saved,errors,bytes,median_ms,p99_ms\n"),
            "{text}"
        );
        assert!(text.contains("\"GET /a, \"\"b\"\"\",10,0,0,3,"), "{text}");
        let text = render(&report(By::Route), Format::Table);
        assert!(text.lines().all(|l| l.len() == text.lines().next().unwrap().len()), "{text}");
        let text = render(&report(By::Route), Format::Markdown);
        assert!(text.contains("| `GET /c\\|d` | 10 |") && text.contains("| **total** | 10 |"), "{text}");
        let back: Report = serde_json::from_str(&render(&report(By::Hour), Format::Json)).unwrap();
        assert_eq!(back, report(By::Hour));
    }

    #[test]
    fn credentials_show_their_quota() {
        let mut report = report(By::Credential);
        let quota = QuotaLine { limit: 5000, remaining: 9, reset: 86_400, used_by_others: 4, ..QuotaLine::default() };
        report.lines[0].quota = Some(quota);
        let text = render(&report, Format::Csv);
        assert!(text.lines().next().unwrap().ends_with("limit,remaining,reset,used_by_us,used_by_others"), "{text}");
        assert!(text.contains(",5000,9,1970-01-02T00:00:00Z,0,4\n"), "{text}");
    }
}
