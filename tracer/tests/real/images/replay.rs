//! What is found in saved images.

use std::fs;

use zmqtrace::inspect::{Look, layouts};

use super::saved::{IMAGES, Saved, data};

/// A line a context, then a line each of its sockets.
pub fn lines(look: Look) -> String {
    let mut text = format!("{{\"unread\":{}}}\n", look.unread);
    for mut context in look.contexts {
        let sockets = std::mem::take(&mut context.sockets);
        text.push_str(&(serde_json::to_string(&context).expect("plain data") + "\n"));
        for socket in sockets {
            text.push_str(&(serde_json::to_string(&socket).expect("plain data") + "\n"));
        }
    }
    text
}

pub fn assert_expected(name: &str) {
    let found = lines(Saved::load(name).look(layouts::all()));
    let path = data(&format!("{name}.expected.jsonl"));
    if std::env::var_os("ZMQTRACE_UPDATE").is_some() {
        fs::write(&path, &found).expect("the data can be written");
    }
    let text = fs::read_to_string(&path).expect("the expected lines are there");
    for (number, (expected, found)) in text.lines().zip(found.lines()).enumerate() {
        assert_eq!(found, expected, "{}:{}", path.display(), number + 1);
    }
    assert_eq!(found.lines().count(), text.lines().count(), "lines of {}", path.display());
}

#[test]
fn everything_in_saved_images() {
    IMAGES.iter().for_each(|name| assert_expected(name));
}
