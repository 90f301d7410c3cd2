//! Tables that people read: aligned, with notes between the rows, cut where the terminal is too narrow.

use std::{
    io::{self, Write},
    iter,
};

use unicode_width::UnicodeWidthStr;

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
pub fn write<const COLUMNS: usize>(mut lines: Vec<Line<COLUMNS>>, shape: &Shape, out: &mut Sink) -> io::Result<()> {
    if let Some(width) = out.width {
        fit(&mut lines, shape, usize::from(width));
    }
    let widths = widths(&lines);
    let mut text = String::new();
    for line in &lines {
        match line {
            Line::Note(note) => writeln!(out, "{note}")?,
            Line::Row(cells) => {
                text.clear();
                align(cells, &widths, shape, &mut text);
                writeln!(out, "{}", text.trim_end())?;
            }
        }
    }
    Ok(())
}

fn align<const COLUMNS: usize>(cells: &[String; COLUMNS], widths: &[usize; COLUMNS], shape: &Shape, text: &mut String) {
    for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let rest = width.saturating_sub(shown_width(cell));
        let before = if shape.right.contains(&index) { rest } else { 0 };
        text.extend(iter::repeat_n(' ', before));
        text.push_str(cell);
        text.extend(iter::repeat_n(' ', rest - before + GAP));
    }
}

/// Columns of a terminal that a text takes.
fn shown_width(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.width() }
}

fn rows<const COLUMNS: usize>(lines: &[Line<COLUMNS>]) -> impl Iterator<Item = &[String; COLUMNS]> {
    lines.iter().filter_map(|line| if let Line::Row(cells) = line { Some(cells) } else { None })
}

fn rows_mut<const COLUMNS: usize>(lines: &mut [Line<COLUMNS>]) -> impl Iterator<Item = &mut [String; COLUMNS]> {
    lines.iter_mut().filter_map(|line| if let Line::Row(cells) = line { Some(cells) } else { None })
}

/// What the widest cell of each column takes.
fn widths<const COLUMNS: usize>(lines: &[Line<COLUMNS>]) -> [usize; COLUMNS] {
    let mut widths = [0; COLUMNS];
    for row in rows(lines) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(shown_width(cell));
        }
    }
    widths
}

fn fit<const COLUMNS: usize>(lines: &mut [Line<COLUMNS>], shape: &Shape, width: usize) {
    let excess =
        |lines: &[Line<COLUMNS>]| widths(lines).iter().map(|width| width + GAP).sum::<usize>().saturating_sub(width);
    for column in shape.dropped {
        if excess(lines) > 0 {
            rows_mut(lines).for_each(|row| row[*column].clear());
        }
    }
    for column in shape.cut {
        let excess = excess(lines);
        let most = widths(lines)[*column].saturating_sub(excess).max(LEAST_NAME);
        if excess > 0 {
            rows_mut(lines).for_each(|row| cut(&mut row[*column], most));
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
        let wide = row(["a name of twenty one", "tcp://127.0.0.1:55555", "SYN_SENT"]);
        let fitted = |width| {
            let mut lines = [Line::Row(wide.clone())];
            fit(&mut lines, &SHAPE, width);
            rows(&lines).map(|row| row.join("|")).collect::<Vec<_>>()
        };
        assert_eq!(fitted(80), [wide.join("|")]);
        assert_eq!(fitted(50), ["a name of twenty one|tcp://127.0.0.1:55555|"]);
        assert_eq!(fitted(40), ["a name of twenty one|tcp://127.0.0…|"]);
        assert_eq!(fitted(10), ["a name of t…|tcp://127.0…|"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let shape = Shape { right: &[1], dropped: &[], cut: &[] };
        let lines = [row(["name", "fd", "state"]), row(["日本", "5", ""]), row(["", "100", "ready"])].map(Line::Row);
        let widths = widths(&lines);
        let aligned = rows(&lines).map(|row| {
            let mut text = String::new();
            align(row, &widths, &shape, &mut text);
            text
        });
        let expected = ["name   fd  state  ", "日本    5         ", "      100  ready  "];
        assert_eq!(aligned.collect::<Vec<_>>(), expected);
    }
}
