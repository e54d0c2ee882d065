//! Delivered over time, drawn in a terminal. It must not know what was delivered.

use std::time::Duration;

const WIDTH: usize = 60;
const HEIGHT: usize = 8;
const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Draws how many of `total` were delivered at each point of the time it took.
pub(super) fn draw(sent: &[Duration], took: Duration, total: usize) -> String {
    let end = took.as_secs_f64().max(f64::MIN_POSITIVE);
    let height_at = |column: usize| {
        let until = end * (column + 1) as f64 / WIDTH as f64;
        let done = sent.iter().filter(|at| at.as_secs_f64() <= until).count();
        done * HEIGHT * 8 / total.max(1)
    };
    let heights: Vec<usize> = (0..WIDTH).map(height_at).collect();
    let mut lines = Vec::new();
    for row in (0..HEIGHT).rev() {
        let label = if row + 1 == HEIGHT {
            total.to_string()
        } else {
            String::new()
        };
        let cells = heights
            .iter()
            .map(|h| EIGHTHS[h.saturating_sub(row * 8).min(8)]);
        lines.push(format!("{label:>7} │{}", cells.collect::<String>()));
    }
    lines.push(format!("{:>7} └{}", 0, "─".repeat(WIDTH)));
    lines.push(format!(
        "{:>9}0 s{:>width$.1} s",
        "",
        end,
        width = WIDTH - 5
    ));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::draw;
    use std::time::Duration;

    #[test]
    fn it_rises_to_the_top_and_never_falls() {
        let sent: Vec<_> = (1..=50u64).map(|n| Duration::from_millis(n * n)).collect();
        let drawn = draw(&sent, Duration::from_millis(2500), 50);
        let rows: Vec<Vec<char>> = drawn
            .lines()
            .take(8)
            .map(|l| l.chars().skip(9).collect())
            .collect();
        assert_eq!(rows[0].last(), Some(&'█'), "all were delivered at the end");
        for row in &rows {
            assert!(row.windows(2).all(|pair| pair[0] <= pair[1]), "{drawn}");
        }
    }

    #[test]
    fn nothing_delivered_is_an_empty_picture() {
        assert!(!draw(&[], Duration::ZERO, 0).contains('█'));
    }
}
