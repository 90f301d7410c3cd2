//! Payloads as tcpdump -X shows packets.

use std::fmt::Write;

const BYTES_PER_LINE: usize = 16;

/// Appends a dump of `bytes`: offset, hexadecimal, text; each line begins with ` | ` as strace's.
pub fn write(text: &mut String, bytes: &[u8]) {
    for (number, line) in bytes.chunks(BYTES_PER_LINE).enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(text, " | {:05x} ", number * BYTES_PER_LINE);
        for index in 0..BYTES_PER_LINE {
            if index == BYTES_PER_LINE / 2 {
                text.push(' ');
            }
            match line.get(index) {
                Some(byte) => _ = write!(text, " {byte:02x}"),
                None => text.push_str("   "),
            }
        }
        text.push_str("  ");
        text.extend((0..BYTES_PER_LINE).map(|index| match line.get(index) {
            Some(byte @ 0x20..=0x7e) => char::from(*byte),
            Some(_) => '.',
            None => ' ',
        }));
        text.push_str(" |\n");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn lines_are_aligned() {
        let mut text = String::new();
        super::write(&mut text, b"hello, world\0\xff and more");
        let expected = " | 00000  68 65 6c 6c 6f 2c 20 77  6f 72 6c 64 00 ff 20 61  hello, world.. a |\n \
                        | 00010  6e 64 20 6d 6f 72 65                              nd more          |\n";
        assert_eq!(text, expected);
    }
}
