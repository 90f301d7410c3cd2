//! Tables that people read: aligned, with notes between the rows, cut where the terminal is too narrow.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets::NOTHING};

use super::Sink;

/// The least that a name is cut to.
const LEAST_NAME: usize = 12;
/// Spaces behind a column.
const GAP: usize = 2;

/// What is written.
pub enum Line<const COLUMNS: usize> {
    /// Across the table.
    Note(String),
    /// Of the table.
    Row([String; COLUMNS]),
}

/// How a table looks, by numbers of columns.
pub struct Shape {
    /// Aligned to the right.
    pub right: &'static [usize],
    /// Left out where the terminal is too narrow.
    pub dropped: &'static [usize],
    /// With names that are cut if that does not help, the first one first.
    pub cut: &'static [usize],
}

/// Writes all lines.
pub fn write<const COLUMNS: usize>(lines: &[Line<COLUMNS>], shape: &Shape, out: &mut Sink) -> io::Result<()> {
    let mut rows: Vec<[String; COLUMNS]> = lines
        .iter()
        .filter_map(|line| match line {
            Line::Row(cells) => Some(cells.clone()),
            Line::Note(_) => None,
        })
        .collect();
    if let Some(width) = out.width {
        fit(&mut rows, shape, usize::from(width));
    }
    let mut table = Table::new();
    table.load_preset(NOTHING).add_rows(&rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP as u16));
        if shape.right.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = table.lines();
    for line in lines {
        match line {
            Line::Note(note) => writeln!(out, "{note}")?,
            Line::Row(_) => writeln!(out, "{}", text.next().unwrap_or_default().trim_end())?,
        }
    }
    Ok(())
}

fn fit<const COLUMNS: usize>(rows: &mut [[String; COLUMNS]], shape: &Shape, width: usize) {
    let widths = |rows: &[[String; COLUMNS]]| {
        let mut widths = [0; COLUMNS];
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count() + GAP);
            }
        }
        widths
    };
    let excess = |rows: &[[String; COLUMNS]]| widths(rows).iter().sum::<usize>().saturating_sub(width);
    for column in shape.dropped {
        if excess(rows) > 0 {
            rows.iter_mut().for_each(|row| row[*column].clear());
        }
    }
    for column in shape.cut {
        let excess = excess(rows);
        let most = widths(rows)[*column].saturating_sub(GAP + excess).max(LEAST_NAME);
        if excess > 0 {
            rows.iter_mut().for_each(|row| cut(&mut row[*column], most));
        }
    }
}

fn cut(text: &mut String, most: usize) {
    if text.chars().count() > most {
        *text = text.chars().take(most.saturating_sub(1)).chain(['…']).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { right: &[], dropped: &[2], cut: &[1, 0] };

    fn row(cells: [&str; 3]) -> [String; 3] {
        cells.map(String::from)
    }

    #[test]
    fn names_are_cut_last() {
        let wide = [row(["a name of twenty one", "tcp://127.0.0.1:55555", "SYN_SENT"])];
        let fitted = |width| {
            let mut rows = wide.clone();
            fit(&mut rows, &SHAPE, width);
            rows.map(|row| row.join("|"))
        };
        assert_eq!(fitted(80), wide.clone().map(|row| row.join("|")));
        assert_eq!(fitted(50), ["a name of twenty one|tcp://127.0.0.1:55555|"]);
        assert_eq!(fitted(40), ["a name of twenty one|tcp://127.0.0…|"]);
        assert_eq!(fitted(10), ["a name of t…|tcp://127.0…|"]);
    }
}
